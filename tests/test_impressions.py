"""Remembered rows against a plain list of them: however they lie in generations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.impressions import NO_ROW, Impressions
from streams.core.panes import Ledger, Ledgers, Series
from tests.test_properties import THOROUGH

SERIES = [Series("c", currency, "adserver") for currency in ("USD", "EUR")]
GROUPS: list[Ledgers] = [
    (Ledger(SERIES[0], []),),
    (Ledger(SERIES[1], []), Ledger(Series("c", "EUR", "a", "country", "DE"), [])),
]
KEYS = (0, 1, 2**40, 2**63, 2**64 - 1, 7, 7 + 8, 7 + 16, 7 + 2**20)
"""Signed and unsigned, and many that begin their search in one slot."""


class Model:
    """The same memory as a list, and every row found by looking at all of them."""

    def __init__(self) -> None:
        self.impressions = Impressions()
        self.rows: list[tuple[int, int, int]] = []
        self.first = 0

    def append(self, keys: list[tuple[int, int, int]]) -> None:
        if not keys:
            return
        identities = np.array([key for key, _, _ in keys], np.uint64).view(np.int64)
        known = self.impressions.find(identities).tolist()
        times = np.array([ts for _, ts, _ in keys])
        groups = [GROUPS[group] for _, _, group in keys]
        first = self.impressions.append(identities, times, [5] * len(keys), groups, bytearray(len(keys)))
        assert first == len(self.rows)
        newest = dict(zip((key for key, _, _ in keys), known, strict=True))
        for row, (key, ts, group) in enumerate(keys, first):
            if newest[key] != NO_ROW:
                self.impressions.link(row, newest[key])
            newest[key] = row
            self.rows.append((key, ts, group))

    def forget(self, ts: int) -> None:
        self.impressions.forget_before(ts)
        while self.first < len(self.rows) and self.rows[self.first][1] < ts:
            self.first += 1

    def check(self) -> None:
        assert (self.impressions.first, self.impressions.end) == (self.first, len(self.rows))
        found = self.impressions.find(np.array(KEYS, np.uint64).view(np.int64)).tolist()
        for key, at_once in zip(KEYS, found, strict=True):
            rows = [row for row in range(self.first, len(self.rows)) if self.rows[row][0] == key]
            newest = self.impressions.newest(key)
            assert newest == (rows[-1] if rows else NO_ROW)
            assert max(at_once, self.first - 1) == max(newest, self.first - 1)
            assert self.impressions.with_older(newest) == rows[::-1]
        for row in range(self.first, len(self.rows)):
            generation, position = self.impressions.at(row)
            group = generation.groups[generation.which[position]]
            assert (generation.keys[position], generation.ts[position]) == self.rows[row][:2]
            assert group is GROUPS[self.rows[row][2]]


renders = st.tuples(st.sampled_from(KEYS), st.integers(0, 30), st.integers(0, 1))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(renders, max_size=9)), st.tuples(st.just("forget"), st.integers(0, 30))
    ),
    max_size=20,
)


def filled(steps: Any) -> Model:
    model = Model()
    for step, argument in steps:
        getattr(model, step)(argument)
    return model


@pytest.mark.parametrize("few", [0, 2, 64])
@THOROUGH
@given(steps)
def test_every_row_is_found_with_those_before_it_until_it_is_forgotten(few, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.core.impressions.FEW_KEYS", few)
        model = Model()
        for step, argument in steps:
            getattr(model, step)(argument)
            model.check()


@THOROUGH
@given(steps, st.integers(0, 200))
def test_rows_that_are_told_and_added_again_are_the_same_rows(steps, start):
    model = filled(steps)
    row = model.first + start % (len(model.impressions) + 1)
    rows = model.impressions.rows_from(row, b"")
    again = Model()
    again.impressions.start_at(row)
    ledgers = {group[0].series: group for group in GROUPS}
    again.impressions.extend(rows, [ledgers[series] for series in rows.series])
    again.impressions.index()
    again.rows, again.first = model.rows, row
    again.check()


@pytest.mark.parametrize("few", [0, 1_000])
def test_of_rows_of_one_identity_in_several_generations_the_newest_is_found(few, monkeypatch):
    monkeypatch.setattr("streams.core.impressions.FEW_KEYS", few)
    model = Model()
    for ts in range(4):
        model.append([(key, ts, 0) for key in KEYS])
    assert len(model.impressions.generations) > 2
    model.check()


def test_memory_that_was_filled_and_forgotten_many_times_does_not_grow():
    model = Model()
    for ts in range(0, 3_000, 10):
        model.append([(key * 31 + ts, ts, 0) for key in range(10)])
        model.forget(ts - 100)
    assert len(model.impressions) <= 120
    assert sum(map(len, model.impressions.generations)) <= 3 * 120


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_a_batch_of_any_size_has_room(rows):
    model = Model()
    model.append([(key, 0, 0) for key in range(rows)])
    model.append([(key, 0, 0) for key in range(rows)])
    assert model.impressions.with_older(model.impressions.newest(0)) == [rows, 0]


def test_a_remembered_impression_takes_at_most_64_bytes_with_all_that_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.core.impressions.SMALLEST", 1 << 16)
    impressions, most = Impressions(), 0.0
    for start in range(0, 400_000, 1_000):
        numbers = np.arange(start, start + 1_000)
        keys = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
        impressions.append(keys, numbers, [5] * 1_000, GROUPS[:1] * 1_000, bytearray(1_000))
        if start >= 200_000:
            most = max(most, impressions.size / len(impressions))
    assert 30 + 8 < most <= 64, "columns of 30 bytes, and a table that is half full at most"
