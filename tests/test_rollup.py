"""The sum over partitions: totals, rolling and tumbling windows, against sums by hand and against the oracle."""

from collections import defaultdict
from random import Random
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from streams.core.accounts import Accounts, Lifetime, Share
from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.panes import Cell, Rolling, Series, Touched
from streams.core.rollup import Farewell, Head, Partial, Rollup, RowKey, Window
from streams.metrics.reading import Reading, at_once, in_steps
from streams.wire.campaigns import parse_campaigns
from streams.wire.records import (
    decode_partial,
    decode_row,
    decode_row_key,
    encode_row,
    encode_row_key,
    encode_window,
    window_key,
)
from tests import oracle
from tests.logs import RULES, TOPICS, seeded_logs
from tests.runs import Run, assert_same_state
from tests.test_properties import THOROUGH

MIN = 60_000
BILLED = Series("c", "USD", "adserver")
SHORT, LONG = 10_000, 60_000

# --- builders ---------------------------------------------------------------------------------------------------------


def head(seq: int = 0, epoch: int = 0, time: int = 0, partitions: int = 1, final: int = 0, idle: bool = False) -> Head:
    return Head(epoch, seq, partitions, time, idle, final)


def partial(head: Head, cells: dict[int, Cell] | None = None, partition: int = 0, series: Series = BILLED) -> Partial:
    return Partial(partition, head, [Touched(series, pane, cell) for pane, cell in (cells or {}).items()])


def served(count: int, spend: int = 0) -> Cell:
    return Cell(served=count, gross=count, revision=count, spend=spend)


def rollup(*partials: Partial, windows: tuple[int, ...] = (MIN,)) -> Rollup:
    total = Rollup(windows)
    for one in partials:
        total.apply(one)
    return total


def fold(total: Rollup) -> None:
    for _ in total.fold_final():
        pass


def total_served(total: Rollup, series: Series = BILLED) -> int:
    return total.accounts.by_series[series].total.served


def looked_at(total: Rollup) -> Rollup:
    """A rollup whose rolling windows are all moved on to now: when that is done is no state."""
    for account in total.accounts.by_series.values():
        total.rolling(account)
    return total


def in_windows(total: Rollup, series: Series = BILLED) -> list[int]:
    return [window.served for window in total.rolling(total.accounts.by_series[series]).sums]


class Stage:
    """A rollup with its table and its published windows, that can lose its memory."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.table: dict[bytes, bytes] = {}
        self.published: dict[tuple[str, str, int], Window] = {}
        self.committed = self.applied = 0
        self.rollup = self._loaded()

    def _loaded(self) -> Rollup:
        total = Rollup((SHORT, LONG))
        total.load([(decode_row_key(key)[2], decode_row(row)) for key, row in self.table.items()])
        return total

    def take(self, sent: bytes) -> None:
        self.rollup.apply(decode_partial(sent))

    def catch_up(self) -> None:
        for sent in self.sent[self.applied :]:
            self.take(sent)
        self.applied = len(self.sent)

    def commit(self) -> None:
        """The order of a worker, partials in between: windows, then what is final is folded, rows, offsets."""
        for window in self.rollup.windows():
            self.published[window.campaign_id, window.currency, window.start] = window
        for number, _ in enumerate(self.rollup.fold_final()):
            self.take(self.sent[-1 - number % len(self.sent)])
        for key, row in self.rollup.changed():
            if row is None:
                self.table.pop(encode_row_key(0, 0, key), None)
            else:
                self.table[encode_row_key(0, 0, key)] = encode_row(row)
        self.committed = self.applied

    def crash(self) -> None:
        self.rollup, self.applied = self._loaded(), self.committed


def run_all(seed: int) -> tuple[Stage, list[Run]]:
    """Partitions at paces of their own, partials sent again and out of time, crashes on both sides."""
    random = Random(seed)
    rules = RULES[seed % len(RULES)]
    count = random.randint(1, 3)
    runs = [Run(rules, seeded_logs(random.getrandbits(32), 30), number, count) for number in range(count)]
    stage = Stage()
    unread = list(runs)
    while unread:
        for run in unread:
            for topic in TOPICS:
                run.read(topic, random.randint(0, 5))
            sent = run.commit(deliver=random.random() < 0.9)
            stage.sent += [sent] if sent else []
        stage.catch_up()
        for _ in range(random.randint(0, 2)):
            if stage.sent:
                stage.take(random.choice(stage.sent))
        if random.random() < 0.5:
            stage.commit()
        if random.random() < 0.1:
            stage.crash()
        unread = [run for run in unread if any(run.position[topic] < len(run.logs[topic]) for topic in TOPICS)]
    for run in runs:
        sent = run.commit()
        assert sent is not None
        stage.sent.append(sent)
    stage.catch_up()
    stage.commit()
    stage.commit()
    return stage, runs


def truth_of(runs: list[Run]) -> dict[tuple[Series, int], Cell]:
    """Every cell over all partitions, by the oracle."""
    sums: dict[tuple[Series, int], Cell] = defaultdict(Cell)
    for run in runs:
        for (campaign, currency, source, pane), cell in oracle.answer(run.logs, run.counting.contract()).cells.items():
            sums[Series(campaign, currency, source), pane].add(Cell(**cell))
    return dict(sums)


def sum_of(cells: Any) -> Cell:
    total = Cell()
    for cell in cells:
        total.add(cell)
    return total


seeds = st.integers(0, 2**32)

# --- laws -------------------------------------------------------------------------------------------------------------


@THOROUGH
@given(seeds)
def test_totals_are_the_sums_of_all_cells_whatever_was_sent_twice_or_lost_on_the_way(seed):
    stage, runs = run_all(seed)
    truth = truth_of(runs)
    totals = {series: account.total for series, account in stage.rollup.accounts.by_series.items()}
    assert totals == {
        series: sum_of(cell for (of, _), cell in truth.items() if of == series) for series in {of for of, _ in truth}
    }
    for account in stage.rollup.accounts.by_series.values():
        assert account.total == sum_of([account.lifetime.cell, *map(account.sum_of, account.minutes())])


@THOROUGH
@given(seeds)
def test_every_window_that_is_due_was_published_last_as_it_is(seed):
    stage, runs = run_all(seed)
    minutes: dict[tuple[str, str, int], Cell] = defaultdict(Cell)
    for (series, pane), cell in truth_of(runs).items():
        if series.source == "adserver":
            minutes[series.campaign_id, series.currency, pane // MIN * MIN].add(cell)
    final, now = stage.rollup.final_before(), stage.rollup.stream_time()
    due = {place: cell for place, cell in minutes.items() if place[2] + MIN <= max(final, now - 10_000)}
    assert due.keys() <= stage.published.keys()
    for place, cell in due.items():
        window = stage.published[place]
        assert (window.served, window.measurable, window.viewable, window.clicks, window.revision) == (
            cell.served, cell.measurable, cell.viewable, cell.clicks, cell.revision,
        )  # fmt: skip
        assert window.final == (window.end <= final)


@THOROUGH
@given(seeds)
def test_a_rollup_loaded_from_its_table_is_the_live_one(seed):
    stage, _ = run_all(seed)
    published_only = ("_unpublished", "_final_published", "_changed")
    assert_same_state(looked_at(stage.rollup), looked_at(stage._loaded()), ignoring=published_only)


@THOROUGH
@given(seeds)
def test_sending_any_partial_again_changes_nothing(seed):
    stage, _ = run_all(seed)
    other, _ = run_all(seed)
    for sent in Random(seed).sample(stage.sent, len(stage.sent)) * 2:
        stage.take(sent)
    assert_same_state(looked_at(stage.rollup), looked_at(other.rollup), ignoring=("_unpublished", "_changed"))


PANE_STARTS = st.integers(0, 40).map(lambda pane: pane * 10_000)
ADDED = st.tuples(st.just("add"), PANE_STARTS, st.integers(1, 5))
MOVED = st.tuples(st.just("move"), st.integers(0, 420_000), st.just(0))


@THOROUGH
@given(st.lists(st.one_of(ADDED, MOVED), max_size=40))
def test_rolling_windows_are_the_sums_of_their_panes(steps):
    lengths = (10_000, 50_000, 200_000)
    rolling, cells, now = Rolling(lengths), [], -10_000
    for step, at, count in steps:
        if step == "add":
            rolling.add(at, served(count, spend=count * 7))
            cells.append((at, served(count, spend=count * 7)))
        else:
            rolling.advance(at)
            now = max(now, at // 10_000 * 10_000)
        assert rolling.sums == [
            sum_of(cell for pane, cell in cells if now - length < pane <= now) for length in lengths
        ]


@THOROUGH
@given(seeds)
def test_rolling_windows_of_the_rollup_hold_what_the_oracle_says_of_their_panes(seed):
    stage, runs = run_all(seed)
    truth, now = truth_of(runs), stage.rollup.now
    for series, account in stage.rollup.accounts.by_series.items():
        for length, window in zip((SHORT, LONG), stage.rollup.rolling(account).sums, strict=True):
            held = [cell for (of, pane), cell in truth.items() if of == series and now - length < pane <= now]
            assert window == sum_of(held)


@THOROUGH
@given(seeds)
def test_what_is_kept_of_all_accounts_is_what_a_look_at_each_of_them_says(seed):
    stage, _ = run_all(seed)
    for total in (stage.rollup, stage._loaded()):
        accounts = total.accounts
        ids = {series.campaign_id for series in accounts.by_series}
        assert accounts.campaigns() == len(ids)
        assert {name: {id(one) for one in accounts.of(name)} for name in ids} == {
            name: {id(one) for series, one in accounts.by_series.items() if series.campaign_id == name} for name in ids
        }
        bounds = sorted({account.lifetime.bound for account in accounts.by_series.values()})
        for bound in bounds:
            folded = {series for series, one in accounts.by_series.items() if 0 < one.lifetime.bound <= bound}
            assert {account.series for account in accounts.folded_until(bound)} == folded
        for time in (total.now, total.now + SHORT, total.now + LONG):
            assert accounts.together(time) == together(total, time)
        ranked = sorted(((max(one.total.served for one in accounts.of(name)), name) for name in ids), reverse=True)
        for most in range(1, len(ids) + 2):
            assert accounts.loudest(most) == ranked[:most]


def together(total: Rollup, time: int) -> dict[str, list[Cell]]:
    """What the billed series of each currency have in each window, one after the other."""
    billed = [one for series, one in total.accounts.by_series.items() if total.campaigns.is_billed(series)]
    nothing = [Cell(), Cell()]
    return {
        currency: [
            sum_of(
                (total.rolling(one).at(time) or nothing)[number] for one in billed if one.series.currency == currency
            )
            for number in range(len(nothing))
        ]
        for currency in {one.series.currency for one in billed}
    }


WHOSE = st.builds(Series, st.integers(0, 25).map("c{}".format), st.sampled_from(["USD", "EUR"]), st.just("adserver"))
SERVES = st.tuples(st.just("serves"), WHOSE, st.integers(1, 4))
ENDS = st.tuples(st.just("ends"), WHOSE, st.just(0))
LOOK = st.tuples(st.just("look"), st.just(BILLED), st.integers(1, 3))


@THOROUGH
@given(st.lists(st.one_of(SERVES, SERVES, ENDS, LOOK), max_size=120))
def test_those_that_serve_most_are_found_whoever_comes_grows_and_goes(steps):
    accounts, totals = Accounts((MIN,), Campaigns()), dict[Series, int]()
    for step, series, count in [*steps, ("look", BILLED, 2)]:
        if step == "serves":
            accounts.put(accounts.opened(series), 0, served(count), 0)
            totals[series] = totals.get(series, 0) + count
        elif step == "ends" and totals.pop(series, None):
            accounts.close(series)
        elif step == "look":
            names = {series.campaign_id for series in totals}
            most = [
                (max(totals.get(Series(name, one, "adserver"), 0) for one in ("USD", "EUR")), name) for name in names
            ]
            assert accounts.loudest(count) == sorted(most, reverse=True)[:count]


# --- examples ---------------------------------------------------------------------------------------------------------


def test_partitions_are_added_up():
    total = rollup(partial(head(), {0: served(2)}), partial(head(), {0: served(3)}, partition=1))
    assert total_served(total) == 5


def test_a_cell_is_absolute_so_a_newer_word_replaces_the_older_one():
    total = rollup(partial(head(0), {0: served(2)}), partial(head(1), {0: served(5)}))
    assert total_served(total) == 5


def test_an_older_word_after_a_newer_one_changes_nothing():
    total = rollup(partial(head(1), {0: served(5)}), partial(head(0), {0: served(2)}))
    assert total_served(total) == 5
    assert total.heads[0].seq == 1


def test_a_partial_of_an_older_owner_is_refused_whole_finality_included():
    late = partial(head(9, epoch=0, final=MIN, time=MIN), {0: served(9), 90_000: served(1)})
    total = rollup(partial(head(0, epoch=1), {0: served(5)}), late)
    assert total_served(total) == 5
    assert total.heads[0] == head(0, epoch=1)
    assert total.final_before() == 0


def test_sources_and_currencies_have_accounts_of_their_own():
    other, euros = Series("c", "USD", "dsp"), Series("c", "EUR", "adserver")
    total = rollup(
        partial(head(0), {0: served(1)}),
        partial(head(1), {0: served(2)}, series=other),
        partial(head(2), {0: served(4)}, series=euros),
    )
    assert [total_served(total, series) for series in (BILLED, other, euros)] == [1, 2, 4]


def test_stream_time_is_the_smallest_over_the_partitions_that_are_not_idle():
    total = rollup(partial(head(time=90_000)), partial(head(time=50_000), partition=1))
    assert total.stream_time() == 50_000
    total.apply(partial(head(1, time=50_000, idle=True), partition=1))
    assert total.stream_time() == 90_000


def test_stream_time_of_partitions_that_are_all_idle_is_the_largest():
    total = rollup(partial(head(time=9, idle=True)), partial(head(time=5, idle=True), partition=1))
    assert total.stream_time() == 9


def test_nothing_is_final_while_one_partition_has_not_spoken():
    total = rollup(partial(head(partitions=2, final=MIN)))
    assert total.final_before() == 0
    total.apply(partial(head(partitions=2, final=2 * MIN), partition=1))
    assert total.final_before() == MIN


def test_a_partition_without_renders_has_no_stream_time_and_holds_nothing_back():
    total = rollup(partial(head(time=NEVER, partitions=2)), partial(head(time=50_000, partitions=2), partition=1))
    assert total.stream_time() == 50_000


def test_windows_hold_the_pane_of_stream_time_and_the_panes_before_it():
    cells = {pane: served(1) for pane in range(0, 100_000, 10_000)}
    total = rollup(partial(head(time=95_000), cells), windows=(10_000, 60_000))
    assert in_windows(total) == [1, 6]
    total.apply(partial(head(1, time=100_000)))
    assert in_windows(total) == [0, 5]
    total.apply(partial(head(2, time=1_000_000)))
    assert in_windows(total) == [0, 0]


def test_a_pane_ahead_of_stream_time_is_in_no_window_yet():
    total = rollup(
        partial(head(time=10_000), {10_000: served(1)}), partial(head(time=30_000), {30_000: served(1)}, partition=1)
    )
    assert in_windows(total) == [1]
    total.apply(partial(head(1, time=30_000)))
    assert in_windows(total) == [2]


def test_a_tumbling_window_is_published_when_stream_time_has_passed_its_end_by_10_s():
    total = rollup(partial(head(0, time=69_999), {0: served(1)}))
    assert list(total.windows()) == []
    total.apply(partial(head(1, time=70_000)))
    (window,) = total.windows()
    assert (window.start, window.end, window.served, window.final) == (0, MIN, 1, False)
    assert list(total.windows()) == []


def test_a_tumbling_window_is_published_again_when_it_changes_and_last_when_it_is_final():
    total = rollup(partial(head(0, time=2 * MIN), {0: served(1)}))
    assert [window.revision for window in total.windows()] == [1]
    total.apply(partial(head(1, time=2 * MIN), {10_000: served(2)}))
    assert [(window.served, window.final) for window in total.windows()] == [(3, False)]
    total.apply(partial(head(2, time=3 * MIN, final=MIN - 1)))
    assert list(total.windows()) == []
    total.apply(partial(head(3, time=3 * MIN, final=MIN)))
    assert [(window.served, window.final) for window in total.windows()] == [(3, True)]
    assert list(total.windows()) == []


def test_only_the_billing_source_has_tumbling_windows():
    total = rollup(partial(head(time=2 * MIN), {0: served(1)}, series=Series("c", "USD", "dsp")))
    assert list(total.windows()) == []


def test_a_window_says_its_figures_in_currency_units_and_null_where_a_ratio_is_undefined():
    cell = Cell(served=4, measurable=3, viewable=0, clicks=1, spend=10_000_000, gross=4, revision=8)
    (window,) = rollup(partial(head(time=2 * MIN), {0: cell})).windows()
    assert window == Window("c", "USD", 0, MIN, 4, 3, 0, 1, "0.01", 2.5, None, 0.0, 0.75, 8, False)


def test_a_window_of_impressions_without_a_price_has_no_cpm():
    cell = Cell(served=4, measurable=3, viewable=1, gross=4, revision=8)
    (window,) = rollup(partial(head(time=2 * MIN), {0: cell}, series=Series("c", "none", "adserver"))).windows()
    assert (window.spend, window.cpm, window.vcpm, window.measured_rate) == ("0", None, None, 0.75)


def test_final_minutes_are_folded_once_they_have_left_the_longest_window():
    total = rollup(partial(head(0, time=3 * MIN, final=MIN), {0: served(2), MIN: served(3)}), windows=(2 * MIN,))
    fold(total)
    assert total.accounts.by_series[BILLED].lifetime == Lifetime(0, Cell()), "not before its windows were returned"
    total.windows()
    fold(total)
    assert total.accounts.by_series[BILLED].lifetime == Lifetime(MIN, served(2))
    assert list(total.accounts.by_series[BILLED].minutes()) == [MIN]
    assert total_served(total) == 5


def test_what_has_left_the_longest_window_and_is_final_is_in_no_pane_any_more():
    total = rollup(partial(head(0, time=3 * MIN, final=MIN), {0: served(2), 150_000: served(3)}), windows=(MIN,))
    account = total.accounts.by_series[BILLED]
    assert (set(account.rolling.panes), total.accounts.together(0)) == ({0, 150_000}, {"USD": [served(2)]})
    total.windows()
    fold(total)
    assert (set(account.rolling.panes), total.accounts.together(0)) == ({150_000}, {"USD": [Cell()]})


def test_what_lies_below_the_bound_is_ignored_ever_after():
    total = rollup(partial(head(0, time=3 * MIN, final=MIN), {0: served(2)}), windows=(MIN,))
    total.windows()
    fold(total)
    total.apply(partial(head(0, epoch=1, time=3 * MIN, final=MIN), {0: served(2)}))
    assert total_served(total) == 2


def test_what_is_said_again_while_others_are_folded_is_neither_folded_nor_published_twice():
    others = [Series(f"c{number}", "USD", "adserver") for number in range(3)]
    said = [partial(head(0, time=3 * MIN, final=MIN), {0: served(2)}, series=one) for one in others]
    total = rollup(*said, windows=(MIN,))
    assert len(list(total.windows())) == 3
    for _ in total.fold_final():
        for again in said:
            total.apply(again)
    assert [total.accounts.by_series[one].lifetime for one in others] == [Lifetime(MIN, served(2))] * 3
    fold(total)
    assert list(total.windows()) == []
    assert [total_served(total, one) for one in others] == [2, 2, 2]


def test_after_a_fold_that_was_cut_off_only_what_is_left_is_published_and_folded():
    others = [Series(f"c{number}", "USD", "adserver") for number in range(3)]
    said = [partial(head(0, time=3 * MIN, final=MIN), {0: served(2)}, series=one) for one in others]
    total = rollup(*said, windows=(MIN,))
    assert len(list(total.windows())) == 3
    for again in said:
        total.apply(again)
    first = next(total.fold_final())
    left = {one.campaign_id: 2 for one in others if one != first}
    assert {window.campaign_id: window.served for window in total.windows()} == left
    fold(total)
    assert [total.accounts.by_series[one].lifetime for one in others] == [Lifetime(MIN, served(2))] * 3


def test_a_crash_between_a_lifetime_and_the_deletion_of_its_minutes_counts_nothing_twice():
    total = rollup(partial(head(0, time=3 * MIN, final=MIN), {0: served(2)}), windows=(MIN,))
    total.windows()
    table = dict(total.changed())
    fold(total)
    changes = list(total.changed())
    assert [row is None for _, row in changes] == [False, True]
    again = Rollup((MIN,))
    again.load((table | dict(changes[:1])).items())  # type: ignore[arg-type]
    assert total_served(again) == 2


def test_a_recovered_rollup_shows_the_windows_of_the_live_one_even_when_a_partition_spoke_late():
    total = rollup(
        partial(head(time=10 * MIN, partitions=2), {10 * MIN: served(1), MIN: served(5)}),
        partial(head(time=MIN, partitions=2), partition=1),
    )
    again = Rollup((MIN,))
    again.load([(key, row) for key, row in total.changed() if row is not None])
    assert in_windows(again) == in_windows(total)


# --- campaigns that have ended ----------------------------------------------------------------------------------------

DAY = 24 * 60 * MIN


def ended(*series: Series) -> Rollup:
    """A rollup in which a minute of each series was folded and a day has passed since."""
    total = Rollup((MIN,), ttl_ms=DAY)
    for one in series:
        total.apply(partial(head(0, time=3 * MIN, final=MIN), {0: served(2, spend=10_000_000)}, series=one))
    total.windows()
    fold(total)
    total.apply(partial(head(1, time=MIN + DAY, final=MIN + DAY)))
    return total


def test_a_campaign_ends_when_it_had_no_event_for_its_time_to_live_and_not_before():
    total = Rollup((MIN,), ttl_ms=DAY)
    total.apply(partial(head(0, time=3 * MIN, final=MIN), {0: served(2)}))
    total.windows()
    fold(total)
    total.apply(partial(head(1, time=MIN + DAY - 1, final=MIN)))
    assert list(total.ended()) == []
    total.apply(partial(head(2, time=MIN + DAY, final=MIN)))
    assert list(total.ended()) == [BILLED]


def test_its_last_word_says_all_that_it_ever_had():
    total = ended(BILLED)
    word = total.farewell(BILLED)
    assert word == Farewell("c", "USD", MIN, 2, 0, 0, 0, "0.01", 5.0, None, None, 0.0, 2)
    assert word is not None
    assert window_key(word) == b"c|USD|lifetime"
    assert orjson.loads(encode_window(word)) == {
        "campaign_id": "c", "currency": "USD", "until": MIN, "served": 2, "measurable": 0, "viewable": 0, "clicks": 0,
        "spend": "0.01", "cpm": 5.0, "vcpm": None, "viewable_rate": None, "measured_rate": 0.0, "revision": 2,
        "final": True,
    }  # fmt: skip


def test_what_has_ended_leaves_memory_and_table_and_begins_anew_when_it_comes_back():
    total = ended(BILLED)
    table = {key for key, row in total.changed() if row is not None}
    assert RowKey(BILLED, None) in table
    for series in [*total.ended()]:
        total.forget(series)
    assert dict(total.changed()) == {RowKey(BILLED, None): None}
    assert total.accounts.by_series == {}
    total.apply(partial(head(2, time=MIN + DAY, final=MIN), {DAY: served(1)}))
    assert total_served(total) == 1


def test_a_campaign_that_had_an_event_while_its_last_word_was_sent_is_kept():
    total = ended(BILLED)
    (going,) = total.ended()
    total.apply(partial(head(2, time=MIN + DAY, final=MIN), {DAY: served(1)}))
    total.forget(going)
    assert total_served(total) == 3


def test_segments_and_other_sources_end_without_a_word():
    segment, other = Series("c", "USD", "adserver", "country", "DE"), Series("c", "USD", "dsp")
    total = ended(segment, other)
    assert set(total.ended()) == {segment, other}
    assert [total.farewell(series) for series in (segment, other)] == [None, None]


def test_segments_have_no_tumbling_windows():
    total = rollup(partial(head(time=2 * MIN), {0: served(1)}, series=Series("c", "USD", "adserver", "country", "DE")))
    assert list(total.windows()) == []


def test_windows_are_those_of_the_source_that_bills_the_campaign():
    total = Rollup((MIN,), parse_campaigns("[campaigns.c]\nbilling_source = 'dsp'", "adserver"))
    total.apply(partial(head(time=2 * MIN), {0: served(1)}))
    total.apply(partial(head(1, time=2 * MIN), {0: served(3)}, series=Series("c", "USD", "dsp")))
    total.apply(partial(head(2, time=2 * MIN), {0: served(7)}, series=Series("d", "USD", "adserver")))
    assert [(window.campaign_id, window.served) for window in total.windows()] == [("c", 3), ("d", 7)]


def test_when_another_source_bills_a_campaign_all_that_are_billed_are_added_up_anew():
    total = Rollup((MIN,), parse_campaigns("", "adserver"))
    total.apply(partial(head(time=MIN), {0: served(1), MIN: served(2)}))
    total.apply(partial(head(1, time=MIN), {MIN: served(4)}, series=Series("c", "USD", "dsp")))
    assert total.accounts.together(MIN) == {"USD": [served(2)]}
    total.change_campaigns(parse_campaigns("[campaigns.c]\nbilling_source = 'dsp'", "adserver"))
    assert total.accounts.together(MIN) == {"USD": [served(4)]}


# --- very many --------------------------------------------------------------------------------------------------------


def test_what_is_left_alone_costs_nothing_when_time_goes_on_or_somebody_looks(monkeypatch):
    total, moved, really = Rollup((MIN,)), set(), Rolling.advance
    for number in range(100):
        total.apply(partial(head(number, time=0), {0: served(1)}, series=Series(f"c{number:03}", "USD", "adserver")))

    def advance(rolling: Rolling, stream_time_ms: int) -> None:
        moved.add(id(rolling))
        really(rolling, stream_time_ms)

    monkeypatch.setattr(Rolling, "advance", advance)
    total.apply(partial(head(200, time=20_000), {10_000: served(3)}, series=Series("c007", "USD", "adserver")))
    assert len(moved) == 1, "time went on for the one that has an event"
    shown = at_once(in_steps(Reading({}, {0: total}, {}, 0, None, up_to_date=True), 2))
    assert [line.series.campaign_id for line in shown.billed] == ["c007", "c099"]
    assert (shown.overflow, [cell.served for line in shown.others for cell in line.windows or ()]) == (98, [98])
    assert len(moved) == 2, "and for those that are shown by name"


def usd(name: str) -> Series:
    return Series(name, "USD", "adserver")


def test_a_cell_that_is_all_of_its_sums_is_held_once_also_after_it_was_sent_again():
    total = rollup(partial(head(1, time=5_000), {0: served(1)}))
    account = total.accounts.by_series[BILLED]
    for seq in (2, 3):
        sums = [account.total, *total.rolling(account).sums, account.shares(0)[0].panes[0]]
        assert all(one is sums[0] for one in sums)
        total.apply(partial(head(seq, time=5_000), {0: served(1)}))


def test_a_campaign_whose_largest_source_is_forgotten_is_ranked_by_those_that_it_has_left():
    accounts, euro = Accounts((MIN,), Campaigns()), Series("a", "EUR", "adserver")
    for series, count in ((usd("a"), 9), (euro, 8), (usd("b"), 7), (usd("c"), 6), (usd("d"), 1), (usd("e"), 1)):
        accounts.put(accounts.opened(series), 0, served(count), 0)
    assert accounts.loudest(2) == [(9, "a"), (7, "b")]
    accounts.close(usd("a"))
    assert accounts.loudest(2) == [(8, "a"), (7, "b")]


def test_a_campaign_that_had_nothing_lately_is_shown_by_name_after_a_restart_if_it_served_most():
    total = Rollup((MIN,))
    shares = {0: Share((0, 0), {0: served(1)})}
    total.load([(RowKey(usd("old"), None), Lifetime(MIN, served(9))), (RowKey(usd("new"), 0), shares)])
    assert total.accounts.loudest(1) == [(9, "old")]


def test_those_that_serve_most_are_shown_by_name_whichever_partition_adds_them_up():
    counts = {0: {"a": 5, "b": 1}, 1: {"c": 9, "d": 4, "e": 2}}
    rollups = {
        number: rollup(*(partial(head(), {0: served(count)}, series=usd(name)) for name, count in served_by.items()))
        for number, served_by in counts.items()
    }
    shown = at_once(in_steps(Reading({}, rollups, {}, 0, None, up_to_date=True), 3))
    assert {line.series.campaign_id for line in shown.billed} == {"c", "a", "d"}
    assert (shown.overflow, [cell.served for line in shown.others for cell in line.windows or ()]) == (2, [3])


def test_what_comes_while_a_page_is_written_changes_nothing_of_those_without_a_name():
    euro = Series("b", "EUR", "adserver")
    total = rollup(
        partial(head(1, time=5_000), {0: served(9)}), partial(head(2, time=5_000), {0: served(1)}, series=euro)
    )
    steps, lines = in_steps(Reading({}, {0: total}, {}, 0, None, up_to_date=True), 1), None
    for seq in range(3, 9):
        try:
            next(steps)
        except StopIteration as end:
            lines = end.value
            break
        total.apply(partial(head(seq, time=5_000), {0: served(seq)}, series=euro))
    assert lines is not None
    assert [line.windows[0].served for line in lines.others] == [3]  # as it was after the one step before
