"""What a scrape says: every name and label of the contract, and no series that means nothing."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.core.campaigns import Campaigns
from streams.core.delta import Batch
from streams.core.events import CLICKS, RENDERS, VIEWABILITY, Click, Render, Viewability
from streams.core.panes import Cell
from streams.core.partition import Partition
from streams.core.rollup import Head, Partial, Rollup
from streams.core.rules import OUTCOME_NAMES, Rules
from streams.metrics.collector import Collector
from streams.metrics.exposition import page_of
from streams.metrics.reading import Reading
from streams.wire.campaigns import parse_campaigns
from streams.wire.events import REASONS, decoder
from streams.wire.records import decode_partial, encode_partial

WINDOWS = ("1m", "5m", "1h")
WINDOWS_MS = (60_000, 300_000, 3_600_000)
T = 1_700_000_000_000

BUSINESS = {
    "ads_served_impressions_total": {"campaign", "currency"},
    "ads_measurable_impressions_total": {"campaign", "currency"},
    "ads_viewable_impressions_total": {"campaign", "currency"},
    "ads_clicks_total": {"campaign", "currency"},
    "ads_spend_total": {"campaign", "currency"},
    "ads_gross_impressions_total": {"campaign", "currency"},
    "ads_declared_refresh_impressions_total": {"campaign", "currency"},
    "ads_over_cap_impressions_total": {"campaign", "currency"},
    "ads_viewability_target_ratio": {"campaign"},
    "ads_segment_served": {"campaign", "dimension", "value", "window"},
    "ads_segment_measurable": {"campaign", "dimension", "value", "window"},
    "ads_segment_viewable": {"campaign", "dimension", "value", "window"},
    "ads_segment_clicks": {"campaign", "dimension", "value", "window"},
    "ads_segment_viewable_rate": {"campaign", "dimension", "value", "window"},
    "ads_window_served": {"campaign", "currency", "window"},
    "ads_window_measurable": {"campaign", "currency", "window"},
    "ads_window_viewable": {"campaign", "currency", "window"},
    "ads_window_clicks": {"campaign", "currency", "window"},
    "ads_window_spend": {"campaign", "currency", "window"},
    "ads_cpm": {"campaign", "currency", "window"},
    "ads_vcpm": {"campaign", "currency", "window"},
    "ads_cpc": {"campaign", "currency", "window"},
    "ads_viewable_rate": {"campaign", "window"},
    "ads_viewable_of_served": {"campaign", "window"},
    "ads_measured_rate": {"campaign", "window"},
    "ads_ctr": {"campaign", "window"},
    "ads_source_impressions_total": {"campaign", "source"},
    "ads_discrepancy_ratio": {"campaign", "source", "window", "of"},
}
PIPELINE = {
    "streams_events_consumed_total": {"topic"},
    "streams_events_total": {"topic", "outcome"},
    "streams_events_pending": {"topic"},
    "streams_dead_letters_total": {"reason"},
    "streams_invalid_traffic_total": {"reason"},
    "streams_refresh_unchecked_total": set(),
    "streams_overflow_campaigns": set(),
    "streams_overflow_sources": set(),
    "streams_consumer_lag": {"topic", "partition"},
    "streams_stream_time_seconds": {"topic", "partition"},
    "streams_recovery_duration_seconds": set(),
    "streams_remembered_impressions": set(),
    "streams_remembered_bytes": set(),
    "streams_max_remembered_impressions": set(),
    "streams_partitions_assigned": set(),
    "streams_partitions": set(),
    "streams_up_to_date": set(),
    "streams_build_info": {"version"},
}


class Bench:
    """One partition of viewers and one of campaigns, and the page that a scrape of them gives."""

    def __init__(
        self, min_sample: int = 1, agreed: str = "", segments: tuple[str, ...] = (), max_campaigns: int = 100
    ) -> None:
        self.campaigns = parse_campaigns(agreed, "adserver")
        self.partition = Partition(Rules(), self.campaigns, segments)
        self.rollup = Rollup(WINDOWS_MS, self.campaigns)
        self.min_sample = min_sample
        self.max_campaigns = max_campaigns
        self._offset = 0

    def feed(self, topic: str, *events: Any) -> "Bench":
        offsets = range(self._offset, self._offset + len(events))
        self._offset = offsets.stop
        self.partition.apply(Batch(topic=topic, offsets=offsets, events=events, next_offset=self._offset))
        return self.tell()

    def tell(self) -> "Bench":
        renders = self.partition.progress[RENDERS]
        head = Head(0, self.partition.seq, 1, renders.stream_time, False, 0)
        self.rollup.apply(decode_partial(encode_partial(Partial(0, head, self.partition.cells()))))
        self.partition.take()
        return self

    def reading(self, quiet_ms: int = 0) -> Reading:
        lag = {(RENDERS, 0): 17}
        return Reading({0: self.partition}, {0: self.rollup}, lag, quiet_ms, 1.5, True, self.campaigns, 4)

    def page(self, quiet_ms: int = 0) -> str:
        shown = self.min_sample, self.max_campaigns
        collector = Collector(lambda: self.reading(quiet_ms), WINDOWS, "9.9", *shown, max_remembered=77)
        return page_of(collector.collect()).decode()

    def samples(self, quiet_ms: int = 0) -> list[Any]:
        families = text_string_to_metric_families(self.page(quiet_ms))
        return [sample for family in families for sample in family.samples]

    def value(self, name: str, quiet_ms: int = 0, **labels: str) -> float | None:
        found = [s.value for s in self.samples(quiet_ms) if s.name == name and s.labels == labels]
        assert len(found) <= 1
        return found[0] if found else None


def render(number: int, ts: int = T, campaign: str = "spring", price: str | None = "6", **more: Any) -> Render:
    (event,) = decoder(RENDERS)(
        [
            f'{{"impression_id":"imp-{number}","campaign_id":"{campaign}","ts":{ts}'
            f"{'' if price is None else f',{chr(34)}price{chr(34)}:{price}'}}}".encode()
        ]
    )
    assert isinstance(event, Render)
    for name, value in more.items():
        setattr(event, name, value)
    return event


def view(number: int, kind: Any = "viewable", ts: int = T + 1_000) -> Viewability:
    return Viewability(impression_id=f"imp-{number}", ts=ts, kind=kind)


def click(number: int) -> Click:
    return Click(impression_id=f"imp-{number}", ts=T + 2_000)


def all_sorts() -> Bench:
    bench = Bench(agreed="[campaigns.spring]\nviewability_target = 0.7", segments=("country",))
    bench.feed(RENDERS, render(1), render(2), render(3, source="dsp"), render(4, price=None))
    bench.feed(VIEWABILITY, view(1), view(2, "not_viewable"))
    return bench.feed(CLICKS, click(1))


def test_names_and_labels_are_those_of_the_contract() -> None:
    found = {sample.name: set(sample.labels) for sample in all_sorts().samples()}
    assert found == BUSINESS | PIPELINE


def test_all_outcomes_and_reasons_are_there_from_the_start_as_zero() -> None:
    samples = Bench().samples()
    outcomes = {(s.labels["topic"], s.labels["outcome"]): s.value for s in samples if s.name == "streams_events_total"}
    assert outcomes == {(topic, name): 0 for topic in (RENDERS, VIEWABILITY, CLICKS) for name in OUTCOME_NAMES}
    reasons = {s.labels["reason"]: s.value for s in samples if s.name == "streams_dead_letters_total"}
    assert reasons == dict.fromkeys(REASONS, 0)


def test_a_worker_that_owns_nothing_yet_does_not_guess_how_many_partitions_there_are() -> None:
    collector = Collector(lambda: Reading.nothing(Campaigns()), WINDOWS, "9", max_remembered=7)
    names = {family.name for family in collector.collect() if family}
    assert "streams_partitions_assigned" in names
    assert "streams_partitions" not in names


def test_the_worked_numbers_come_out() -> None:
    bench = Bench()
    bench.feed(RENDERS, *(render(n) for n in range(4_920)))
    bench.feed(VIEWABILITY, *(view(n, "viewable" if n < 3_180 else "not_viewable") for n in range(4_610)))
    in_usd = {"campaign": "spring", "currency": "USD", "window": "5m"}
    assert bench.value("ads_cpm", **in_usd) == 6
    assert bench.value("ads_vcpm", **in_usd) == pytest.approx(9.283019, abs=5e-7)
    in_window = {"campaign": "spring", "window": "5m"}
    assert bench.value("ads_viewable_rate", **in_window) == pytest.approx(0.68980477, abs=5e-9)
    assert bench.value("ads_viewable_of_served", **in_window) == pytest.approx(0.64634146, abs=5e-9)
    assert bench.value("ads_measured_rate", **in_window) == pytest.approx(0.93699187, abs=5e-9)
    assert bench.value("ads_spend_total", campaign="spring", currency="USD") == pytest.approx(29.52)


def test_a_ratio_without_denominator_has_no_series() -> None:
    found = {sample.name for sample in Bench().feed(RENDERS, render(1)).samples()}
    assert "ads_cpm" in found
    assert not {"ads_vcpm", "ads_cpc", "ads_viewable_rate"} & found


def test_a_ratio_below_the_smallest_sample_has_no_series() -> None:
    assert "ads_cpm" not in {s.name for s in Bench(min_sample=3).feed(RENDERS, render(1), render(2)).samples()}
    assert "ads_cpm" in {s.name for s in Bench(min_sample=2).feed(RENDERS, render(1), render(2)).samples()}


def test_price_0_is_a_price_and_no_price_has_no_cpm() -> None:
    bench = Bench().feed(RENDERS, render(1, price="0"), render(2, campaign="free", price=None))
    assert bench.value("ads_cpm", campaign="spring", currency="USD", window="1m") == 0
    assert bench.value("ads_window_served", campaign="free", currency="none", window="1m") == 1
    assert bench.value("ads_cpm", campaign="free", currency="none", window="1m") is None


def test_currencies_are_never_added_but_counts_of_a_campaign_are() -> None:
    bench = Bench().feed(RENDERS, render(1, price="2"), render(2, price="4", currency="EUR"))
    bench.feed(VIEWABILITY, view(1), view(2, "not_viewable"))
    assert bench.value("ads_cpm", campaign="spring", currency="USD", window="1m") == 2
    assert bench.value("ads_cpm", campaign="spring", currency="EUR", window="1m") == 4
    assert bench.value("ads_viewable_rate", campaign="spring", window="1m") == 0.5


def test_another_source_feeds_the_discrepancy_with_both_denominators_and_nothing_else() -> None:
    bench = Bench().feed(RENDERS, *(render(n) for n in range(8)), *(render(n, source="dsp") for n in range(10)))
    assert bench.value("ads_served_impressions_total", campaign="spring", currency="USD") == 8
    assert bench.value("ads_source_impressions_total", campaign="spring", source="dsp") == 10
    labels = {"campaign": "spring", "source": "dsp", "window": "1m"}
    assert bench.value("ads_discrepancy_ratio", of="source", **labels) == pytest.approx(0.2)
    assert bench.value("ads_discrepancy_ratio", of="billing", **labels) == pytest.approx(0.25)


def ratios(bench: Bench, source: str, window: str = "1m") -> tuple[float | None, float | None]:
    """(Of the source's, of the billing source's) of campaign spring."""
    labels = {"campaign": "spring", "source": source, "window": window}
    return tuple(bench.value("ads_discrepancy_ratio", of=of, **labels) for of in ("source", "billing"))  # type: ignore


def test_the_worked_reconciliation_comes_out_of_events() -> None:
    bench = Bench()
    for source, count in (("dsp", 5_200), ("ssp", 5_050), ("adserver", 4_920)):
        bench.feed(RENDERS, *(render(n, source=source) for n in range(count)))
    for window in WINDOWS:
        assert ratios(bench, "dsp", window) == (280 / 5_200, 280 / 4_920)
        assert ratios(bench, "ssp", window) == (130 / 5_050, 130 / 4_920)
    assert ratios(bench, "adserver") == (None, None), "who bills does not differ from itself"


def test_a_discrepancy_has_no_series_while_its_denominator_is_0_or_below_the_smallest_sample() -> None:
    both = [render(n, source="dsp") for n in range(10)], [render(n) for n in range(8)]
    assert ratios(Bench().feed(RENDERS, *both[0]), "dsp") == (1, None)
    for least, expected in ((8, (0.2, 0.25)), (9, (0.2, None)), (11, (None, None))):
        assert ratios(Bench(min_sample=least).feed(RENDERS, *both[0], *both[1]), "dsp") == expected


def test_a_source_that_falls_silent_is_all_of_the_difference_until_its_last_window_has_passed() -> None:
    bench = Bench().feed(RENDERS, render(1, source="dsp"), render(2))
    bench.feed(RENDERS, render(3, T + 90_000))
    assert (ratios(bench, "dsp"), ratios(bench, "dsp", "5m")) == ((None, -1), (-1, -0.5))
    bench.feed(RENDERS, render(4, T + 3_700_000))
    assert ratios(bench, "dsp", "1h") == (None, None)
    assert bench.value("ads_source_impressions_total", campaign="spring", source="dsp") == 1


def test_of_very_many_sources_those_that_count_most_are_shown() -> None:
    bench = Bench().feed(RENDERS, render(0), render(1, campaign="other", source="s0"))
    bench.feed(RENDERS, *(render(n, source=f"s{n % 30}") for n in range(30 + 25)))
    of_spring = [s for s in bench.samples() if s.labels.get("campaign") == "spring" and "source" in s.labels]
    found = {s.labels["source"] for s in of_spring if s.name == "ads_source_impressions_total"}
    assert found == {"adserver", *(f"s{n}" for n in (24, 9, 8, 7, 6, 5, 4, 3, 23, 22))}
    assert {s.labels["source"] for s in of_spring if s.name == "ads_discrepancy_ratio"} == found - {"adserver"}
    assert bench.value("ads_source_impressions_total", campaign="other", source="s0") == 1
    assert bench.value("streams_overflow_sources") == 20


def test_who_bills_is_said_for_each_campaign() -> None:
    bench = Bench(agreed='[campaigns.spring]\nbilling_source = "dsp"')
    both = [render(n + 10 * (name == "other"), campaign=name) for name in ("spring", "other") for n in range(8)]
    bench.feed(RENDERS, *both, *(render(n, source="dsp") for n in range(9)))
    assert bench.value("ads_served_impressions_total", campaign="spring", currency="USD") == 9
    assert bench.value("ads_served_impressions_total", campaign="other", currency="USD") == 8
    labels = {"campaign": "spring", "source": "adserver", "window": "1m"}
    assert bench.value("ads_discrepancy_ratio", of="source", **labels) == (8 - 9) / 8
    assert bench.value("ads_discrepancy_ratio", of="billing", **labels) == (8 - 9) / 9


def test_the_target_is_shown_beside_the_rate_and_ends_with_it() -> None:
    bench = Bench(agreed="[campaigns.spring]\nviewability_target = 0.7\n[campaigns.unseen]\nviewability_target = 0.5")
    assert bench.value("ads_viewability_target_ratio", campaign="spring") is None
    bench.feed(RENDERS, render(1))
    assert bench.value("ads_viewability_target_ratio", campaign="spring") == 0.7
    assert bench.value("ads_viewability_target_ratio", campaign="unseen") is None
    bench.feed(RENDERS, render(3, T + 3_700_000, "later"))
    assert bench.value("ads_viewability_target_ratio", campaign="spring") is None


def test_segments_cut_a_campaign_by_one_dimension_at_a_time() -> None:
    bench = Bench(segments=("country", "device"))
    events = [
        render(1, country="DE", device="phone"), render(2, country="DE", price=None), render(3, device="phone"),
        render(1, country="DE", source="dsp"),
    ]  # fmt: skip
    bench.feed(RENDERS, *events).feed(VIEWABILITY, view(1), view(2, "not_viewable")).feed(CLICKS, click(3))
    germany, phones, unknown = (
        {"campaign": "spring", "dimension": dimension, "value": value, "window": "1m"}
        for dimension, value in (("country", "DE"), ("device", "phone"), ("device", "unknown"))
    )
    names = ("served", "measurable", "viewable", "clicks", "viewable_rate")
    assert [bench.value(f"ads_segment_{name}", **germany) for name in names] == [2, 2, 1, 0, 0.5]
    assert [bench.value(f"ads_segment_{name}", **phones) for name in names] == [2, 1, 1, 1, 1]
    assert [bench.value(f"ads_segment_{name}", **unknown) for name in names] == [1, 1, 0, 0, 0]
    assert bench.value("ads_served_impressions_total", campaign="spring", currency="USD") == 2
    assert bench.value("ads_source_impressions_total", campaign="spring", source="adserver") == 3


def test_above_the_largest_number_of_campaigns_the_rest_is_one() -> None:
    bench = Bench(max_campaigns=2)
    bench.feed(RENDERS, *(render(n, campaign=f"c{n % 4}", price=str(n % 4)) for n in range(20)))
    bench.feed(RENDERS, render(20, campaign="c3"))
    bench.feed(RENDERS, render(21, campaign="c2"), render(22, campaign="c0", currency="EUR"))
    assert bench.value("streams_overflow_campaigns") == 2
    samples = bench.samples()
    shown = {s.labels["campaign"] for s in samples if s.name == "ads_window_served"}
    assert shown == {"c2", "c3", "_other"}
    assert {s.labels["campaign"] for s in samples if s.name == "ads_served_impressions_total"} == {"c2", "c3"}
    assert bench.value("ads_window_served", campaign="_other", currency="USD", window="1m") == 10
    assert bench.value("ads_cpm", campaign="_other", currency="USD", window="1m") == 0.5
    assert bench.value("ads_window_served", campaign="_other", currency="EUR", window="1m") == 1
    assert bench.value("ads_measured_rate", campaign="_other", window="1m") == 0


def test_what_is_over_the_cap_counts_and_is_counted_again() -> None:
    bench = Bench(agreed='[campaigns.spring]\nfrequency_cap = {impressions = 2, period = "1h"}')
    bench.feed(RENDERS, *(render(n, viewer_id="v", slot_id=str(n)) for n in range(5)))
    assert bench.value("ads_served_impressions_total", campaign="spring", currency="USD") == 5
    assert bench.value("ads_over_cap_impressions_total", campaign="spring", currency="USD") == 3


def test_windows_end_with_stream_time_and_a_campaign_ends_with_its_newest_pane() -> None:
    bench = Bench().feed(RENDERS, render(1), render(2, T + 90_000, "later"))
    assert bench.value("ads_window_served", campaign="spring", currency="USD", window="1m") == 0
    assert bench.value("ads_window_served", campaign="spring", currency="USD", window="5m") == 1
    bench.feed(RENDERS, render(3, T + 3_700_000, "later"))
    assert bench.value("ads_window_served", campaign="spring", currency="USD", window="1h") is None
    assert bench.value("ads_served_impressions_total", campaign="spring", currency="USD") == 1


def test_a_quiet_stream_moves_its_windows_on_at_the_scrape_and_changes_no_state() -> None:
    bench = Bench().feed(RENDERS, render(1))
    labels = {"campaign": "spring", "currency": "USD", "window": "1m"}
    assert bench.value("ads_window_served", quiet_ms=59_999, **labels) == 1
    assert bench.value("ads_window_served", quiet_ms=60_000, **labels) == 0
    assert bench.value("ads_window_served", quiet_ms=3_600_000, **labels) is None, "no gauge freezes"
    assert bench.value("ads_window_served", **labels) == 1
    (account,) = bench.rollup.accounts.by_series.values()
    assert bench.rollup.rolling(account).sums[0] == Cell(served=1, gross=1, spend=6_000_000, revision=1)


def test_consumed_is_the_sum_over_outcomes_and_what_is_pending() -> None:
    bench = all_sorts().feed(VIEWABILITY, view(77), view(1))
    outcomes = [s for s in bench.samples() if s.name == "streams_events_total" and s.labels["topic"] == VIEWABILITY]
    events = sum(s.value for s in outcomes)
    assert bench.value("streams_events_pending", topic=VIEWABILITY) == 1
    assert bench.value("streams_events_consumed_total", topic=VIEWABILITY) == events + 1 == 4


def test_hostile_campaign_names_stay_one_label() -> None:
    name = 'a"b\\c\nd,e="f"} 1 # TYPE x'
    bench = Bench()
    event = render(1)
    event.campaign_id = name
    bench.feed(RENDERS, event)
    assert bench.value("ads_served_impressions_total", campaign=name, currency="USD") == 1
