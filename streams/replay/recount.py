"""Counting files again, through the same core as the worker, in memory that does not grow with the files.

Law: a report is a function of the lines of each file and of the rules; not of the order in which files are read, nor of
the pieces. Cells are added up when the core calls them final, and are forgotten then; what is left is added at the end.

    renders ───┐
    views   ───┼─> merged: the furthest behind first ─> Partition ─> final cells ─> sums by slice of event time
    clicks  ───┘
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Final

from streams.core.events import RENDERS, TOPICS, Malformed
from streams.core.panes import Cell, Series
from streams.core.partition import Batch, Partition
from streams.core.rules import DAY
from streams.replay.files import LineFile
from streams.wire.events import decoder

CHUNK: Final = 1_000
"""Lines that are decoded and applied at a time."""

_FORGET_EVERY: Final = 32
"""Batches after which the core forgets what nothing can refer to any more."""

_END_OF_TIME: Final = 4_102_444_800_000 + 40_000 * DAY
"""Later than anything that an event can still change, in ms."""

Slicing = Callable[[int], int]
"""Pane -> the slice of event time that holds it, both by their starts in ms."""

Sums = dict[tuple[Series, int], Cell]
"""Figures by series and start of a slice in ms."""


def recount(
    state: Partition,
    files: Mapping[str, LineFile],
    slicings: Mapping[str, Slicing],
    tell: Callable[[int], None] = lambda lines: None,
    chunk: int = CHUNK,
) -> dict[str, Sums]:
    """Count the files of each topic to their ends in an empty state; a topic without a file is empty.

    Return the sums of each slicing. `tell` hears how many lines were just counted. Raises FileError.
    """
    kept = _Kept(slicings)
    for number, (batch, _) in enumerate(merged(files, chunk), 1):
        if batch.events:
            state.apply(batch)
        elif batch.topic != RENDERS:
            # What has ended holds nothing back any more. Renders do: at their end, pending stays pending.
            state.lift(batch.topic, _END_OF_TIME)
        if number % _FORGET_EVERY == 0:
            kept.forget(state)
        tell(len(batch.events))
    kept.add(state, _END_OF_TIME)
    return kept.sums


class _Kept:
    """The sums of all cells that were final, each added once, with its last figures."""

    def __init__(self, slicings: Mapping[str, Slicing]) -> None:
        self.sums: dict[str, Sums] = {name: defaultdict(Cell) for name in slicings}
        self._slicings = slicings
        self._before = 0

    def forget(self, state: Partition) -> None:
        """Close a journal record that nobody writes, so that the state forgets what it may."""
        final, rules = state.final_before(), state.rules
        # To look for final cells is to look at all of them: so only when a good part of them is final.
        if final - self._before > (rules.lateness_ms + rules.viewability_horizon_ms) // 4:
            self.add(state, final)
            self._before = final
        state.take(self._before)

    def add(self, state: Partition, before: int) -> None:
        """Add the cells of the panes before a time."""
        for touched in state.cells():
            if touched.pane < before:
                for name, start_of in self._slicings.items():
                    self.sums[name][touched.series, start_of(touched.pane)].add(touched.cell)


# --- three topics in one order ----------------------------------------------------------------------------------------


def merged(files: Mapping[str, LineFile], chunk: int = CHUNK) -> Iterator[tuple[Batch, list[bytes]]]:
    """Yield batches and their lines, always of the topic that is furthest behind in event time.

    An empty batch is the end of its topic.
    Their order decides no figure: only how much has to be held meanwhile.
    """
    return heapq.merge(*(_batches(topic, files.get(topic), chunk) for topic in TOPICS), key=_begin)


def _batches(topic: str, file: LineFile | None, chunk: int) -> Iterator[tuple[Batch, list[bytes]]]:
    decode = decoder(topic)
    for first, values in file.chunks(chunk) if file is not None else ():
        stop = first + len(values)
        batch = Batch(topic, range(first, stop), decode(values), stop)  # lines have no own time, as rule 2 wants it
        yield batch, values
    yield Batch(topic, (), (), 0), []


def _begin(piece: tuple[Batch, list[bytes]]) -> int:
    """Return the time of its first event in ms; 0 if there is none, so that nothing waits for it."""
    return next((event.ts for event in piece[0].events if not isinstance(event, Malformed)), 0)


# --- days -------------------------------------------------------------------------------------------------------------


def days_of(zone: tzinfo) -> Slicing:
    """Return what says in which day of a zone a pane lies: midnight is on a pane's boundary everywhere."""

    @lru_cache(maxsize=65_536)
    def start_of(pane: int) -> int:
        return _midnight(day_of(pane, zone), zone)

    return start_of


def day_of(ts_ms: int, zone: tzinfo) -> date:
    """Return the day that it is in a zone."""
    return datetime.fromtimestamp(ts_ms // 1000, zone).date()


def end_of(day: date, zone: tzinfo) -> int:
    """Return the end of a day in ms: 23 or 25 hours after its start where clocks change."""
    return _midnight(day + timedelta(days=1), zone)


def _midnight(day: date, zone: tzinfo) -> int:
    return int(datetime.combine(day, time(), zone).timestamp()) * 1000
