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
_PLACES_A_KEY: Final = 3
"""At least, and 2.4 while it grows. A new key then comes to a place with others for one of six to one of three, and its
tag tells it from them for three of four of those. With four an impression took more than 64 bytes while it grows."""
_PARTS: Final = 8
_BITS, _TAG = np.uint16(0x00FF), np.uint16(0xFF00)
"""Of a word: in which parts there are keys, and what they have in common."""
_MIXED: Final = np.uint16(0)
_TAG_BITS: Final = 56
"""A tag is made of those above this one."""
_AT_ONCE: Final = 1 << 14
"""So many keys, and what is made of them, fit into a processor's cache."""
SMALL: Final = 1 << 16
"""Of so many keys a sieve is made anew in a millisecond or two, and that of more becomes larger in steps:"""
_NOTED_A_KEY: Final = 4
"""so many keys are noted anew for each that is added, which takes a quarter of the way to the next time."""


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
        while len(slots) > FEW:
            free = (table.take(slots) == _EMPTY).nonzero()[0]
            table[slots.take(free)] = mine.take(free)
            occupants = table.take(slots)
            same = column.take(occupants) == keys if once else occupants == mine
            older = same & (occupants < mine)
            table[slots[older]] = mine[older]
            slots = np.where(same, slots, self._next_slots(slots, keys))
            left = (~same | older).nonzero()[0]
            slots, mine, keys = slots.take(left), mine.take(left), keys.take(left)
        for position, key, slot in zip(mine.tolist(), keys.tolist(), slots.tolist(), strict=True):
            self._put_one(position, key, slot, once)

    def _put_one(self, position: int, key: int, slot: int, once: bool) -> None:
        step, unsigned, mask = key >> _STEP_BITS | 1, key & _UNSIGNED, len(self.table) - 1
        while (occupant := self.table.item(slot)) != _EMPTY:
            if once and self.keys[occupant] == unsigned:
                position = max(position, occupant)
                break
            slot = (slot + step) & mask
        self.table[slot] = position

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

    def position_of(self, key: int) -> int:
        """Return a position of one key that was put there; NO_POSITION if there is none."""
        return self._search_one(key, key & (len(self.table) - 1), 0, None)

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

    A word of 16 bits for each place that a key can have. Its low byte has a bit for each part that has keys there;
    parts beyond the eighth share one. Its high byte is the tag of those keys, a few bits of them, or MIXED. So another
    key that comes to the same place is nearly always told from them.
    Without it, all parts would be searched for every key, and each search waits for memory.

    A large one becomes twice as large in steps, as to build it anew takes longer than anybody should wait: all keys are
    noted in what it becomes, the new ones in both, and until then it is asked as it is.
    """

    __slots__ = ("_keys", "_larger", "_left", "_opened", "_words")

    def __init__(self) -> None:
        self._words: NDArray[np.uint16] = np.zeros(_SMALLEST_SIEVE, np.uint16)
        self._larger: NDArray[np.uint16] | None = None
        """What they become, while they grow."""
        self._left: list[tuple[Part, int]] = []
        """Parts, and how many of their first keys are not noted there."""
        self._keys = 0
        self._opened = 0

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return self._words.nbytes + (0 if self._larger is None else self._larger.nbytes)

    def open(self) -> int:
        """Return the bit of a new part."""
        self._opened += 1
        return 1 << self._opened % _PARTS

    def add(self, keys: Numbers, parts: Sequence[Part]) -> None:
        """Take note of keys that were added to the newest of the parts."""
        self._keys += len(keys)
        is_crowded = _PLACES_A_KEY * self._keys > len(self._words)
        if is_crowded and self._keys <= SMALL:
            self.build(parts)
            return
        _note(self._words, keys, parts[-1].bit)
        if self._larger is not None:
            _note(self._larger, keys, parts[-1].bit)
            self._grow(self._larger, _NOTED_A_KEY * len(keys))
        elif is_crowded:
            self._larger = np.zeros(2 * len(self._words), np.uint16)
            self._left = [(part, len(part)) for part in parts]

    def build(self, parts: Sequence[Part]) -> None:
        """Take note of all keys of all parts anew, with places enough for them."""
        self._keys, self._larger = sum(map(len, parts)), None
        self._words = np.zeros(max(_SMALLEST_SIEVE, capacity(_PLACES_A_KEY * self._keys)), np.uint16)
        for part in parts:
            for start in range(0, len(part), _AT_ONCE):
                _note(self._words, part.column[start : start + _AT_ONCE], part.bit)

    def _grow(self, larger: NDArray[np.uint16], keys: int) -> None:
        """Note so many of the keys that are left in what it becomes, and become that when none is."""
        while self._left and keys > 0:
            part, stop = self._left.pop()
            start = max(0, stop - min(keys, _AT_ONCE))
            _note(larger, part.column[start:stop], part.bit)
            keys -= stop - start
            if start:
                self._left.append((part, start))
        if not self._left:
            self._words, self._larger = larger, None

    def _clear(self, bit: int) -> None:
        others = np.uint16(~bit & 0xFFFF)
        self._words &= others
        if self._larger is not None:
            self._larger &= others

    def look(self, keys: Numbers) -> tuple[Numbers, NDArray[np.uint16]]:
        """Return the indexes of the keys that may be somewhere, and of each the bits of the parts where it may be."""
        places = _places(keys, self._words)
        words = self._words.take(places)
        maybe = ((words & _BITS) != 0) & ((words <= _BITS) | ((words ^ _tags(keys)) <= _BITS))
        known = maybe.nonzero()[0]
        return known, words.take(known) & _BITS

    def parts(self, parts: Iterable[AnyPart], keys: Numbers) -> Iterator[tuple[AnyPart, Numbers]]:
        """Yield the parts that may have some of the keys, in the order given, and the indexes of those keys."""
        known, bits = self.look(keys)
        for part in parts:
            here = known.take((bits & part.bit).nonzero()[0])
            if len(here):
                yield part, here

    def close(self, part: Part, others: Sequence[Part]) -> None:
        """Forget a part, and become smaller where so many were forgotten that it will not soon have to grow again."""
        self._keys -= len(part)
        if all(other.bit != part.bit for other in others):
            self._clear(part.bit)
        self._left = [(other, stop) for other, stop in self._left if other is not part]
        enough = max(_SMALLEST_SIEVE, 4 * _PLACES_A_KEY * self._keys)
        if len(self._words) > enough:
            self._larger, self._left = None, []
        while len(self._words) > enough:
            half = len(self._words) // 2
            self._words = _joined(self._words[:half], self._words[half:])


def _note(words: NDArray[np.uint16], keys: Numbers, bit: int) -> None:
    places, tags = _places(keys, words), _tags(keys)
    before = words.take(places)
    words[places] = np.where((before & _BITS) == 0, tags, before) | bit
    # Where there were others, or some came together, it is the tag of one of them.
    mixed = places[(words.take(places) ^ tags) > _BITS]
    words[mixed] &= _BITS


def _places(keys: Numbers, words: NDArray[np.uint16]) -> Any:
    return (keys >> _SIEVE_BITS) & (len(words) - 1)


def _tags(keys: Numbers) -> Any:
    """Return of each key what tells it from others in its place, as the high byte of a word."""
    return (keys >> _TAG_BITS).astype(np.uint16) << 8


def _joined(some: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the words of places of which two become one."""
    is_one_empty = ((some & _BITS) == 0) | ((others & _BITS) == 0)
    tags = np.where((some & _BITS) == 0, others, some) & _TAG
    return ((some | others) & _BITS) | np.where(is_one_empty | ((some ^ others) <= _BITS), tags, _MIXED)
