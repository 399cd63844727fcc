"""Rows found by 64-bit keys, a whole batch at a time, in parts that are forgotten whole.

    keys -> Sieve: in which parts each may be -> Part: at which position, if it is there

Law: a key that was added is found until its part is forgotten, however many parts there are and whatever they hold.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
"""Positions, and also keys: their 64 bits are read as signed numbers, which numpy takes as indexes without a copy."""

NO_POSITION: Final = -1

Accept = Callable[[Any, Any], Any]

_EMPTY: Final = 0xFFFFFFFF
_UNSIGNED: Final = 2**64 - 1
FEW: Final = 16
"""So many keys are searched faster one by one: a round of all that are left costs as much for one as for a hundred."""
_STEP_BITS: Final = 40
"""The steps through a table are made of the bits of a key above this one, where a search begins of those below."""
_SIEVE_BITS: Final = 20
"""The place in the sieve is made of those above this one: what shares it should not share the place in a table too."""
_SMALLEST_SIEVE: Final = 1 << 12
_PLACES_A_KEY: Final = 4
"""At least; a new key then seems to be in a part for one of eight to one of four."""
_PARTS: Final = 8


class Part:
    """Keys in order of their arrival, up to a capacity, and the table that finds their positions.

    Open addressing over the column of keys. The table is never more than half full.
    """

    __slots__ = ("bit", "keys", "table")

    def __init__(self, capacity: int, bit: int) -> None:
        self.bit = bit
        """What it is to the sieve."""
        self.keys = array("Q")
        self.table: NDArray[np.uint32] = np.full(2 * capacity, _EMPTY, np.uint32)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def column(self) -> Numbers:
        """The keys. Let go of it before keys are added: a column that is looked at cannot grow."""
        return np.frombuffer(self.keys, np.int64)

    def has_room(self, keys: int) -> bool:
        """Say whether so many more keys fit."""
        return 2 * (len(self.keys) + keys) <= len(self.table)

    def put(self, positions: Numbers, once: bool) -> None:
        """Let keys at some positions be found, in their order; of equal keys only the newest, if `once`."""
        table, column = self.table, self.column
        keys = column.take(positions)
        mine, slots = positions.astype(np.uint32), self._first_slots(keys)
        while len(slots):
            free = (table.take(slots) == _EMPTY).nonzero()[0]
            table[slots.take(free)] = mine.take(free)
            occupants = table.take(slots)
            same = column.take(occupants) == keys if once else occupants == mine
            older = same & (occupants < mine)
            table[slots[older]] = mine[older]
            slots = np.where(same, slots, self._next_slots(slots, keys))
            left = (~same | older).nonzero()[0]
            slots, mine, keys = slots.take(left), mine.take(left), keys.take(left)

    def search(self, keys: Numbers, accept: Accept | None = None) -> Numbers:
        """Return a position of each key that was put there, one that is accepted; NO_POSITION where there is none.

        `accept` is given positions, and the indexes of their keys; or one of each.
        """
        found = np.full(len(keys), NO_POSITION, np.int64)
        if not len(self):
            return found
        table, column = self.table, self.column
        left, slots = np.arange(len(keys)), self._first_slots(keys)
        while len(left) > FEW:
            occupants = table.take(slots)
            taken = occupants != _EMPTY
            hit = taken & (column.take(occupants, mode="clip") == keys)
            if accept is not None:
                hit[hit] = accept(occupants[hit], left[hit])
            found[left[hit]] = occupants[hit]
            more = (taken & ~hit).nonzero()[0]
            left, keys = left.take(more), keys.take(more)
            slots = self._next_slots(slots.take(more), keys)
        for at, key, slot in zip(left.tolist(), keys.tolist(), slots.tolist(), strict=True):
            found[at] = self._search_one(key, slot, at, accept)
        return found

    def _search_one(self, key: int, slot: int, at: int, accept: Accept | None) -> int:
        step, unsigned, mask = key >> _STEP_BITS | 1, key & _UNSIGNED, len(self.table) - 1
        while (position := self.table.item(slot)) != _EMPTY:
            if self.keys[position] == unsigned and (accept is None or accept(position, at)):
                return position
            slot = (slot + step) & mask
        return NO_POSITION

    def _first_slots(self, keys: Numbers) -> Any:
        return keys & (len(self.table) - 1)

    def _next_slots(self, slots: Numbers, keys: Numbers) -> Any:
        """Return where to look next: a step that depends on the key, and is odd, so that it comes by every slot."""
        return (slots + (keys >> _STEP_BITS | 1)) & (len(self.table) - 1)


def capacity(wanted: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << max(wanted - 1, 0).bit_length()


AnyPart = TypeVar("AnyPart", bound=Part)


class Sieve:
    """Says by one look in which parts a key may be: nearly always in none, or in the one that has it.

    A byte for each place that a key can have, and in it a bit for each part; parts beyond the eighth share one.
    Without it, all parts would be searched for every key, and each search waits for memory.
    """

    __slots__ = ("_bytes", "_keys", "_opened")

    def __init__(self) -> None:
        self._bytes: NDArray[np.uint8] = np.zeros(_SMALLEST_SIEVE, np.uint8)
        self._keys = 0
        self._opened = 0

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return self._bytes.nbytes

    def open(self) -> int:
        """Return the bit of a new part."""
        self._opened += 1
        return 1 << self._opened % _PARTS

    def add(self, keys: Numbers, parts: Sequence[Part]) -> None:
        """Take note of keys that were added to the newest of the parts."""
        self._keys += len(keys)
        if _PLACES_A_KEY * self._keys > len(self._bytes):
            self.build(parts)
        else:
            self._note(parts[-1], keys)

    def build(self, parts: Sequence[Part]) -> None:
        """Take note of all keys of all parts anew, with places enough for them."""
        self._keys = sum(map(len, parts))
        self._bytes = np.zeros(max(_SMALLEST_SIEVE, capacity(_PLACES_A_KEY * self._keys)), np.uint8)
        for part in parts:
            self._note(part, part.column)

    def _note(self, part: Part, keys: Numbers) -> None:
        self._bytes[self._places(keys)] |= np.uint8(part.bit)

    def parts(self, parts: Iterable[AnyPart], keys: Numbers) -> Iterator[tuple[AnyPart, Numbers]]:
        """Yield the parts that may have some of the keys, in the order given, and the indexes of those keys."""
        maybe = self._bytes.take(self._places(keys))
        for part in parts:
            here = (maybe & part.bit).nonzero()[0]
            if len(here):
                yield part, here

    def close(self, part: Part, others: Sequence[Part]) -> None:
        """Forget a part, and become smaller where so many were forgotten that it will not soon have to grow again."""
        self._keys -= len(part)
        if all(other.bit != part.bit for other in others):
            self._bytes &= np.uint8(~part.bit & 0xFF)
        while len(self._bytes) > max(_SMALLEST_SIEVE, 4 * _PLACES_A_KEY * self._keys):
            half = len(self._bytes) // 2
            self._bytes = self._bytes[:half] | self._bytes[half:]

    def _places(self, keys: Numbers) -> Any:
        return (keys >> _SIEVE_BITS) & (len(self._bytes) - 1)
