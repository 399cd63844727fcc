"""Views and clicks that wait for a render, and when each can wait no longer."""

import heapq

import msgspec

from streams.core.panes import PANE_MS, pane_of


class Waiting(msgspec.Struct, array_like=True, gc=False):
    """A view or click whose render has not come yet, with all that its decision will need."""

    topic: str
    offset: int
    key: int
    ts: int
    says: int
    """What it says, as bits of a row; a raw signal, a byte for each standard that its render may have."""
    click: int
    """64-bit key of the click's id, 0 if it has none; for a view 0 as well."""
    seq: int
    """The journal record that first told of it."""


class DueDates:
    """What waits, by the pane of its time, so that what can wait no longer is found without a search."""

    def __init__(self) -> None:
        self._panes: dict[int, dict[tuple[str, int], Waiting]] = {}
        self._order: list[int] = []

    def add(self, waiting: Waiting) -> None:
        """Take note of what waits."""
        pane = pane_of(waiting.ts)
        if pane not in self._panes:
            self._panes[pane] = {}
            heapq.heappush(self._order, pane)
        self._panes[pane][waiting.topic, waiting.offset] = waiting

    def remove(self, waiting: Waiting) -> None:
        """Forget what waits no longer."""
        self._panes.get(pane_of(waiting.ts), {}).pop((waiting.topic, waiting.offset), None)

    def before(self, ts_ms: int) -> list[Waiting]:
        """Return what has an earlier time; panes that are empty and past are dropped."""
        found: list[Waiting] = []
        while self._order and self._order[0] < ts_ms:
            held = self._panes[self._order[0]]
            found += [waiting for waiting in held.values() if waiting.ts < ts_ms]
            if self._order[0] + PANE_MS > ts_ms:
                break
            del self._panes[heapq.heappop(self._order)]
        return found
