"""Panes, minutes, cells and rolling windows, each alone; and who is looked up anew when panes are forgotten."""

import pytest

from streams.core.books import Books
from streams.core.panes import Cell, Ledger, Rolling, Series, held_between, minute_of, pane_of
from streams.core.partition import Partition
from streams.core.rules import Rules
from tests.logs import MIN, T0, batch, render

SERIES = Series("c", "USD", "adserver")
ALL = Cell(served=5, measurable=4, viewable=3, clicks=2, spend=10**18, gross=6, revision=14)


@pytest.mark.parametrize(
    ("ts", "pane", "minute"),
    [
        (0, 0, 0),
        (9_999, 0, 0),
        (10_000, 10_000, 0),
        (59_999, 50_000, 0),
        (60_000, 60_000, 60_000),
        (1_700_000_003_999, 1_700_000_000_000, 1_699_999_980_000),
        (4_102_444_799_999, 4_102_444_790_000, 4_102_444_740_000),
    ],
)
def test_a_pane_and_a_minute_hold_their_start_and_not_their_end(ts, pane, minute):
    assert (pane_of(ts), minute_of(ts)) == (pane, minute)


def test_a_cell_added_and_taken_off_leaves_every_figure_as_it_was():
    cell = Cell(1, 1, 1, 1, 1, 1, 1)
    cell.add(ALL)
    assert cell == Cell(6, 5, 4, 3, 10**18 + 1, 7, 15)
    assert cell.less(ALL) == Cell(1, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("held", [range(0, 100_000, 10_000), range(0, 30_000, 10_000)])
def test_held_panes_are_found_from_the_start_on_and_before_the_stop(held):
    panes = dict.fromkeys(held)
    assert sorted(held_between(panes, 10_000, 30_000)) == [10_000, 20_000]
    assert sorted(held_between(panes, 10_000, 10**12)) == list(held)[1:]
    assert held_between(panes, 20_000, 20_000) == []
    assert held_between(panes, 20_000, 10_000) == []


def test_a_ledger_remembers_what_was_touched_and_forgets_panes_from_the_start_on_and_before_the_stop():
    changed: list[Ledger] = []
    ledger = Ledger(SERIES, changed)
    for pane in (0, 10_000, 20_000):
        ledger.touch(pane).add(ALL)
    ledger.touch(10_000).add(ALL)
    assert ledger.touched == {0, 10_000, 20_000}
    assert changed == [ledger]
    assert ledger.at(10_000).served == 10
    ledger.forget(0, 20_000)
    assert [pane for pane, _ in ledger.cells()] == [20_000]
    assert not ledger.is_empty()
    ledger.touch(0)
    ledger.forget(0, 30_000)
    assert ledger.is_empty()


def test_a_rolling_window_moves_by_whole_panes_of_stream_time():
    rolling = Rolling((10_000, 30_000))
    rolling.advance(10_000)
    rolling.add(0, Cell(served=1))
    rolling.add(10_000, Cell(served=2))
    assert [window.served for window in rolling.sums] == [2, 3]
    rolling.advance(19_999)
    assert [window.served for window in rolling.sums] == [2, 3]
    rolling.advance(20_000)
    assert [window.served for window in rolling.sums] == [0, 3]
    rolling.advance(30_000)
    assert [window.served for window in rolling.sums] == [0, 2]
    rolling.advance(40_000)
    assert [window.served for window in rolling.sums] == [0, 0]


def test_stream_time_that_goes_back_moves_no_window():
    rolling = Rolling((10_000,))
    rolling.advance(20_000)
    rolling.add(20_000, Cell(served=1))
    rolling.advance(0)
    assert (rolling.now, rolling.sums[0].served) == (20_000, 1)


def test_panes_that_have_left_the_longest_window_are_forgotten_and_never_come_back():
    rolling = Rolling((10_000, 30_000))
    for pane in range(0, 100_000, 10_000):
        rolling.advance(pane)
        rolling.add(pane, Cell(served=1))
        assert len(rolling.panes) <= 3
    rolling.add(60_000, Cell(served=9))
    assert set(rolling.panes) == {70_000, 80_000, 90_000}
    assert [window.served for window in rolling.sums] == [1, 3]


def test_a_jump_over_more_than_the_longest_window_empties_all_of_them():
    rolling = Rolling((10_000, 30_000))
    rolling.advance(0)
    rolling.add(0, Cell(served=1))
    rolling.add(86_400_000, Cell(served=7))
    rolling.advance(86_400_000)
    assert [window.served for window in rolling.sums] == [7, 7]
    assert set(rolling.panes) == {86_400_000}


def test_ads_are_looked_up_anew_when_a_ledger_is_forgotten_and_not_with_every_pane(monkeypatch):
    looked_up, of = [], Books.of
    monkeypatch.setattr(Books, "of", lambda *given: looked_up.append(given[1].campaign_id) or of(*given))
    state = Partition(Rules())

    def comes(campaign, minute):
        number = len(state.impressions)
        ts = T0 + minute * MIN
        state.apply(batch("renders", [(number, render(f"i{number}", ts, campaign_id=campaign), ts)]))

    comes("stays", 0)
    comes("stays", 5)
    state.take(confirmed=T0 + 1 * MIN)
    comes("stays", 5)
    assert looked_up == ["stays"]
    comes("goes", 2)
    state.take(confirmed=T0 + 3 * MIN)
    comes("goes", 5)
    assert looked_up == ["stays", "goes", "goes"]
    assert [(one.series.campaign_id, one.cell.served) for one in state.touched()] == [("goes", 1)]
