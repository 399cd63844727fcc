"""What several workers say on /metrics, added up.

Law: counts are added, and money of one currency; a ratio never is. Where one worker shows a ratio it is as it says,
where several do (`_other`) it is computed from what was added up, and where none does it is undefined.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from streams.core.events import TOPICS
from streams.core.rules import OUTCOME_NAMES

Key = tuple[str, ...]
Series = Mapping[Key, float]

_COUNTS: Final = ("served", "measurable", "viewable", "clicks", "spend")
_LABELS: Final[dict[str, tuple[str, ...]]] = {
    "ads_served_impressions_total": ("campaign", "currency"),
    "ads_spend_total": ("campaign", "currency"),
    **{f"ads_window_{name}": ("campaign", "currency") for name in _COUNTS},
    **{f"ads_{name}": ("campaign", "currency") for name in ("cpm", "vcpm")},
    **{f"ads_{name}": ("campaign",) for name in ("viewable_rate", "viewable_of_served", "measured_rate")},
    "streams_events_consumed_total": ("topic",),
    "streams_events_total": ("topic", "outcome"),
    "streams_events_pending": ("topic",),
    "streams_dead_letters_total": ("reason",),
    "streams_consumer_lag": ("topic", "partition"),
    "streams_stream_time_seconds": ("topic", "partition"),
    "streams_remembered_impressions": (),
    "streams_partitions_assigned": (),
    "streams_up_to_date": (),
    "streams_build_info": ("version",),
}
"""The metrics that are looked at, and the labels that tell their series apart beside the window."""
_LOOKED_AT: Final = tuple(f"{name}{end}" for name in _LABELS for end in ("{", " "))
_WINDOW: Final = re.compile(r'^ads_window_served\{.*,window="(\w+)"\} ', re.MULTILINE)
_MOST_WINDOWS: Final = 24


class PageError(ValueError):
    """A page that is no worker's /metrics."""


class Page(NamedTuple):
    """What one worker says: metric -> labels -> value, in one window."""

    series: Mapping[str, Series]

    def of(self, name: str) -> Series:
        """Return the series of a metric."""
        return self.series.get(name, {})


class Row(NamedTuple):
    """A campaign and currency. Money in currency units; None is undefined. Rates are the campaign's."""

    campaign: str
    currency: str
    served: float | None
    measurable: float | None
    viewable: float | None
    clicks: float | None
    spend: float | None
    cpm: float | None
    vcpm: float | None
    viewable_rate: float | None
    viewable_of_served: float | None
    measured_rate: float | None
    total_served: float | None
    total_spend: float | None


class Fleet(NamedTuple):
    """What workers say together."""

    workers: int
    rows: list[Row]
    events: Mapping[str, Mapping[str, int]]
    """Topic -> outcome -> events; with "pending"."""
    consumed: int
    dead_letters: int
    lag: int
    stream_time_s: float | None
    """The smallest one of renders, over all partitions."""
    remembered: int
    partitions: int
    up_to_date: bool


def windows_of(text: str) -> tuple[str, ...]:
    """Return the names of the windows on a page, in the worker's order; none before the first campaign."""
    return tuple(dict.fromkeys(found[1] for found in islice(_WINDOW.finditer(text), _MOST_WINDOWS)))


def page_of(text: str, window: str) -> Page:
    """Return what a page says of a window. Raises PageError if it is no page of a worker."""
    wanted = f'window="{window}"'
    lines = [
        line for line in text.split("\n") if line.startswith(_LOOKED_AT) and (wanted in line or 'window="' not in line)
    ]
    series: dict[str, dict[Key, float]] = defaultdict(dict)
    try:
        for family in text_string_to_metric_families("\n".join(lines)):
            for name, labels, value, *_ in family.samples:
                if labels.get("window", window) == window:
                    series[name][tuple(labels[label] for label in _LABELS[name])] = value
    except (ValueError, KeyError) as error:
        raise PageError(str(error)) from None
    if "streams_build_info" not in series:
        raise PageError("streams_build_info is missing")
    return Page(series)


def added(pages: list[Page]) -> Fleet:
    """Return what workers say together."""
    outcomes = _sums(pages, "streams_events_total")
    pending = _sums(pages, "streams_events_pending")
    times = [
        at for page in pages for (topic, _), at in page.of("streams_stream_time_seconds").items() if topic == "renders"
    ]
    return Fleet(
        workers=len(pages),
        rows=_rows(pages),
        events={
            topic: {name: int(outcomes.get((topic, name), 0)) for name in OUTCOME_NAMES}
            | {"pending": int(pending.get((topic,), 0))}
            for topic in TOPICS
        },
        consumed=_sum(pages, "streams_events_consumed_total"),
        dead_letters=_sum(pages, "streams_dead_letters_total"),
        lag=_sum(pages, "streams_consumer_lag"),
        stream_time_s=min(times, default=None),
        remembered=_sum(pages, "streams_remembered_impressions"),
        partitions=_sum(pages, "streams_partitions_assigned"),
        up_to_date=bool(pages) and all(all(page.of("streams_up_to_date").values()) for page in pages),
    )


def _sum(pages: list[Page], name: str) -> int:
    return int(sum(_sums(pages, name).values()))


def _sums(pages: Iterable[Page], name: str) -> dict[Key, float]:
    sums: dict[Key, float] = defaultdict(float)
    for page in pages:
        for key, value in page.of(name).items():
            sums[key] += value
    return dict(sums)


def _rows(pages: list[Page]) -> list[Row]:
    served, measurable, viewable, clicks, spend = (_sums(pages, f"ads_window_{name}") for name in _COUNTS)
    thousand = {key: value * 1000 for key, value in spend.items()}
    cpm, vcpm = _ratios(pages, "ads_cpm", thousand, served), _ratios(pages, "ads_vcpm", thousand, viewable)
    all_served, all_measurable, all_viewable = map(_over_currencies, (served, measurable, viewable))
    viewable_rate = _ratios(pages, "ads_viewable_rate", all_viewable, all_measurable)
    viewable_of_served = _ratios(pages, "ads_viewable_of_served", all_viewable, all_served)
    measured_rate = _ratios(pages, "ads_measured_rate", all_measurable, all_served)
    total_served = _sums(pages, "ads_served_impressions_total")
    total_spend = _sums(pages, "ads_spend_total")
    return [
        Row(
            campaign=key[0],
            currency=key[1],
            served=served.get(key),
            measurable=measurable.get(key),
            viewable=viewable.get(key),
            clicks=clicks.get(key),
            spend=spend.get(key),
            cpm=cpm.get(key),
            vcpm=vcpm.get(key),
            viewable_rate=viewable_rate.get(key[:1]),
            viewable_of_served=viewable_of_served.get(key[:1]),
            measured_rate=measured_rate.get(key[:1]),
            total_served=total_served.get(key),
            total_spend=total_spend.get(key),
        )
        for key in sorted(served.keys() | total_served.keys())
    ]


def _over_currencies(sums: Series) -> dict[Key, float]:
    totals: dict[Key, float] = defaultdict(float)
    for key, value in sums.items():
        totals[key[:1]] += value
    return totals


def _ratios(pages: list[Page], name: str, part: Series, whole: Series) -> dict[Key, float]:
    """Return a ratio of every series that any worker shows it of."""
    ratios: dict[Key, float] = {}
    for page in pages:
        for key, value in page.of(name).items():
            ratios[key] = part[key] / whole[key] if key in ratios else value
    return ratios


def ordered(rows: Sequence[Row], column: str, descending: bool) -> list[Row]:
    """Return rows by one of their figures; what is undefined comes last, equals by name."""
    value = attrgetter(column)
    known = [row for row in rows if value(row) is not None]
    return [*sorted(known, key=value, reverse=descending), *(row for row in rows if value(row) is None)]
