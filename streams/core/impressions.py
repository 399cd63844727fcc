"""The remembered impressions of one partition: every render that later events may still refer to.

Law: a row is never changed but for its bits, and keeps its number; rows are only forgotten from the oldest on.

    oldest                                                 newest
    [ generation: columns, table ] [ generation ... ] [ generation ]

A row is found by its key in the table of its generation (lookup.py), for a whole batch at a time. Where nothing can
refer to any row of a generation any more, it is dropped whole.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.core.lookup import NO_POSITION, Numbers, Part, Sieve, capacity
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


def credit(says: int) -> int:
    """Return what a counted view that says this is worth, as bits of a row."""
    return (MEASURABLE if says & SAID_MEASURABLE else 0) | (VIEWABLE if says & SAID_VIEWABLE else 0)


CREDITS: Final = tuple(map(credit, range(SAID + 1)))
"""By what a view says, as bits of a row, what it is worth."""

NO_ROW: Final = -1

SMALLEST: Final = 1 << 16
"""Rows of the smallest generation."""

FEW_KEYS: Final = 64
"""So many keys are faster looked for one by one: those that are left lie in many generations, or in none."""
_AT_ONCE: Final = 4_096
"""Rows that are looked at together when old ones are forgotten."""


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

    def __len__(self) -> int:
        return len(self.born)

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
            (key, ts, cost, which, born, next(places) if born & ANCHOR else 0) for key, ts, cost, which, born in columns
        )

    def anchors(self, since: int) -> tuple[Numbers, Numbers, int]:
        """Return the places and times of the rows that are anchors, since a time, and the newest of all; -1 if none."""
        ts = np.frombuffer(self.ts, np.int64)[(np.frombuffer(self.born, np.uint8) & ANCHOR) != 0]
        recent = ts >= since
        return np.frombuffer(self.places, np.int64)[recent], ts[recent], int(ts.max(initial=-1))


class Generation(Part):
    """Consecutive rows as columns, up to a capacity; a row stands at its number less `start`."""

    __slots__ = ("_numbers", "bits", "born", "clicked", "cost", "groups", "older", "start", "ts", "which")

    def __init__(self, start: int, capacity: int, bit: int) -> None:
        super().__init__(capacity, bit)
        self.start = start
        self.ts = array("q")
        self.cost = array("q")
        self.born = bytearray()
        self.bits = bytearray()
        self.which = array("I")
        """Index into `groups`: whose figures the row goes to."""
        self.groups: list[Ledgers] = []
        self._numbers: dict[Ledgers, int] = {}
        self.older: dict[int, int] = {}
        """Row -> the row before it of the same identity, for the few that have one."""
        self.clicked: dict[int, set[int]] = {}
        """Row -> the keys of its clicks."""

    @property
    def end(self) -> int:
        """Number after its newest row."""
        return self.start + len(self.keys)

    @property
    def times(self) -> Numbers:
        """When each render began. Let go of it before rows are added: columns that are looked at cannot grow."""
        return np.frombuffer(self.ts, np.int64)

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, with what its columns and tables have in reserve."""
        columns = (self.keys, self.ts, self.cost, self.born, self.bits, self.which, self.older, self.clicked)
        return self.table.nbytes + sum(column.__sizeof__() for column in columns)

    def numbers_of(self, ledgers: Sequence[Ledgers]) -> NDArray[np.uint32]:
        """Return the index of each ledgers in `groups`."""
        known = self._numbers
        return np.array([known[one] if one in known else self._number_of(one) for one in ledgers], np.uint32)

    def _number_of(self, ledgers: Ledgers) -> int:
        number = self._numbers[ledgers] = len(self.groups)
        self.groups.append(ledgers)
        return number


class Impressions:
    """Rows in order of arrival, found by the 64-bit key of (source, impression_id)."""

    __slots__ = ("_sieve", "end", "first", "generations")

    def __init__(self) -> None:
        self.first = 0
        """Number of the oldest remembered row."""
        self.end = 0
        """Number that the next row will get."""
        self._begin()

    def _begin(self) -> None:
        self._sieve = Sieve()
        self.generations = [Generation(self.end, SMALLEST, self._sieve.open())]

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def size(self) -> int:
        """Bytes that the rows and all that finds them take in memory."""
        return self._sieve.size + sum(generation.size for generation in self.generations)

    def start_at(self, row: int) -> None:
        """Give the first row of an empty memory this number."""
        self.first = self.end = row
        self._begin()

    # --- finding -----------------------------------------------------------------------------------------------------

    def find(self, keys: Numbers) -> Numbers:
        """Return for each key the newest row of that identity, which may be forgotten; NO_ROW where there is none."""
        rows = np.full(len(keys), NO_ROW, np.int64)
        left, bits = self._sieve.look(keys)
        older = [*self.generations]
        while len(left) > FEW_KEYS and older:
            generation = older.pop()
            here = (bits & generation.bit).nonzero()[0]
            found = generation.search(keys.take(left.take(here)))
            known = found != NO_POSITION
            rows[left.take(here[known])] = found[known] + generation.start
            bits[here[known]] = 0
            still = bits.nonzero()[0]
            left, bits = left.take(still), bits.take(still)
        older.reverse()
        for at, key, where in zip(left.tolist(), keys.take(left).tolist(), bits.tolist(), strict=True):
            rows[at] = self._find_one(key, (one for one in older if one.bit & where))
        return rows

    def _find_one(self, key: int, generations: Iterable[Generation]) -> int:
        for generation in generations:
            position = generation.position_of(key)
            if position != NO_POSITION:
                return generation.start + position
        return NO_ROW

    def newest(self, key: int) -> int:
        """Return the newest row of one identity, NO_ROW without one."""
        row = int(self.find(np.array([key], np.uint64).view(np.int64))[0])
        return row if row >= self.first else NO_ROW

    def with_older(self, row: int) -> list[int]:
        """Return a row and those before it of the same identity, newest first: nearly always one."""
        rows = []
        while row >= self.first:
            rows.append(row)
            row = self.at(row)[0].older.get(row, NO_ROW)
        return rows

    def ts_of(self, row: int) -> int:
        """Return when a render began, in ms."""
        generation, position = self.at(row)
        return generation.ts[position]

    def at(self, row: int) -> tuple[Generation, int]:
        """Return the generation of a row and where it stands there."""
        generation = self.generations[-1]
        if row < generation.start:
            generation = next(one for one in reversed(self.generations) if row >= one.start)
        return generation, row - generation.start

    def parts(self, rows: Numbers, chosen: NDArray[np.bool_] | None = None) -> Iterator[tuple[Generation, Numbers]]:
        """Yield each generation and the indexes of those of some rows, or of the chosen ones, that lie there."""
        left = ((rows >= self.first) if chosen is None else (rows >= self.first) & chosen).nonzero()[0]
        for generation in reversed(self.generations):
            if not len(left):
                break
            here = rows.take(left) >= generation.start
            indexes, left = left[here], left[~here]
            if len(indexes):
                yield generation, indexes

    # --- remembering -------------------------------------------------------------------------------------------------

    def _make_room(self, rows: int) -> Generation:
        """Return the generation for so many more rows."""
        if not self.generations[-1].has_room(rows):
            wanted = max(SMALLEST, len(self) // 4, rows)
            self.generations.append(Generation(self.end, capacity(wanted), self._sieve.open()))
        return self.generations[-1]

    def append(
        self, keys: Numbers, ts: Numbers, costs: Sequence[int], ledgers: Sequence[Ledgers], born: bytearray
    ) -> int:
        """Remember renders that are no duplicates, as columns; return the row of the first of them."""
        generation, first = self._make_room(len(keys)), self.end
        generation.keys.frombytes(keys.tobytes())
        generation.ts.frombytes(ts.tobytes())
        generation.cost.extend(costs)
        generation.born += born
        generation.bits += bytes(len(keys))
        generation.which.frombytes(generation.numbers_of(ledgers).tobytes())
        self.end += len(keys)
        generation.put(np.arange(first - generation.start, self.end - generation.start), once=True)
        self._sieve.add(keys, self.generations)
        return first

    def link(self, row: int, older: int) -> None:
        """Say which row is the one before it of the same identity."""
        if older >= self.first:
            self.at(row)[0].older[row] = older

    def extend(self, rows: Rows, groups: Sequence[Ledgers]) -> None:
        """Remember the rows of a journal record, to be found after the next `index`.

        `groups` are the ledgers of each of its series.
        """
        generation = self._make_room(len(rows))
        numbers = generation.numbers_of(groups)
        generation.keys.frombytes(rows.keys)
        generation.ts.frombytes(rows.ts)
        generation.cost.frombytes(rows.cost)
        generation.born += rows.born
        generation.bits += bytes(len(rows))
        generation.which.frombytes(numbers.take(np.frombuffer(rows.which, np.uint32)).tobytes())
        self.end += len(rows)

    def index(self) -> None:
        """Find every row by its key again, after rows were added without that."""
        for generation in self.generations:
            generation.put(np.arange(len(generation)), once=True)
        self._sieve.build(self.generations)
        keys = np.concatenate([generation.column for generation in self.generations])
        keys.sort()
        repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
        newest: dict[int, int] = {}
        for generation in self.generations:
            column = generation.column
            for position in np.isin(column, repeated).nonzero()[0].tolist() if len(repeated) else ():
                key, row = int(column[position]), generation.start + position
                if newest.get(key, NO_ROW) >= self.first:
                    generation.older[row] = newest[key]
                newest[key] = row

    def forget_before(self, ts_ms: int) -> None:
        """Forget rows from the oldest on, up to the first that is not before a time."""
        while self.first < self.end:
            generation, position = self.at(self.first)
            if generation.ts[position] >= ts_ms:
                break
            past = generation.times[position : position + _AT_ONCE] < ts_ms
            self.first += len(past) if past.all() else int(past.argmin())
        while len(self.generations) > 1 and self.generations[0].end <= self.first:
            forgotten, *self.generations = self.generations
            self._sieve.close(forgotten, self.generations)

    # --- telling -----------------------------------------------------------------------------------------------------

    def rows_from(self, row: int, anchors: bytes) -> Rows:
        """Return the rows from this number to the newest as columns, with the places of those that are anchors."""
        parts = [(one, max(0, row - one.start)) for one in self.generations if one.end > row]
        which: dict[Ledgers, int] = {}
        indexes = b""
        for one, start in parts:
            numbers, places = np.unique(np.frombuffer(one.which, np.uint32)[start:], return_inverse=True)
            mine = [which.setdefault(one.groups[number], len(which)) for number in numbers.tolist()]
            indexes += np.array(mine, np.uint32).take(places).tobytes()
        segmented = any(len(ledgers) > 1 for ledgers in which)
        return Rows(
            row,
            b"".join(one.keys[start:].tobytes() for one, start in parts),
            b"".join(one.ts[start:].tobytes() for one, start in parts),
            b"".join(one.cost[start:].tobytes() for one, start in parts),
            indexes,
            b"".join(one.born[start:] for one, start in parts),
            [ledgers[0].series if ledgers else NOBODY for ledgers in which],
            anchors,
            [[segment.series for segment in ledgers[1:]] for ledgers in which] if segmented else [],
        )
