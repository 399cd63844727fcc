"""What was said of a series against a plain list of it, however it is held; and what very many of them take."""

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.accounts import Account, Accounts, Share
from streams.core.books import Books
from streams.core.campaigns import Campaigns
from streams.core.panes import NOTHING, PANE_MS, Cell, Series, Touched, minute_of
from streams.core.rollup import Head, Partial, Rollup
from tests.test_properties import THOROUGH

MIN = 60_000
BILLED = Series("c", "USD", "adserver")


def served(count: int) -> Cell:
    return Cell(served=count, gross=count, revision=count)


# --- what was said ----------------------------------------------------------------------------------------------------

WORDS = st.tuples(
    st.integers(0, 2), st.integers(0, 3), st.sampled_from([0, 10_000, 60_000]), st.builds(served, st.integers(0, 3))
)
"""Of a source partition, with a version, of a pane."""
FORGETS = st.sampled_from([0, 60_000])


class Model:
    """The same account as a list of all that holds."""

    def __init__(self) -> None:
        self.versions: dict[tuple[int, int], tuple[int, int]] = {}
        self.cells: dict[tuple[int, int], Cell] = {}

    def say(self, partition: int, version: tuple[int, int], pane: int, cell: Cell) -> Cell | None:
        place = minute_of(pane), partition
        if version < self.versions.get(place, version):
            return None
        self.versions[place] = version
        before = self.cells.get((partition, pane), NOTHING)
        self.cells[partition, pane] = cell
        return before

    def forget(self, minute: int) -> None:
        self.versions = {place: version for place, version in self.versions.items() if place[0] != minute}
        self.cells = {place: cell for place, cell in self.cells.items() if minute_of(place[1]) != minute}

    def shares(self, minute: int) -> dict[int, Share]:
        shares = {}
        for (of, partition), version in self.versions.items():
            if of == minute:
                panes = {pane: cell for (one, pane), cell in self.cells.items() if one == partition}
                shares[partition] = Share(version, {pane: panes[pane] for pane in panes if minute_of(pane) == minute})
        return shares


@THOROUGH
@given(st.lists(st.one_of(WORDS, WORDS, FORGETS), max_size=12))
def test_an_account_holds_what_was_said_whether_it_is_one_cell_or_many(steps):
    account, model = Account(BILLED), Model()
    for step in steps:
        if isinstance(step, int):
            if step in account.minutes():
                account.forget(step)
            model.forget(step)
        else:
            partition, seq, pane, cell = step
            assert account.say(partition, (0, seq), pane, cell) == model.say(partition, (0, seq), pane, cell)
        assert set(account.minutes()) == {minute for minute, _ in model.versions}
        assert {minute: account.shares(minute) for minute in (0, MIN)} == {m: model.shares(m) for m in (0, MIN)}
        assert sorted((pane, cell.served) for pane, cell in account.cells()) == sorted(
            (pane, cell.served) for (_, pane), cell in model.cells.items()
        )
        for minute in (0, MIN):
            cells = [cell for (_, pane), cell in model.cells.items() if minute_of(pane) == minute]
            assert account.sum_of(minute).served == sum(cell.served for cell in cells)


@THOROUGH
@given(st.lists(WORDS, max_size=8), st.integers(0, 8), st.sampled_from([0, 10_000, 60_000, 70_000]))
def test_windows_are_the_same_whenever_they_are_first_looked_at(words, looked_at, now):
    def windows(look: int) -> list[int]:
        accounts = Accounts((PANE_MS, MIN), Campaigns())
        account = accounts.opened(BILLED)
        for number, (partition, seq, pane, cell) in enumerate(words):
            if number == look:
                accounts.rolling(account, now)
            before = account.say(partition, (0, seq), pane, cell)
            if before is not None:
                accounts.put(account, pane, cell.less(before), now)
        assert account.total.served == sum(cell.served for _, cell in account.cells())
        return [window.served for window in accounts.rolling(account, now).sums]

    assert windows(looked_at) == windows(len(words))


@pytest.mark.parametrize("others", [[], [(1, 0)], [(0, 10_000)]])
def test_an_older_word_of_a_source_partition_changes_nothing(others):
    account = Account(BILLED)
    for partition, pane in others:
        account.say(partition, (0, 5), pane, served(7))
    assert account.say(0, (0, 5), 0, served(3)) == NOTHING
    assert account.say(0, (0, 4), 0, served(2)) is None
    assert account.shares(0)[0].panes[0] == served(3)


def test_a_second_cell_leaves_the_first_one_as_it_was_and_windows_hold_both():
    accounts = Accounts((PANE_MS, MIN), Campaigns())
    account = accounts.opened(BILLED)
    for partition, pane in ((0, 0), (1, 0), (0, 10_000)):
        account.say(partition, (0, 1), pane, served(1))
        accounts.put(account, pane, served(1), 10_000)
    assert account.shares(0) == {0: Share((0, 1), {0: served(1), 10_000: served(1)}), 1: Share((0, 1), {0: served(1)})}
    assert [window.served for window in accounts.rolling(account, 10_000).sums] == [1, 3]
    assert account.total == served(3)


# --- very many --------------------------------------------------------------------------------------------------------


def traced(make: Callable[[int], object], number: int) -> float:
    """Return how many bytes each of so many takes."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make(number)
        assert made, "it is held until it was measured"
        return (tracemalloc.get_traced_memory()[0] - before) / number
    finally:
        tracemalloc.stop()


def rollup_of(campaigns: int) -> Rollup:
    total = Rollup((MIN, 10 * MIN))
    for number in range(campaigns):
        for seq in (1, 2):  # a render, and later its view
            series = Series(f"campaign-{number:012}", "USD", "adserver")
            cell = Cell(served=1, gross=1, spend=2_500_000 + number, measurable=seq - 1, revision=seq)
            total.apply(Partial(0, Head(0, seq, 1, number, False, 0), [Touched(series, 0, cell)]))
    assert sum(1 for _ in total.changed()) > campaigns, "rows were written: nothing waits for that"
    return total


def books_of(campaigns: int) -> Books:
    books = Books([])
    for number in range(campaigns):
        (ledger,) = books.open(Series(f"campaign-{number:012}", "USD", "adserver"), [])
        ledger.add(0, Cell(served=1, gross=1, spend=2_500_000 + number, revision=1))
    books.close()
    return books


@pytest.mark.parametrize(("make", "most"), [(rollup_of, 900), (books_of, 400)])
def test_a_campaign_id_that_has_one_impression_takes_at_most_so_many_bytes(make, most):
    assert 200 < traced(make, 20_000) <= most
