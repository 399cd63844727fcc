"""What campaigns cost, who bills them, and how often one viewer may see them: the words of `campaigns.toml`.

Law: terms hold from their time on. What has begun is history: a later file may add to what lies ahead, and change
nothing before. So a recount with the same file gives the same money.
"""

from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Final, Literal

import msgspec
import xxhash

from streams.core.events import DEFAULT_CURRENCY, DEFAULT_SOURCE
from streams.core.impressions import PER_CLICK, PER_VIEWABLE
from streams.core.money import MAX_PRICE, NANO, PriceError, impression_nano, parse_decimal
from streams.core.panes import Series

Model = Literal["cpm", "vcpm", "cpc", "flat"]

BASIS: Final[Mapping[Model, int]] = {"cpm": 0, "vcpm": PER_VIEWABLE, "cpc": PER_CLICK, "flat": 0}
"""What is paid for, as bits that a row is born with: each impression, each viewable one, or each click."""


class Terms(msgspec.Struct, frozen=True):
    """A pricing model and what one of what is paid for costs, in nano-units, for renders from a time on."""

    since_ms: int
    model: Model
    nano: int


class Cap(msgspec.Struct, frozen=True):
    """How many impressions a viewer should see in each period; periods are aligned to the epoch."""

    impressions: int
    period_ms: int


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """All that is agreed for one campaign; `terms` in the order of their times, each time once."""

    name: str = ""
    currency: str = DEFAULT_CURRENCY
    billing_source: str | None = None
    cap: Cap | None = None
    viewability_target: float | None = None
    terms: tuple[Terms, ...] = ()

    def terms_at(self, ts_ms: int) -> Terms | None:
        """Return the terms that hold for a render of this time; None before the first."""
        return next((terms for terms in reversed(self.terms) if terms.since_ms <= ts_ms), None)

    def history(self, until_ms: int) -> list[object]:
        """Return all that has counted up to a moment; nothing for a campaign whose first terms lie ahead of it."""
        begun = [terms for terms in self.terms if terms.since_ms <= until_ms]
        if not begun and (self.terms or (self.cap is None and self.billing_source is None)):
            return []
        return [self.currency, self.billing_source, self.cap, begun]


class Campaigns:
    """The campaigns of one file by their ids; those that are not in it cost what their renders say."""

    def __init__(
        self, by_id: Mapping[str, Campaign] = MappingProxyType({}), billing_source: str = DEFAULT_SOURCE
    ) -> None:
        self.by_id = dict(by_id)
        self.billing_source = billing_source
        """Who bills a campaign for which nothing else is agreed."""
        self._times = sorted({terms.since_ms for campaign in self.by_id.values() for terms in campaign.terms})
        self._digests: dict[int, str] = {}

    def billing_source_of(self, campaign_id: str) -> str:
        """Return the source whose counts of a campaign are billed."""
        campaign = self.by_id.get(campaign_id)
        return self.billing_source if campaign is None else campaign.billing_source or self.billing_source

    def name_of(self, campaign_id: str) -> str:
        """Return what people call a campaign; empty where nothing is agreed."""
        campaign = self.by_id.get(campaign_id)
        return "" if campaign is None else campaign.name

    def is_billed(self, series: Series) -> bool:
        """Say whether these are a campaign's figures: not a segment's, nor those of a source that does not bill it."""
        return not series.dimension and series.source == self.billing_source_of(series.campaign_id)

    def history(self, until_ms: int) -> dict[str, list[object]]:
        """Return, by campaign, what has counted up to a moment."""
        histories = {name: campaign.history(until_ms) for name, campaign in sorted(self.by_id.items())}
        return {name: history for name, history in histories.items() if history}

    def digest(self, until_ms: int) -> str:
        """Return a hash of the history up to a moment: two files with the same one have counted alike until then."""
        begun = bisect_right(self._times, until_ms)
        if begun not in self._digests:
            self._digests[begun] = xxhash.xxh3_64_hexdigest(msgspec.msgpack.encode(self.history(until_ms)))
        return self._digests[begun]

    def rewritten_by(self, other: "Campaigns", until_ms: int) -> list[str]:
        """Return the ids of campaigns for which another file would change what has counted up to a moment."""
        mine, theirs = self.history(until_ms), other.history(until_ms)
        return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


def priced(since_ms: int, model: Model, price: str) -> Terms:
    """Return terms of a price: for a thousand (cpm, vcpm) or each click (cpc). Raises PriceError."""
    cost = impression_nano(b'"%s"' % price.encode(), "impression" if model == "cpc" else "cpm")
    assert cost is not None
    return Terms(since_ms, model, cost)


def flat(since_ms: int, cost: str, booked: int) -> Terms:
    """Return terms of one sum for all booked impressions: each costs its share, those beyond too. Raises PriceError."""
    share = Fraction(parse_decimal(cost)) / booked
    if not 0 <= share <= MAX_PRICE:
        raise PriceError("not between 0 and 1,000,000 an impression")
    return Terms(since_ms, "flat", round(share * NANO))


class Caps:
    """How many counted impressions of a capped campaign each viewer saw, by period.

    A journal record carries the counts that changed, whole. The newest record of a count is kept as long as the
    count: `carry` lets a later record say it again, so that no record is kept for a count that seldom changes.
    """

    def __init__(self) -> None:
        self.counts: dict[int, dict[int, int]] = {}
        """End of a period in ms -> key of (source, campaign, viewer) -> impressions in that period."""
        self._changed: set[tuple[int, int]] = set()
        self._told: dict[tuple[int, int], int] = {}
        """(end, key) -> number of the newest journal record that says its count."""
        self._tells: dict[int, set[tuple[int, int]]] = {}
        """Number of a journal record -> what it alone says."""

    def add(self, key: int, cap: Cap, ts_ms: int) -> bool:
        """Count an impression; say whether it is over the cap. How many are does not depend on their order."""
        end = ts_ms - ts_ms % cap.period_ms + cap.period_ms
        counts = self.counts.setdefault(end, {})
        counts[key] = counts.get(key, 0) + 1
        self._changed.add((end, key))
        return counts[key] > cap.impressions

    def take(self, seq: int) -> list[tuple[int, int, int]]:
        """Return (end, key, count) of what changed, for the journal record of this number."""
        told = [(end, key, self.counts[end][key]) for end, key in sorted(self._changed)]
        self._changed = set()
        self.tell(seq, told)
        return told

    def tell(self, seq: int, told: list[tuple[int, int, int]]) -> None:
        """Repeat what a journal record says."""
        for end, key, count in told:
            self.counts.setdefault(end, {})[key] = count
            place = (end, key)
            self._silence(place)
            self._told[place] = seq
            self._tells.setdefault(seq, set()).add(place)

    def carry(self, seq: int) -> bool:
        """Let the next record say again what this one alone says; return whether there is such."""
        alone = self._tells.get(seq, set())
        self._changed |= alone
        return bool(alone)

    def forget(self, before_ms: int) -> None:
        """Forget the periods in which no impression can be counted any more."""
        for end in [end for end in self.counts if end <= before_ms]:
            for key in self.counts.pop(end):
                self._silence((end, key))
                self._changed.discard((end, key))

    def _silence(self, place: tuple[int, int]) -> None:
        seq = self._told.pop(place, None)
        if seq is not None:
            self._tells[seq].discard(place)
            if not self._tells[seq]:
                del self._tells[seq]
