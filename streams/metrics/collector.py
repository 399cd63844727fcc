"""Every metric of the contract, read from the state when Prometheus asks.

Series end when their campaign ends, a ratio without denominator has no series, and known label sets start at 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from operator import itemgetter
from typing import Final

import numpy as np
from prometheus_client import disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from streams.core import rates
from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.events import NO_CURRENCY, TOPICS
from streams.core.panes import Cell
from streams.core.rates import Column, Columns
from streams.core.rules import OUTCOME_NAMES
from streams.core.traffic import INVALID_REASONS
from streams.metrics.exposition import Families, Labels, Table
from streams.metrics.reading import Line, Reading, by_campaign, in_steps, loudest, summed
from streams.wire.events import REASONS

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no types there

_Figures = Sequence[tuple[str, str, Callable[[Columns], Column]]]
"""Name, documentation, and what it is of many cells."""
_Rates = Sequence[tuple[str, str, rates.Rate]]

_TOTALS: Final[_Figures] = [
    ("ads_served_impressions", "Impressions that count", itemgetter("served")),
    ("ads_measurable_impressions", "Served impressions whose viewability was measured", itemgetter("measurable")),
    ("ads_viewable_impressions", "Measurable impressions that met the standard", itemgetter("viewable")),
    ("ads_clicks", "Clicks that count", itemgetter("clicks")),
    ("ads_spend", "What the served impressions cost, in currency units", rates.spend),
    ("ads_gross_impressions", "Served and invalid impressions", itemgetter("gross")),
    ("ads_declared_refresh_impressions", "Served impressions declared to be refreshes", itemgetter("declared")),
    ("ads_over_cap_impressions", "Served impressions beyond the frequency cap", itemgetter("over_cap")),
]
_WINDOWS: Final[_Figures] = [
    ("ads_window_served", "Impressions that count in the window", itemgetter("served")),
    ("ads_window_measurable", "Measurable impressions in the window", itemgetter("measurable")),
    ("ads_window_viewable", "Viewable impressions in the window", itemgetter("viewable")),
    ("ads_window_clicks", "Clicks of the window's impressions", itemgetter("clicks")),
    ("ads_window_spend", "What the window's impressions cost, in currency units", rates.spend),
]
_MONEY_RATES: Final[_Rates] = [
    ("ads_cpm", "Spend x 1000 / served, in currency units", rates.cpm),
    ("ads_vcpm", "Spend x 1000 / viewable, in currency units", rates.vcpm),
    ("ads_cpc", "Spend / clicks, in currency units", rates.cpc),
]
_COUNT_RATES: Final[_Rates] = [
    ("ads_viewable_rate", "Viewable / measurable, the MRC's viewable rate", rates.viewable_rate),
    ("ads_viewable_of_served", "Viewable / served", rates.viewable_of_served),
    ("ads_measured_rate", "Measurable / served", rates.measured_rate),
    ("ads_ctr", "Clicks / served", rates.ctr),
]
_SEGMENTS: Final[_Figures] = [
    ("ads_segment_served", "Impressions of the segment that count", itemgetter("served")),
    ("ads_segment_measurable", "Measurable impressions of the segment", itemgetter("measurable")),
    ("ads_segment_viewable", "Viewable impressions of the segment", itemgetter("viewable")),
    ("ads_segment_clicks", "Clicks of the segment's impressions", itemgetter("clicks")),
]
_SEGMENT_RATES: Final[_Rates] = [
    ("ads_segment_viewable_rate", "Viewable / measurable of the segment", rates.viewable_rate),
]


class Collector:
    """Reads the state at each scrape. `windows` are the names of the rolling windows, in the order of their sums."""

    def __init__(
        self,
        read: Callable[[], Reading],
        windows: tuple[str, ...],
        version: str,
        min_sample: int = 1,
        max_campaigns: int = 5_000,
        *,
        max_remembered: int,
    ) -> None:
        self._read = read
        self._windows = windows
        self._version = version
        self._min_sample = min_sample
        self._max_campaigns = max_campaigns
        self._max_remembered = max_remembered
        self._labels = Labels()

    def collect(self) -> Families:
        """Yield every metric family, and None where others may have their turn: a page takes long to write."""
        reading = self._read()
        lines = yield from in_steps(reading, self._max_campaigns)
        live = [line for line in (*lines.billed, *lines.others) if line.windows]
        campaigns = by_campaign(live)
        yield None
        yield from self._totals(lines.billed)
        columns = Columns([cell for line in live for cell in line.windows or ()])
        yield from self._window_gauges(live, columns)
        if len(campaigns) < len(live):  # else the cells of each campaign are those of its only line
            columns = Columns([cell for cells in campaigns.values() for cell in cells])
        yield from self._ratios(campaigns, columns)
        foreign, hidden = loudest(lines.foreign)
        yield from self._sources(lines.billed, foreign, campaigns)
        yield from self._segments(lines.segments)
        yield None
        yield _targets(reading.campaigns, campaigns)
        yield GaugeMetricFamily("streams_overflow_campaigns", "Campaigns that are shown as one, _other", lines.overflow)
        yield GaugeMetricFamily("streams_overflow_sources", "Sources of campaigns that are not shown", hidden)
        yield from _events(reading)
        yield from _partitions(reading)
        yield from self._worker(reading)

    def _totals(self, billed: list[Line]) -> Families:
        rows = ((line.series.campaign_id, line.series.currency) for line in billed)
        labels = yield from self._labels.texts(("campaign", "currency"), rows)
        totals = Columns([line.total for line in billed])
        yield None
        yield from _figures(_TOTALS, "counter", labels, totals)

    def _window_gauges(self, lines: list[Line], columns: Columns) -> Families:
        rows = ((line.series.campaign_id, line.series.currency) for line in lines)
        labels = yield from self._labels.texts(("campaign", "currency", "window"), rows, self._windows)
        yield from _figures(_WINDOWS, "gauge", labels, columns)
        is_priced = [line.series.currency != NO_CURRENCY for line in lines]
        if not all(is_priced):
            each = [one for one in is_priced for _ in self._windows]
            labels, columns = [*compress(labels, each)], columns.only(each)
        yield from self._rates(_MONEY_RATES, labels, columns)

    def _ratios(self, campaigns: Iterable[str], columns: Columns) -> Families:
        rows = ((campaign,) for campaign in campaigns)
        labels = yield from self._labels.texts(("campaign", "window"), rows, self._windows)
        yield from self._rates(_COUNT_RATES, labels, columns)

    def _rates(self, families: _Rates, labels: Sequence[bytes], columns: Columns) -> Families:
        for name, text, rate in families:
            yield Table(name, text, "gauge", labels, rate.of_all(columns, self._min_sample))
            yield None

    def _sources(self, billed: list[Line], foreign: list[Line], campaigns: Mapping[str, list[Cell]]) -> Families:
        totals: dict[tuple[str, str], int] = {}
        for line in (*billed, *foreign):
            place = line.series.campaign_id, line.series.source
            totals[place] = totals.get(place, 0) + line.total.served
        labels = yield from self._labels.texts(("campaign", "source"), totals)
        text = "Impressions that count, by who counted"
        yield Table("ads_source_impressions", text, "counter", labels, np.array([*totals.values()], np.int64))
        yield from self._discrepancies(campaigns, foreign)

    def _discrepancies(self, billing: Mapping[str, list[Cell]], foreign: list[Line]) -> Families:
        ratios: dict[tuple[str, ...], float | None] = {}
        for (campaign, source), cells in summed(foreign, lambda one: (one.campaign_id, one.source)).items():
            billed = billing.get(campaign, [Cell() for _ in cells])
            for window, cell, other in zip(self._windows, cells, billed, strict=True):
                for of, base in (("source", cell.served), ("billing", other.served)):
                    ratios[campaign, source, window, of] = rates.ratio(
                        cell.served - other.served, base, self._min_sample
                    )
        labels = yield from self._labels.texts(("campaign", "source", "window", "of"), ratios)
        text = "(Source - billing source) / one of the two, of impressions in the window"
        yield Table("ads_discrepancy_ratio", text, "gauge", labels, np.array([*ratios.values()], np.float64))

    def _segments(self, segments: list[Line]) -> Families:
        sums = summed(segments, lambda one: (one.campaign_id, one.dimension, one.value))
        labels = yield from self._labels.texts(("campaign", "dimension", "value", "window"), sums, self._windows)
        columns = Columns([cell for windows in sums.values() for cell in windows])
        yield None
        yield from _figures(_SEGMENTS, "gauge", labels, columns)
        yield from self._rates(_SEGMENT_RATES, labels, columns)

    def _worker(self, reading: Reading) -> Iterator[Metric]:
        if reading.recovery_seconds is not None:
            yield GaugeMetricFamily(
                "streams_recovery_duration_seconds", "How long the last recovery took", reading.recovery_seconds
            )
        yield GaugeMetricFamily(
            "streams_remembered_impressions",
            "Renders that later events may still refer to",
            sum(len(state.impressions) for state in reading.partitions.values()),
        )
        yield GaugeMetricFamily(
            "streams_remembered_bytes",
            "Memory that they take, with all that finds them",
            sum(state.impressions.size for state in reading.partitions.values()),
        )
        yield GaugeMetricFamily(
            "streams_max_remembered_impressions",
            "At so many, with what waits for its render, input is paused",
            self._max_remembered,
        )
        yield GaugeMetricFamily(
            "streams_partitions_assigned", "Partitions of viewers that this worker owns", len(reading.partitions)
        )
        if reading.partition_count is not None:
            yield GaugeMetricFamily(
                "streams_partitions", "Partitions of viewers that there are, owned or not", reading.partition_count
            )
        yield GaugeMetricFamily(
            "streams_up_to_date", "1 if all input was read to its end lately", float(reading.up_to_date)
        )
        build = GaugeMetricFamily("streams_build_info", "1, with the version as label", labels=["version"])
        build.add_metric([self._version], 1)
        yield build


def _figures(families: _Figures, kind: str, labels: Sequence[bytes], columns: Columns) -> Families:
    for name, text, figure in families:
        yield Table(name, text, kind, labels, figure(columns))
        yield None


def _targets(agreed: Campaigns, campaigns: Iterable[str]) -> Metric:
    """Targets of the campaigns that have gauges here: whoever shows the rate shows the target."""
    family = GaugeMetricFamily("ads_viewability_target_ratio", "The viewable rate that was agreed", labels=["campaign"])
    for name in campaigns:
        campaign = agreed.by_id.get(name)
        if campaign is not None and campaign.viewability_target is not None:
            family.add_metric([name], campaign.viewability_target)
    return family


def _events(reading: Reading) -> Iterator[Metric]:
    consumed = CounterMetricFamily("streams_events_consumed", "Records read", labels=["topic"])
    outcomes = CounterMetricFamily("streams_events", "Events by what became of them", labels=["topic", "outcome"])
    pending = GaugeMetricFamily("streams_events_pending", "Events that wait for their render", labels=["topic"])
    for topic in TOPICS:
        progress = [state.progress[topic] for state in reading.partitions.values()]
        waiting = sum(state.pending[topic] for state in reading.partitions.values())
        consumed.add_metric([topic], sum(one.consumed for one in progress) + waiting)
        pending.add_metric([topic], waiting)
        for number, outcome in enumerate(OUTCOME_NAMES):
            outcomes.add_metric([topic, outcome], sum(one.outcomes[number] for one in progress))
    yield from (consumed, outcomes, pending)
    letters = CounterMetricFamily("streams_dead_letters", "Records sent to dead-letters", labels=["reason"])
    for reason in REASONS:
        letters.add_metric([reason], sum(state.reasons.get(reason, 0) for state in reading.partitions.values()))
    yield letters
    invalid = CounterMetricFamily("streams_invalid_traffic", "Renders that are invalid traffic", labels=["reason"])
    for reason in INVALID_REASONS:
        invalid.add_metric([reason], sum(state.invalid[reason] for state in reading.partitions.values()))
    yield invalid
    unchecked = sum(state.unchecked for state in reading.partitions.values())
    yield CounterMetricFamily("streams_refresh_unchecked", "Renders that no refresh rule could be asked of", unchecked)


def _partitions(reading: Reading) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "streams_consumer_lag", "Records of a partition that are not applied", labels=["topic", "partition"]
    )
    for (topic, partition), records in reading.lag.items():
        lag.add_metric([topic, str(partition)], records)
    yield lag
    times = GaugeMetricFamily(
        "streams_stream_time_seconds", "The largest event time so far", labels=["topic", "partition"]
    )
    for partition, state in reading.partitions.items():
        for topic, progress in state.progress.items():
            if progress.stream_time != NEVER:
                times.add_metric([topic, str(partition)], progress.stream_time / 1000)
    yield times
