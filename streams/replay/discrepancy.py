"""The counts of all sources of a campaign and day side by side: from events, counted again, and from reports.

Law: a report's day is compared with the same day of its own time zone, and each count with that of the one source that
bills; nothing is averaged. Where nobody says anything there is nothing: no count is invented.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from streams.core.campaigns import Campaigns
from streams.core.discrepancy import Band, Count, Differences, Parts, Place, Said, band, bounds
from streams.core.events import NO_CURRENCY
from streams.core.panes import Cell
from streams.core.reported import ReportedCount
from streams.core.rules import OUTCOME_NAMES, Outcome
from streams.replay.audit import Sayings
from streams.replay.recount import Sums, day_of, end_of, start_of


class Who(NamedTuple):
    """Who says something, and where it is read: in its events, counted by the rules, or in its report."""

    source: str
    origin: Literal["events", "report"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What one source says of a campaign and day, beside what the billing source says."""

    who: Who
    count: Count
    difference: int | None = None
    """Its impressions less those of who bills; None of that one itself, and where one of the two says none."""
    band: Band | None = None
    parts: Parts | None = None
    """What is measured of the difference; None unless the events of both share their ids."""
    bounds: Mapping[str, int] = field(default_factory=dict)
    """How much of what is unexplained each reason can be, at most."""


@dataclass(frozen=True, kw_only=True)
class Day:
    """One campaign and day of a time zone; `start` and `end` in ms since the epoch."""

    campaign_id: str
    day: date
    zone: str
    start: int
    end: int
    billing_source: str
    billing: Who | None
    """Whose count the others are compared with: the billing source's events, else its report; None without both."""
    compared: list[Compared]
    """All that is said of it, also by who bills; who counts most comes first."""


class Audit:
    """What events say, in the days of one time zone."""

    def __init__(self, sums: Sums, sayings: Sayings, billing_source_of: Callable[[str], str]) -> None:
        self.differences = Differences(billing_source_of)
        self._refused: dict[Place, dict[str, int]] = {place: {} for place in sayings.places}
        self._cells: dict[Place, dict[str, Cell]] = defaultdict(dict)
        for said, impressions in sayings.distinct():
            self.differences.add(said, impressions)
            self._note_refused(said, impressions)
        for (series, start), cell in sums.items():
            self._cells[Place(series.campaign_id, series.source, start)][series.currency] = cell
        self._spans = _spans(sayings.places)
        self._sources: dict[str, set[str]] = defaultdict(set)
        for place in sayings.places:
            self._sources[place.campaign_id].add(place.source)

    def _note_refused(self, said: Iterable[Said], impressions: int) -> None:
        for place, outcome, times in said:
            if outcome != Outcome.COUNTED:
                refused, name = self._refused[place], OUTCOME_NAMES[outcome]
                refused[name] = refused.get(name, 0) + times * impressions

    def days(self) -> set[tuple[str, int]]:
        """Return the campaigns and days of which anybody says anything."""
        return {(place.campaign_id, place.day) for place in self._refused}

    def counts(self, campaign_id: str, day: int) -> dict[Who, Count]:
        """Return what each source that knows a campaign says of a day: 0 where it is silent between two of its days."""
        places = [Place(campaign_id, source, day) for source in sorted(self._sources.get(campaign_id, ()))]
        return {Who(place.source, "events"): self._count(place) for place in places if self._is_within(place)}

    def parts(self, campaign_id: str, day: int, who: Who, billing: Who) -> Parts | None:
        """Return what is measured of a difference; None unless both have events with the same ids."""
        if {who.origin, billing.origin} != {"events"}:
            return None
        return self.differences.of(Place(campaign_id, who.source, day))

    def _is_within(self, place: Place) -> bool:
        first, last = self._spans[place.source]
        return first <= place.day <= last

    def _count(self, place: Place) -> Count:
        cells = self._cells.get(place, {})
        total = Cell()
        for cell in cells.values():
            total.add(cell)
        return Count(
            impressions=total.served,
            measurable=total.measurable,
            viewable=total.viewable,
            clicks=total.clicks,
            cells={currency: cell for currency, cell in sorted(cells.items()) if currency != NO_CURRENCY},
            refused=self._refused.get(place, {}),
        )


def _spans(places: Iterable[Place]) -> dict[str, tuple[int, int]]:
    """Return the first and the last day on which each source says anything."""
    spans: dict[str, tuple[int, int]] = {}
    for place in places:
        first, last = spans.get(place.source, (place.day, place.day))
        spans[place.source] = min(first, place.day), max(last, place.day)
    return spans


class Reports:
    """The newest reported counts of each source, campaign and day."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str, str], dict[str | None, ReportedCount]] = {}

    def add(self, count: ReportedCount) -> None:
        """Let a count replace what was reported before of the same campaign and day, by currency.

        A report with money also replaces one without, and the other way round: it is the same report again.
        """
        known = self._newest.setdefault((count.campaign_id, count.source, count.date), {})
        for currency in [other for other in known if (other is None) != (count.currency is None)]:
            del known[currency]
        known[count.currency] = count

    def zones(self) -> set[str]:
        """Return in which time zones the days lie."""
        return {count.time_zone for counts in self._newest.values() for count in counts.values()}

    def counts(self, zone: str) -> dict[tuple[str, int], dict[str, Count]]:
        """Return, by campaign and start of the day in ms, what each source reports in a time zone."""
        found: dict[tuple[str, int], dict[str, Count]] = defaultdict(dict)
        for (campaign_id, source, day), counts in self._newest.items():
            here = [count for count in counts.values() if count.time_zone == zone]
            if here:
                found[campaign_id, start_of(date.fromisoformat(day), ZoneInfo(zone))][source] = _reported(here)
        return found


def _reported(counts: list[ReportedCount]) -> Count:
    """Return what a report says in several currencies as one count: counts are added, money is not."""
    return Count(
        impressions=_sum(count.impressions for count in counts),
        measurable=_sum(count.measurable for count in counts),
        viewable=_sum(count.viewable for count in counts),
        clicks=_sum(count.clicks for count in counts),
        cells={
            count.currency: Cell(count.impressions or 0, 0, count.viewable or 0, count.clicks or 0, count.spend)
            for count in sorted(counts, key=lambda one: one.currency or "")
            if count.currency is not None and count.spend is not None
        },
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    told = [count for count in counts if count is not None]
    return sum(told) if told else None


# --- side by side -----------------------------------------------------------------------------------------------------


def days_compared(
    zone: str, audit: Audit, reports: Reports, campaigns: Campaigns, min_sample: int = 1
) -> Iterator[Day]:
    """Yield each campaign and day of a time zone of which anybody says anything, in order."""
    reported, clock = reports.counts(zone), ZoneInfo(zone)
    for campaign_id, start in sorted(audit.days() | reported.keys()):
        counts = audit.counts(campaign_id, start) | {
            Who(source, "report"): count for source, count in reported.get((campaign_id, start), {}).items()
        }
        biller = campaigns.billing_source_of(campaign_id)
        billing = next((who for who in (Who(biller, "events"), Who(biller, "report")) if who in counts), None)
        compared = [
            _compared(who, count, counts[billing], audit.parts(campaign_id, start, who, billing), min_sample)
            if billing is not None and who != billing
            else Compared(who=who, count=count)
            for who, count in counts.items()
        ]
        day = day_of(start, clock)
        yield Day(
            campaign_id=campaign_id,
            day=day,
            zone=zone,
            start=start,
            end=end_of(day, clock),
            billing_source=biller,
            billing=billing,
            compared=sorted(compared, key=_most_first),
        )


def _compared(who: Who, count: Count, billing: Count, parts: Parts | None, min_sample: int) -> Compared:
    if count.impressions is None or billing.impressions is None:
        return Compared(who=who, count=count)
    difference = count.impressions - billing.impressions
    return Compared(
        who=who,
        count=count,
        difference=difference,
        band=band(count.impressions, billing.impressions, min_sample),
        parts=parts,
        bounds=bounds(count, billing, parts),
    )


def _most_first(one: Compared) -> tuple[int, Who]:
    return 1 if one.count.impressions is None else -one.count.impressions, one.who
