"""The remembered impressions of one partition: every render that later events may still refer to.

Law: a row is never changed but for its bits, and keeps its number; rows are only forgotten from the oldest on.
"""

from array import array
from collections.abc import Iterator
from typing import Final

import msgspec

from streams.core.panes import NOBODY, Ledgers, Series

# What a row is born with: what became of the render, and all that a later decision wants to know of it.
COUNTED: Final = 1
INVALID: Final = 2
"""Invalid traffic, so not counted."""
OVER_CAP: Final = 2
"""Of a counted one, the same bit says that its viewer had seen the campaign as often as the cap allows."""
DECLARED: Final = 4
"""The sender declares a refresh."""
STANDARD: Final = 8 | 16
"""Eight times the number of the standard that its viewability is judged by (README, events)."""
ANCHOR: Final = 32
"""A place was noted with it, so that later renders of that place can be refreshes."""
PER_VIEWABLE: Final = 64
PER_CLICK: Final = 128
"""Its cost is for becoming viewable, or for each counted click; without both, for being served."""

# The bits of a row, none at birth: what views have said of it, and what it was credited with.
SAID_UNDETERMINED: Final = 2
SAID_MEASURABLE: Final = 4
SAID_VIEWABLE: Final = 8
MEASURABLE: Final = 16
VIEWABLE: Final = 32
SAID: Final = SAID_UNDETERMINED | SAID_MEASURABLE | SAID_VIEWABLE


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive rows as columns: `series` holds each distinct series once, `which` an index into it a row.

    What the rows were born with is here; what came later is told by the marks of a journal record. `places` has one
    for each row that is an anchor. `segments` has those of each of `series`, or nothing at all.
    """

    first: int
    keys: bytes
    ts: bytes
    cost: bytes
    which: bytes
    born: bytes
    series: list[Series]
    places: bytes = b""
    segments: list[list[Series]] = []

    def __iter__(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Yield (key, ts in ms, cost in nano-units, index of series, what it is born with, place or 0) of each row."""
        places = iter(array("Q", self.places))
        columns = zip(
            array("Q", self.keys),
            array("q", self.ts),
            array("q", self.cost),
            array("I", self.which),
            self.born,
            strict=True,
        )
        return (
            (key, ts, cost, which, born, next(places) if born & ANCHOR else 0)
            for key, ts, cost, which, born in columns
        )


class Impressions:
    """Rows in order of arrival, found by the 64-bit key of (source, impression_id)."""

    __slots__ = ("base", "bits", "born", "cost", "end", "first", "index", "keys", "ledgers", "older", "ts")

    def __init__(self) -> None:
        self.first = 0
        """Number of the oldest remembered row."""
        self.end = 0
        """Number that the next row will get."""
        self.base = 0
        """Number of the row at the front of the columns: a row stands at its number less this."""
        self.index: dict[int, int] = {}
        """Key -> the newest row of that identity."""
        self.older: dict[int, int] = {}
        """Row -> the row before it of the same identity, for the few that have one."""
        self.keys = array("Q")
        self.ts = array("q")
        self.cost = array("q")
        self.born = bytearray()
        self.bits = bytearray()
        self.ledgers: list[Ledgers] = []

    def __len__(self) -> int:
        return self.end - self.first

    def start_at(self, row: int) -> None:
        """Give the first row of an empty memory this number."""
        self.first = self.end = self.base = row

    def append(self, key: int, ts_ms: int, cost: int, ledgers: Ledgers, born: int) -> None:
        """Remember a render that is no duplicate."""
        row = self.end
        if key in self.index:
            self.older[row] = self.index[key]
        self.index[key] = row
        self.keys.append(key)
        self.ts.append(ts_ms)
        self.cost.append(cost)
        self.born.append(born)
        self.bits.append(0)
        self.ledgers.append(ledgers)
        self.end = row + 1

    def rows_of(self, key: int) -> list[int]:
        """Return the rows of an identity, newest first: nearly always none or one."""
        row = self.index.get(key)
        rows = []
        while row is not None and row >= self.first:
            rows.append(row)
            row = self.older.get(row)
        return rows

    def forget_before(self, ts_ms: int) -> range:
        """Forget rows from the oldest on, up to the first that is not before a time; return their numbers."""
        oldest, base, ts = self.first, self.base, self.ts
        row = oldest
        while row < self.end and ts[row - base] < ts_ms:
            key = self.keys[row - base]
            if self.index.get(key) == row:
                del self.index[key]
            self.older.pop(row, None)
            row += 1
        self.first = row
        if (row - base) * 4 > len(ts):
            self._compact()
        return range(oldest, row)

    def rows_from(self, row: int, places: bytes) -> Rows:
        """Return the rows from this number to the newest as columns, with the places of those that are anchors."""
        start = row - self.base
        which: dict[Ledgers, int] = {}
        indexes = array("I", [which.setdefault(ledgers, len(which)) for ledgers in self.ledgers[start:]])
        segmented = any(len(ledgers) > 1 for ledgers in which)
        return Rows(
            row,
            self.keys[start:].tobytes(),
            self.ts[start:].tobytes(),
            self.cost[start:].tobytes(),
            indexes.tobytes(),
            bytes(self.born[start:]),
            [ledgers[0].series if ledgers else NOBODY for ledgers in which],
            places,
            [[segment.series for segment in ledgers[1:]] for ledgers in which] if segmented else [],
        )

    def _compact(self) -> None:
        forgotten = self.first - self.base
        for column in (self.keys, self.ts, self.cost, self.born, self.bits, self.ledgers):
            del column[:forgotten]
        self.base = self.first
