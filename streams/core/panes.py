"""Slices of event time: panes of 10 s, rolling windows of panes, tumbling windows of a minute.

Law: a pane is [start, start + 10 s), aligned to the epoch, named by its start in ms; a window is a row of panes.
"""

from collections.abc import Collection, Mapping
from copy import copy
from functools import lru_cache
from operator import itemgetter
from typing import Final

import msgspec

PANE_MS: Final = 10_000
TUMBLING_MS: Final = 60_000
"""Length of the windows on the topic `campaign-windows`."""


def pane_of(ts_ms: int) -> int:
    """Return the start of the pane that holds a timestamp."""
    return ts_ms - ts_ms % PANE_MS


def minute_of(ts_ms: int) -> int:
    """Return the start of the tumbling window that holds a timestamp."""
    return ts_ms - ts_ms % TUMBLING_MS


def held_between(held: Collection[int], start: int, stop: int) -> list[int]:
    """Return the pane starts in [start, stop) that a collection holds, by whichever way is shorter."""
    if (stop - start) // PANE_MS > len(held):
        return [pane for pane in held if start <= pane < stop]
    return [pane for pane in range(start, stop, PANE_MS) if pane in held]


class Cell(msgspec.Struct, array_like=True, gc=False):
    """The figures of one series in one slice of event time. Impressions and clicks are counts, spend is nano-units."""

    served: int = 0
    measurable: int = 0
    viewable: int = 0
    clicks: int = 0
    spend: int = 0
    gross: int = 0
    revision: int = 0
    """How many counted events (renders, views, clicks) this slice holds; it grows with every change."""
    declared: int = 0
    """Served impressions that the sender declares to be refreshes."""
    over_cap: int = 0
    """Served impressions beyond their campaign's frequency cap."""

    def add(self, other: "Cell") -> None:
        """Add another cell's figures."""
        self.served += other.served
        self.measurable += other.measurable
        self.viewable += other.viewable
        self.clicks += other.clicks
        self.spend += other.spend
        self.gross += other.gross
        self.revision += other.revision
        if other.declared or other.over_cap:
            self.declared += other.declared
            self.over_cap += other.over_cap

    def plus(self, other: "Cell") -> "Cell":
        """Return this cell and another one together. With nothing it is the one itself, so change neither."""
        if self is NOTHING:
            return other
        if other is NOTHING:
            return self
        return Cell(
            self.served + other.served,
            self.measurable + other.measurable,
            self.viewable + other.viewable,
            self.clicks + other.clicks,
            self.spend + other.spend,
            self.gross + other.gross,
            self.revision + other.revision,
            self.declared + other.declared,
            self.over_cap + other.over_cap,
        )

    def less(self, other: "Cell") -> "Cell":
        """Return what this cell has more than another one."""
        if other is self:
            return NOTHING
        if other is NOTHING:
            return self
        return Cell(
            self.served - other.served,
            self.measurable - other.measurable,
            self.viewable - other.viewable,
            self.clicks - other.clicks,
            self.spend - other.spend,
            self.gross - other.gross,
            self.revision - other.revision,
            self.declared - other.declared,
            self.over_cap - other.over_cap,
        )


NOTHING: Final = Cell()
"""What an empty sum is; never changed."""


def add_at(cells: dict[int, Cell], pane: int, difference: Cell) -> None:
    """Add a difference to the cell of a pane, which is changed; it is a new one if there was none."""
    cell = cells.get(pane)
    if cell is None:
        cells[pane] = copy(difference)
    else:
        cell.add(difference)


def sum_between(cells: Mapping[int, Cell], start: int, stop: int) -> Cell:
    """Return the sum of the cells of the panes in [start, stop); of a single one that is the one itself."""
    held = [cells[pane] for pane in held_between(cells, start, stop)]
    if len(held) <= 1:
        return held[0] if held else NOTHING
    total = Cell()
    for cell in held:
        total.add(cell)
    return total


class Series(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Whose figures a cell holds: what one source counted of one campaign in one currency.

    With a dimension, only of those impressions that have this value there: a segment.
    """

    campaign_id: str
    currency: str
    source: str
    dimension: str = ""
    value: str = ""

    def shared(self) -> "Series":
        """Return an equal one that shares texts with others: of very many campaigns, they add up."""
        return Series(
            self.campaign_id, _shared(self.currency), _shared(self.source), _shared(self.dimension), self.value
        )


@lru_cache(maxsize=4_096)
def _shared(text: str) -> str:
    return text


NOBODY: Final = Series("", "", "")
"""Stands for the series of impressions that are in nobody's figures."""


_NOTHING_TOUCHED: Final[set[int]] = set()
_NO_OTHERS: Final[dict[int, Cell]] = {}
"""Of all ledgers that nothing changes at the moment, and of those with one pane: never changed. An empty one for each
would be the largest part of it."""
_NO_PANE: Final = -1


class Ledger:
    """The cells of one series by pane, and which of them changed since they were last taken."""

    __slots__ = ("_cell", "_changed", "_others", "_pane", "series", "touched")

    def __init__(self, series: Series, changed: "list[Ledger]") -> None:
        self.series = series
        self._pane, self._cell = _NO_PANE, NOTHING
        """The first pane that it has,"""
        self._others = _NO_OTHERS
        """and those beside it: of very many campaigns most have none."""
        self.touched: set[int] = _NOTHING_TOUCHED
        self._changed = changed
        """Where it puts itself when something of it is touched."""

    def at(self, pane: int) -> Cell:
        """Return the cell of a pane. Raises KeyError if it has none."""
        return self._cell if pane == self._pane else self._others[pane]

    def cells(self) -> list[tuple[int, Cell]]:
        """Return all panes in order of their time, and their cells."""
        first = [] if self._pane == _NO_PANE else [(self._pane, self._cell)]
        return sorted([*first, *self._others.items()], key=itemgetter(0))

    def touch(self, pane: int) -> Cell:
        """Return the cell of a pane in order to change it."""
        self._note(pane)
        return self._get(pane) or self._put(pane, Cell())

    def add(self, pane: int, difference: Cell) -> None:
        """Add a difference to the cell of a pane."""
        self._note(pane)
        cell = self._get(pane)
        if cell is None:
            self._put(pane, copy(difference))
        else:
            cell.add(difference)

    def _get(self, pane: int) -> Cell | None:
        return self._cell if pane == self._pane else self._others.get(pane)

    def _put(self, pane: int, cell: Cell) -> Cell:
        if self._pane == _NO_PANE and not self._others:
            self._pane, self._cell = pane, cell
        else:
            self._others = self._others or {}
            self._others[pane] = cell
        return cell

    def _note(self, pane: int) -> None:
        if not self.touched:
            self.touched = set()
            self._changed.append(self)
        self.touched.add(pane)

    def close(self) -> None:
        """Begin to note changes anew."""
        self.touched = _NOTHING_TOUCHED

    def forget(self, start: int, stop: int) -> None:
        """Forget the cells of the panes in [start, stop)."""
        if start <= self._pane < stop:
            self._pane, self._cell = _NO_PANE, NOTHING
        for pane in held_between(self._others, start, stop):
            del self._others[pane]

    def is_empty(self) -> bool:
        """Say whether it has no pane."""
        return self._pane == _NO_PANE and not self._others


class Touched(msgspec.Struct, frozen=True, gc=False):
    """A cell that changed: all of its figures, not the change."""

    series: Series
    pane: int
    cell: Cell


Ledgers = tuple[Ledger, ...]
"""Where one impression is counted: first the ledger of its campaign, then those of its segments; or nowhere."""


class Rolling:
    """Rolling windows over the panes of one series: the pane of stream time T and the panes before it.

    `sums[i]` is always the sum of the panes in window i, kept by difference so that reading it costs nothing.
    Panes ahead of T are held, but lie in no window yet. No cell is ever changed: of the many series that have but one
    pane, that one is all of their sums.
    """

    __slots__ = ("lengths", "longest", "now", "panes", "sums")

    def __init__(self, lengths_ms: tuple[int, ...]) -> None:
        self.lengths = lengths_ms
        self.longest = max(lengths_ms)
        self.panes: dict[int, Cell] = {}
        self.now = -PANE_MS
        self.sums = [NOTHING for _ in lengths_ms]

    def add(self, pane: int, difference: Cell) -> None:
        """Add a difference to a pane, and to each window that holds the pane now."""
        if pane <= self.now - self.longest:
            return
        self.panes[pane] = self.panes.get(pane, NOTHING).plus(difference)
        if pane <= self.now:
            for number, length in enumerate(self.lengths):
                if pane > self.now - length:
                    self.sums[number] = self.sums[number].plus(difference)

    def advance(self, stream_time_ms: int) -> None:
        """Move the windows on to the pane of a stream time, and forget panes that have left the longest one."""
        if stream_time_ms < self.now + PANE_MS:
            return
        before, now = self.now, pane_of(stream_time_ms)
        if now == before + PANE_MS:
            self._step(now)
        else:
            self._jump(before + PANE_MS, now + PANE_MS)
        self.now = now

    def _step(self, now: int) -> None:
        """Move the windows on by one pane: most series have nothing that comes or goes then."""
        entering = self.panes.get(now)
        for number, length in enumerate(self.lengths):
            leaving = self.panes.get(now - length)
            if leaving is not None:
                self.sums[number] = self.sums[number].less(leaving)
            if entering is not None:
                self.sums[number] = self.sums[number].plus(entering)
        self.panes.pop(now - self.longest, None)

    def _jump(self, entered: int, left: int) -> None:
        """Move the windows on by the panes in [entered, left)."""
        for number, length in enumerate(self.lengths):
            kept = self.sums[number].less(sum_between(self.panes, entered - length, min(entered, left - length)))
            self.sums[number] = kept.plus(sum_between(self.panes, max(entered, left - length), left))
        for pane in held_between(self.panes, entered - self.longest, left - self.longest):
            del self.panes[pane]

    def at(self, stream_time_ms: int) -> list[Cell] | None:
        """Return the sum of each window as it is at a stream time, or would be if that came without further events.

        None if the newest pane has left the longest window: there is nothing to show then.
        """
        if stream_time_ms < self.now + PANE_MS:  # what has left the longest window is not among the panes any more
            return self.sums if self.panes else None
        now = pane_of(stream_time_ms)
        if not any(pane > now - self.longest for pane in self.panes):
            return None
        return [sum_between(self.panes, now + PANE_MS - length, now + PANE_MS) for length in self.lengths]

    def slices(self, stream_time_ms: int, length_ms: int, number: int) -> list[Cell]:
        """Return the sums of so many slices of a length, aligned to the epoch, oldest first.

        The last one holds the pane of the stream time, and is still filling. `length_ms` is a multiple of a pane.
        """
        now = pane_of(stream_time_ms)
        start = now - now % length_ms - (number - 1) * length_ms
        sums = [Cell() for _ in range(number)]
        for pane in held_between(self.panes, start, now + PANE_MS):
            sums[(pane - start) // length_ms].add(self.panes[pane])
        return sums
