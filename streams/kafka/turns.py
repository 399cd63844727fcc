"""Long work in the event loop, in turns with all others who want to have theirs."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from time import monotonic
from typing import Final, TypeVar

T = TypeVar("T")

_SHORTEST_S: Final = 0.002
"""Of a turn: with less of it, going from one to the other would be the work."""
_LONGEST_S: Final = 0.05
"""However long others had: after them a scrape may be waiting."""


_HOPS: Final = 5
"""From one task to the next. A commit, what shows it and a scrape are chains of many of them: with one turn after each
chunk of events, each hop of them would take as long as a chunk."""


async def give_way() -> None:
    """Let all others have some turns."""
    for _ in range(_HOPS):
        await asyncio.sleep(0)


async def half_the_time(values: Iterable[T]) -> AsyncIterator[T]:
    """Yield values, and let others have their turn whenever this had as long as they had.

    So a commit has half of the time: in a flood of campaigns it would else do less than comes.
    """
    until = monotonic() + _SHORTEST_S
    for value in values:
        yield value
        if (ended := monotonic()) > until:
            await asyncio.sleep(0)
            began = monotonic()
            until = began + min(max(began - ended, _SHORTEST_S), _LONGEST_S)
