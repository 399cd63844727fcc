"""How far two systems' counts of one campaign and day lie apart, and how much of that is explained.

Law: the parts of a difference add up to it, to the impression. A part is measured if events of both sources say it of
impressions that they give the same id; what is merely possible is a bound, and belongs to no sum.

    impression    adserver      dsp                        the difference dsp - adserver
    a             counted       counted                      0
    b             refresh       counted                     +1 refresh
    c             counted       counted, a day later        -1 other day, and +1 on that day
    d                           counted                     +1 counted by dsp only
    e             counted                                   -1 counted by adserver only
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from streams.core.panes import Cell
from streams.core.rules import OUTCOME_NAMES, Outcome

USUAL_PERCENT: Final = 5
BROKEN_PERCENT: Final = 15
"""Systems differ by 5 to 15 % for honest reasons; above that something is broken (README, discrepancy)."""

OTHER_DAY: Final = "other_day"
"""Both count the impression, but on different days: they do so at different moments."""
MOMENT: Final = "moment"
"""One counts at a moment that the other's impression does not reach."""
VIEWABILITY: Final = "viewability"
"""One counts only what was seen."""

REFUSALS: Final = (Outcome.FUTURE, Outcome.LATE, Outcome.DUPLICATE, Outcome.INVALID_TRAFFIC, Outcome.REFRESH)
"""Why a render does not count, in the order of the rules: the first that fits explains an impression."""
REASONS: Final = (OTHER_DAY, *(OUTCOME_NAMES[outcome] for outcome in REFUSALS))
"""All that can be measured of a difference."""

Band = Literal["below", "normal", "above"]


def band(count: int, billing: int, min_sample: int = 1) -> Band | None:
    """Say where the difference of two counts lies, as a share of either: below 5 %, 5 to 15 %, or above.

    The larger share decides, as it does for the alert; None where neither count is a denominator.
    """
    bases = [base for base in (count, billing) if base >= max(min_sample, 1)]
    if not bases:
        return None
    percents, base = abs(count - billing) * 100, min(bases)
    if percents < USUAL_PERCENT * base:
        return "below"
    return "normal" if percents <= BROKEN_PERCENT * base else "above"


# --- what sources say of one impression -------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a render is counted: campaign, who counted, and the start of the day in ms."""

    campaign_id: str
    source: str
    day: int


class Said(NamedTuple):
    """How often one impression had one outcome in one place."""

    place: Place
    outcome: int
    times: int


class Parts(msgspec.Struct):
    """What the events of two sources say of a difference, of one campaign and day; source less billing source."""

    explained: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    only_source: int = 0
    """Impressions that the source counted and of which the billing source has no render,"""
    only_billing: int = 0
    """and the other way round."""

    @property
    def unexplained(self) -> int:
        """What the two have alone, as it goes into the difference."""
        return self.only_source - self.only_billing

    @property
    def difference(self) -> int:
        """The sum of all parts."""
        return sum(self.explained.values()) + self.unexplained


class _Side:
    """What one source says of one impression: how often it counted it on which day, and why not."""

    def __init__(self) -> None:
        self.counted: dict[int, int] = defaultdict(int)
        self.refused: dict[int, int] = defaultdict(int)

    def add(self, said: Said) -> None:
        if said.outcome == Outcome.COUNTED:
            self.counted[said.place.day] += said.times
        else:
            self.refused[said.outcome] += said.times


_NOTHING: Final = _Side()


class Differences:
    """The parts of the differences between all sources and the one that bills, gathered impression by impression."""

    def __init__(self, billing_source_of: Callable[[str], str]) -> None:
        self._billing_source_of = billing_source_of
        self._parts: dict[Place, Parts] = defaultdict(Parts)
        self._billed: dict[tuple[str, int], int] = defaultdict(int)
        """(Campaign, day) -> impressions that the billing source counted,"""
        self._met: dict[Place, int] = defaultdict(int)
        """and by place of another source, how many of these it has a render of as well."""
        self._shared: set[tuple[str, str]] = set()

    def add(self, said: Iterable[Said], impressions: int) -> None:
        """Take note of so many impressions of one campaign of which the same was said."""
        sides: dict[str, _Side] = defaultdict(_Side)
        campaign_id = ""
        for one in said:
            campaign_id = one.place.campaign_id
            sides[one.place.source].add(one)
        billing = sides.pop(self._billing_source_of(campaign_id), _NOTHING)
        for day, times in billing.counted.items():
            self._billed[campaign_id, day] += times * impressions
        for source, side in sides.items():
            if billing is not _NOTHING:
                self._shared.add((campaign_id, source))
            for day, times in billing.counted.items():
                self._met[Place(campaign_id, source, day)] += times * impressions
            for day, reason, times in _surplus(side, billing):
                self._note(Place(campaign_id, source, day), reason, times * impressions)

    def _note(self, place: Place, reason: str | None, times: int) -> None:
        parts = self._parts[place]
        if reason is not None:
            parts.explained[reason] += times
        elif times > 0:
            parts.only_source += times
        else:
            parts.only_billing -= times

    def of(self, place: Place) -> Parts | None:
        """Return the parts of a difference; None if the two sources give no impression the same id."""
        if (place.campaign_id, place.source) not in self._shared:
            return None
        known = self._parts.get(place, Parts())
        unmet = self._billed.get((place.campaign_id, place.day), 0) - self._met.get(place, 0)
        return Parts(dict(known.explained), known.only_source, known.only_billing + unmet)


def _surplus(side: _Side, billing: _Side) -> Iterator[tuple[int, str | None, int]]:
    """Yield (day, reason or None, how many more) of what one counted of an impression and the other did not."""
    days = side.counted | billing.counted
    more = {day: side.counted.get(day, 0) - billing.counted.get(day, 0) for day in days}
    plus = {day: times for day, times in sorted(more.items()) if times > 0}
    minus = {day: -times for day, times in sorted(more.items()) if times < 0}
    both = min(sum(plus.values()), sum(minus.values()))
    for surplus, other, sign in ((plus, billing, 1), (minus, side, -1)):
        reasons = _reasons(both, other.refused)
        for day, times in surplus.items():
            for reason, part in _dealt(times, reasons):
                yield day, reason, sign * part


def _reasons(moved: int, refused: Mapping[int, int]) -> list[tuple[str, int]]:
    """Return what the other side says of an impression that it did not count there, last reason first."""
    refusals = [(OUTCOME_NAMES[outcome], refused.get(outcome, 0)) for outcome in REFUSALS]
    return [(reason, times) for reason, times in reversed([(OTHER_DAY, moved), *refusals]) if times]


def _dealt(times: int, reasons: list[tuple[str, int]]) -> Iterator[tuple[str | None, int]]:
    """Deal so many impressions out to reasons, taken off the end of the list; what is left has none."""
    while times and reasons:
        reason, there = reasons.pop()
        part = min(times, there)
        if part < there:
            reasons.append((reason, there - part))
        times -= part
        yield reason, part
    if times:
        yield None, times


# --- what can only be bounded -----------------------------------------------------------------------------------------


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """What one source says of one campaign and day; None is what it does not say."""

    impressions: int | None = None
    measurable: int | None = None
    viewable: int | None = None
    clicks: int | None = None
    cells: Mapping[str, Cell] = {}
    """Its figures by the currency that they cost."""
    refused: Mapping[str, int] | None = None
    """Its renders that did not count, by reason; None of a reported count."""

    def figures(self) -> Cell:
        """Return its counts as a cell, without money: what it does not say is 0, and has no ratio."""
        counts = (self.impressions, self.measurable, self.viewable, self.clicks)
        return Cell(*(count or 0 for count in counts))


def bounds(count: Count, billing: Count, parts: Parts | None) -> dict[str, int]:
    """Return how much of what is unexplained each reason can be, at most. Both say how many impressions.

    The side that has less may have refused what the other counted, or count only what was seen. Where parts were
    measured, refusals are not among what is left. Anything at all can be the moment.
    """
    assert count.impressions is not None and billing.impressions is not None
    left = count.impressions - billing.impressions if parts is None else parts.unexplained
    more, less = (count, billing) if left > 0 else (billing, count)
    limits = {MOMENT: abs(left)}
    if parts is None and less.refused is not None:
        limits |= less.refused
    if more.impressions and more.measurable and more.viewable is not None:
        limits[VIEWABILITY] = more.impressions - more.viewable
    return {reason: min(limit, abs(left)) for reason, limit in limits.items() if min(limit, abs(left)) > 0}
