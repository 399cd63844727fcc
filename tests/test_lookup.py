"""Keys in parts against plain lists of them: whatever they begin with, however many parts there are."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.lookup import NO_POSITION, Part, Sieve, _joined
from tests.test_properties import THOROUGH

KEYS = (0, 1, 2**40, 2**63, 2**64 - 1, 7, 7 + 8, 7 + 16, 7 + 2**20, 2**63 + 7)
"""Signed and unsigned, and many that begin their search in one slot."""
ROOM = 16

keys = st.lists(st.sampled_from(KEYS), max_size=ROOM)


def signed(values):
    return np.array(values, np.uint64).view(np.int64)


def part_of(values, once, bit=1):
    part = Part(ROOM, bit)
    part.keys.extend(values)
    half = len(values) // 2
    part.put(np.arange(half), once)
    part.put(np.arange(half, len(values)), once)
    return part


@pytest.mark.parametrize("few", [0, 2, 100])
@THOROUGH
@given(values=keys)
def test_of_equal_keys_the_newest_is_found(few, values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.core.lookup.FEW", few)
        newest = {key: position for position, key in enumerate(values)}
        expected = [newest.get(key, NO_POSITION) for key in KEYS]
        assert part_of(values, once=True).search(signed(KEYS)).tolist() == expected


@pytest.mark.parametrize("few", [0, 2, 100])
@THOROUGH
@given(values=keys, wanted=st.integers(0, ROOM))
def test_of_equal_keys_each_is_found_that_is_accepted(few, values, wanted):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.core.lookup.FEW", few)
        part, asked = part_of(values, once=False), []

        def accept(positions, at):
            asked.append(at)
            return positions == wanted

        expected = [wanted if values[wanted : wanted + 1] == [key] else NO_POSITION for key in KEYS]
        assert part.search(signed(KEYS), accept).tolist() == expected
        indexes = {int(one) for at in asked for one in np.atleast_1d(at)}
        assert indexes == {at for at, key in enumerate(KEYS) if key in values}


def test_a_key_that_was_not_put_there_yet_is_not_found():
    part = part_of([1, 2, 3], once=True)
    part.keys.append(4)
    assert part.search(signed([4, 3] * 20)).tolist() == [NO_POSITION, 2] * 20
    assert Part(1, 1).search(signed([4] * 20)).tolist() == [NO_POSITION] * 20


CROWDED = st.builds(
    lambda place, tag, low: place << 20 | tag << 56 | low, st.integers(0, 9), st.integers(0, 5), st.integers(0, 1)
)
"""Keys that come to a few places, with a few tags."""
STEPS = st.one_of(st.just("close"), st.lists(CROWDED | st.integers(0, 2**64 - 1), min_size=1, max_size=ROOM))


@pytest.mark.parametrize("small", [0, 20, 1 << 16])
@pytest.mark.parametrize("smallest", [1, 4, 1 << 12])
@THOROUGH
@given(st.lists(STEPS, max_size=30))
def test_a_part_is_told_of_for_each_of_its_keys_until_it_is_closed(smallest, small, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.core.lookup._SMALLEST_SIEVE", smallest)
        patch.setattr("streams.core.lookup._AT_ONCE", 3)
        patch.setattr("streams.core.lookup.SMALL", small)
        patch.setattr("streams.core.lookup._NOTED_A_KEY", 1)
        sieve, parts = Sieve(), []
        for step in steps:
            if step == "close":
                if parts:
                    closed = parts.pop(0)
                    sieve.close(closed, parts)
            else:
                parts.append(part_of(step, once=True, bit=sieve.open()))
                sieve.add(parts[-1].column, parts)
            for part in parts:
                told = {id(one): here.tolist() for one, here in sieve.parts(parts, part.column)}
                assert told[id(part)] == list(range(len(part)))


@pytest.mark.parametrize("some", [0, 0x300, 0x301, 0x302, 0x502, 0x003])
@pytest.mark.parametrize("others", [0, 0x500, 0x301, 0x302, 0x503, 0x001])
def test_of_two_places_that_become_one_nothing_is_lost_and_an_empty_one_takes_nothing_away(some, others):
    (word,) = _joined(np.array([some], np.uint16), np.array([others], np.uint16)).tolist()
    assert word & 0xFF == (some | others) & 0xFF
    tags = {one >> 8 for one in (some, others) if one & 0xFF}
    if tags:
        assert word >> 8 == (tags.pop() if len(tags) == 1 else 0)


def test_keys_in_one_place_are_told_apart_by_their_tags_until_it_is_empty():
    sieve = Sieve()
    both, first, second = (
        part_of([7 << 20 | tag << 56 for tag in tags], once=True, bit=sieve.open()) for tags in ((2, 4), (2,), (4,))
    )

    def seen(*tags):
        parts = sieve.parts([both, first, second], signed([7 << 20 | tag << 56 for tag in tags]))
        return [(part.bit, here.tolist()) for part, here in parts]

    sieve.add(both.column, [both])
    assert seen(2, 4, 6) == [(both.bit, [0, 1, 2])]  # mixed: no tag says anything
    sieve.close(both, [])
    sieve.add(first.column, [first])
    assert seen(2, 4, 6) == [(first.bit, [0])]
    sieve.add(second.column, [first, second])
    assert seen(2, 4, 6) == [(first.bit, [0, 1, 2]), (second.bit, [0, 1, 2])]
    sieve.close(first, [second])
    assert seen(2, 4, 6) == [(second.bit, [0, 1, 2])]
    sieve.close(second, [])
    assert seen(2, 4, 6) == []
    sieve.add(first.column, [first])
    assert seen(2, 4, 6) == [(first.bit, [0])]


def test_a_large_sieve_grows_in_steps_and_tells_as_much_afterwards(monkeypatch):
    rng, sieve, parts, seen = np.random.default_rng(1), Sieve(), [], []
    for number in range(200):
        if number % 40 == 0:
            parts.append(Part(40 * 256, sieve.open()))
        if number == 8:
            monkeypatch.setattr("streams.core.lookup.SMALL", 2_000)
            monkeypatch.setattr(Sieve, "build", lambda *_: pytest.fail("all at once"))
        keys = np.frombuffer(rng.bytes(8 * 256), np.int64)
        parts[-1].keys.frombytes(keys.tobytes())
        sieve.add(keys, parts)
        seen.append(len(sieve.look(rng.integers(-(2**63), 2**63, 10_000))[0]) / 10_000)
        told_of_all(sieve, parts)
    assert max(seen) < 0.08
    assert sieve.size / 2 < 8 * 200 * 256


def told_of_all(sieve: Sieve, parts: list[Part]) -> None:
    for part in parts:
        assert {id(one): len(here) for one, here in sieve.parts(parts, part.column)}[id(part)] == len(part)


@pytest.mark.parametrize("batches", range(20, 80, 3))
def test_a_sieve_that_grows_while_most_is_forgotten_tells_as_much_as_before(monkeypatch, batches):
    monkeypatch.setattr("streams.core.lookup.SMALL", 1_000)
    rng, sieve, parts = np.random.default_rng(1), Sieve(), []
    for _ in range(batches):
        parts.append(Part(256, sieve.open()))
        parts[-1].keys.frombytes(rng.bytes(8 * 256))
        sieve.add(parts[-1].column, parts)
    while parts:
        told_of_all(sieve, parts)
        sieve.close(parts.pop(0), parts)


def test_new_keys_seem_to_be_nowhere_mostly_and_what_was_forgotten_leaves_no_trace():
    rng, sieve, parts = np.random.default_rng(1), Sieve(), []
    smallest = sieve.size

    def seen(number):
        found = defaultdict(int)
        for part, here in sieve.parts(parts, rng.integers(-(2**63), 2**63, number)):
            found[part.bit] += len(here)
        return sum(found.values()) / number

    for _ in range(100):
        if len(parts) == 8:
            sieve.close(parts.pop(0), parts)
        part = Part(1_024, sieve.open())
        part.keys.frombytes(rng.bytes(8 * 1_024))
        parts.append(part)
        sieve.add(part.column, parts)
        assert seen(10_000) < 0.1
    assert 4 * 8 * 1_024 <= sieve.size / 2 <= 16 * 8 * 1_024
    while parts:
        sieve.close(parts.pop(0), parts)
    assert sieve.size == smallest
    parts = [Part(1, 1 << bit) for bit in range(8)]
    assert seen(10_000) == 0
