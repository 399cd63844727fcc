"""Synthetic traffic: an open loop of renders at scheduled times, seeded, with a truth that is known beforehand."""

import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from random import Random
from typing import Final, Literal

from streams.sources.schedule import PLACE_FREE_MS, Campaign, EventMaker, Mix, Plan, Scheduled, priced

SLOTS_A_PAGE: Final = 3
_CREATIVES = 4
_LEVEL = 0.2
"""How far a campaign's viewable share lies from the mean of all, at most, as a part of it."""


@dataclass(frozen=True)
class Drop:
    """A time in which a share of a campaign is multiplied by a factor. Times in ms from the start."""

    campaign_id: str
    start_ms: int
    end_ms: int
    factor: float
    share: Literal["viewable", "measurable"] = "viewable"


@dataclass(frozen=True)
class Rotation:
    """Every so often the next campaign drops for a while: the first one after `every_ms`. Times in ms."""

    every_ms: int
    length_ms: int
    factor: float


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Synthetic traffic. Campaigns are `campaign-1`, the biggest, and so on."""

    start_ms: int
    seed: int = 0
    rate: float = 1_000
    """Planned renders a second; refreshes, repeats and late events come beside them."""
    campaigns: int = 20
    viewers: int = 100_000
    skew: float = 1.0
    """Exponent of Zipf's law: the n-th campaign has 1 / n ** skew of the first one's renders; 0 is even."""
    cpm_nano: int = 2_071_000_000
    """Mean of the campaigns' CPM, in nano-units."""
    currencies: Sequence[str] = ("USD",)
    """Dealt out to the campaigns in turn."""
    mix: Mix = field(default_factory=Mix)
    drops: Sequence[Drop] = ()
    rotation: Rotation | None = None

    def events(self) -> Iterator[Scheduled]:
        """Yield events without end, in order of time."""
        return EventMaker(self.mix, Random(f"{self.seed} events")).events(self.plans())

    def span_ms(self, events: int) -> int:
        """Return a time in which at least so many events come."""
        return math.ceil(events * 1000 / self.rate)

    def plans(self) -> Iterator[Plan]:
        """Yield planned renders without end: pages of three slots, each page with one viewer.

        Viewers come in turn, so that one comes back after all others; with as many rounds of slots as it takes, a
        viewer meets a slot again only when its place is free.
        """
        rounds = 1 + math.ceil(PLACE_FREE_MS / 1000 * self.rate / (self.viewers * SLOTS_A_PAGE))
        stride = _coprime_near(self.viewers, 0.618)
        tag = f"{self.seed:x}-{self.start_ms:x}"
        picker = _Picker(self)
        for number in count():
            at_ms = self.start_ms + int(number * 1000 / self.rate)
            page, position = divmod(number, SLOTS_A_PAGE)
            turn, place = divmod(page, self.viewers)
            campaign, creative, viewable, measurable = picker.pick(at_ms)
            yield Plan(
                at_ms,
                f"{tag}-{number}",
                campaign,
                f"{tag}-v{place * stride % self.viewers}",
                f"{tag}-p{page}",
                f"slot-{turn % rounds * SLOTS_A_PAGE + position + 1}",
                creative,
                viewable,
                measurable=measurable,
            )


class _Picker:
    """Chooses the campaign of each render, and knows how likely it is viewable and measurable at that time."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._chance = Random(f"{traffic.seed} campaigns").random
        weights = [1 / rank**traffic.skew for rank in range(1, traffic.campaigns + 1)]
        self._bounds = [bound / sum(weights) for bound in accumulate(weights)]
        self._campaigns = make_campaigns(
            [f"campaign-{rank}" for rank in range(1, traffic.campaigns + 1)],
            traffic.currencies,
            traffic.cpm_nano,
            Random(f"{traffic.seed} prices"),
        )
        self._levels = viewable_levels(weights, traffic.mix.viewable, Random(f"{traffic.seed} levels"))
        self._second = -1
        self._viewable = self._levels
        self._measurable = [1.0] * traffic.campaigns

    def pick(self, at_ms: int) -> tuple[Campaign, str, float, float]:
        """Return the campaign of a render at this time, its creative, and what `Plan` calls viewable and measurable."""
        second = (at_ms - self._traffic.start_ms) // 1000
        if second != self._second:
            self._second = second
            now = second * 1000
            self._viewable = [
                level * self._dropped("viewable", i, now) * self._rotated(i, now)
                for i, level in enumerate(self._levels)
            ]
            self._measurable = [self._dropped("measurable", i, now) for i in range(len(self._levels))]
        index = min(bisect(self._bounds, self._chance()), len(self._campaigns) - 1)
        campaign = self._campaigns[index]
        creative = f"{campaign.campaign_id}-creative-{int(self._chance() * _CREATIVES) + 1}"
        return campaign, creative, self._viewable[index], self._measurable[index]

    def _dropped(self, share: str, index: int, elapsed_ms: int) -> float:
        name = self._campaigns[index].campaign_id
        return math.prod(
            drop.factor
            for drop in self._traffic.drops
            if drop.share == share and drop.campaign_id == name and drop.start_ms <= elapsed_ms < drop.end_ms
        )

    def _rotated(self, index: int, elapsed_ms: int) -> float:
        rotation = self._traffic.rotation
        if rotation is None:
            return 1.0
        turn, into = divmod(elapsed_ms, rotation.every_ms)
        its_turn = turn and (turn - 1) % len(self._campaigns) == index and into < rotation.length_ms
        return rotation.factor if its_turn else 1.0


def make_campaigns(names: Sequence[str], currencies: Sequence[str], cpm_nano: int, random: Random) -> list[Campaign]:
    """Return campaigns with a price level each, whose mean is the CPM given, in all forms that prices have."""
    levels = [random.uniform(0.3, 1.7) for _ in names]
    mean = sum(levels) / len(levels)
    return [
        priced(name, currencies[index % len(currencies)], round(cpm_nano / 1000 * level / mean), index)
        for index, (name, level) in enumerate(zip(names, levels, strict=True))
    ]


def viewable_levels(weights: Sequence[float], viewable: float, random: Random) -> list[float]:
    """Return a viewable share for each campaign, around a mean that is right for their weights."""
    raw = [random.uniform(-1, 1) for _ in weights]
    mean = sum(w * r for w, r in zip(weights, raw, strict=True)) / sum(weights)
    room = min(viewable, 1 - viewable) * _LEVEL / 2
    return [viewable + (r - mean) * room for r in raw]


def _coprime_near(size: int, part: float) -> int:
    """Return a step that visits all of so many places once, about this part of them wide."""
    return next(step for step in range(max(1, int(size * part)), size + 2) if math.gcd(step, size) == 1)
