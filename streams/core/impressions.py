"""The remembered impressions of one partition: every render that later events may still refer to.

Law: a row is never changed but for its bits, and keeps its number; rows are only forgotten from the oldest on.
"""

from array import array
from collections.abc import Iterator
from typing import Final

import msgspec

from streams.core.panes import Ledger, Series

# Bits of a row: what became of the render, what views have said of it, what it was credited with.
COUNTED: Final = 1
SAID_UNDETERMINED: Final = 2
SAID_MEASURABLE: Final = 4
SAID_VIEWABLE: Final = 8
MEASURABLE: Final = 16
VIEWABLE: Final = 32
SAID: Final = SAID_UNDETERMINED | SAID_MEASURABLE | SAID_VIEWABLE
_AT_BIRTH: Final = bytes(bits & COUNTED for bits in range(256))


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive rows as columns: `series` holds each distinct series once, `which` an index into it a row.

    `bits` are those that the rows were born with: what came later is told by the marks of a journal record.
    """

    first: int
    keys: bytes
    ts: bytes
    cost: bytes
    which: bytes
    bits: bytes
    series: list[Series]

    def __iter__(self) -> Iterator[tuple[int, int, int, Series, int]]:
        """Yield (key, ts in ms, cost in nano-units, series, bits) of each row."""
        series = self.series
        columns = zip(
            array("Q", self.keys),
            array("q", self.ts),
            array("q", self.cost),
            array("I", self.which),
            self.bits,
            strict=True,
        )
        return ((key, ts, cost, series[which], bits) for key, ts, cost, which, bits in columns)


class Impressions:
    """Rows in order of arrival, found by the 64-bit key of (source, impression_id)."""

    __slots__ = ("base", "bits", "cost", "end", "first", "index", "keys", "ledgers", "older", "ts")

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
        self.bits = bytearray()
        self.ledgers: list[Ledger] = []

    def __len__(self) -> int:
        return self.end - self.first

    def start_at(self, row: int) -> None:
        """Give the first row of an empty memory this number."""
        self.first = self.end = self.base = row

    def append(self, key: int, ts_ms: int, cost: int, ledger: Ledger, bits: int) -> None:
        """Remember a render that is no duplicate."""
        row = self.end
        if key in self.index:
            self.older[row] = self.index[key]
        self.index[key] = row
        self.keys.append(key)
        self.ts.append(ts_ms)
        self.cost.append(cost)
        self.bits.append(bits)
        self.ledgers.append(ledger)
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

    def rows_from(self, row: int) -> Rows:
        """Return the rows from this number to the newest as columns."""
        start = row - self.base
        which: dict[Ledger, int] = {}
        indexes = array("I", [which.setdefault(ledger, len(which)) for ledger in self.ledgers[start:]])
        return Rows(
            row,
            self.keys[start:].tobytes(),
            self.ts[start:].tobytes(),
            self.cost[start:].tobytes(),
            indexes.tobytes(),
            bytes(self.bits[start:].translate(_AT_BIRTH)),
            [ledger.series for ledger in which],
        )

    def _compact(self) -> None:
        forgotten = self.first - self.base
        for column in (self.keys, self.ts, self.cost, self.bits, self.ledgers):
            del column[:forgotten]
        self.base = self.first
