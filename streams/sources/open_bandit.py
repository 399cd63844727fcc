"""The Open Bandit log as events: real impressions and clicks at their real distances in time.

Real: times, campaigns with their policy, creatives, slots, clicks. Synthetic, because the log does not have them:
price, viewability, viewers, and all that goes wrong. They are seeded and follow the rates of a publisher's month:
measured 95.48 %, viewable 39.93 % of it, between 37.42 % and 41.92 % from day to day, CPM 2.071.
"""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import count
from random import Random
from typing import Final, NamedTuple

from streams.sources.schedule import PLACE_FREE_MS, Campaign, EventMaker, Mix, Plan, Scheduled
from streams.sources.synthetic import make_campaigns, viewable_levels

FASTEST: Final = 10_000
"""Largest speed: a viewer returns in the next pass through the log, and that must not look like a refresh."""

_LOWEST_DAY, _HIGHEST_DAY = 0.3742, 0.4192
_DAY_US = 86_400_000_000


class Row(NamedTuple):
    """One impression of the log; its time in microseconds since the log's first one."""

    elapsed_us: int
    day: int
    campaign: str
    item_id: str
    position: str
    clicked: bool


@cache
def rows() -> tuple[Row, ...]:
    """Return the log in order of time."""
    packaged = files("streams.sources") / "data" / "open_bandit.csv.gz"
    with packaged.open("rb") as raw, gzip.open(raw, "rt", newline="") as text:
        lines = [(int(line["timestamp_us"]), line) for line in csv.DictReader(text)]
    first = lines[0][0]
    return tuple(
        Row(us - first, us // _DAY_US, line["campaign"], line["item_id"], line["position"], line["click"] == "1")
        for us, line in lines
    )


@dataclass(frozen=True, kw_only=True)
class OpenBandit:
    """The log, moved to a start and compressed in time; it begins again, with new ids, when it ends."""

    start_ms: int
    seed: int = 0
    speed: float = 1.0
    """How many times faster than it was, in event time too; up to `FASTEST`. The delays of views are not changed."""
    cpm_nano: int = 2_071_000_000
    """Mean of the campaigns' CPM, in nano-units."""
    mix: Mix = field(default_factory=Mix)
    """Its viewable share is not used: days have their own. Clicks of the log are taken from the log."""

    def __post_init__(self) -> None:
        if not 0 < self.speed <= FASTEST:
            raise ValueError(f"speed {self.speed:g} is not above 0 and at most {FASTEST}")

    def events(self) -> Iterator[Scheduled]:
        """Yield events without end, in order of time."""
        return EventMaker(self.mix, Random(f"{self.seed} events")).events(self.plans())

    def span_ms(self, events: int) -> int:
        """Return a time in which at least so many events come."""
        passes, rest = divmod(events, len(rows()))
        return self._offset_ms(passes, rows()[rest].elapsed_us) + 1

    def plans(self) -> Iterator[Plan]:
        """Yield planned renders without end: the log, again and again."""
        names = sorted({row.campaign for row in rows()})
        prices = make_campaigns(names, ("USD",), self.cpm_nano, Random(f"{self.seed} prices"))
        campaigns = dict(zip(names, prices, strict=True))
        viewable = self._viewable_by_day(names)
        for turn in count():
            for number, row in enumerate(rows()):
                yield self._plan(turn, number, row, campaigns[row.campaign], viewable[row.day, row.campaign])

    def _plan(self, turn: int, number: int, row: Row, campaign: Campaign, viewable: float) -> Plan:
        tag = f"{self.seed:x}-{self.start_ms:x}"
        return Plan(
            self.start_ms + self._offset_ms(turn, row.elapsed_us),
            f"{tag}-{turn}-{number}",
            campaign,
            f"{tag}-v{number}",
            f"{tag}-p{turn}-{number}",
            f"position-{row.position}",
            f"item-{row.item_id}",
            viewable,
            row.clicked,
        )

    def _offset_ms(self, turn: int, elapsed_us: int) -> int:
        length_us = max(rows()[-1].elapsed_us, int(PLACE_FREE_MS * 1000 * self.speed)) + 1_000_000
        return int((turn * length_us + elapsed_us) / (1000 * self.speed))

    def _viewable_by_day(self, names: list[str]) -> dict[tuple[int, str], float]:
        random = Random(f"{self.seed} days")
        days = {day: random.uniform(_LOWEST_DAY, _HIGHEST_DAY) for day in sorted({row.day for row in rows()})}
        return {
            (day, name): level
            for day, share in days.items()
            for name, level in zip(names, viewable_levels([1.0] * len(names), share, random), strict=True)
        }
