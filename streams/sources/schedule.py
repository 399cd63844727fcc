"""From plans of renders to records in order of time: each render with its views, clicks, and all that goes wrong.

Law: whatever is made here has an outcome that is certain from how it was made, however the topics interleave.
- What is on time has `ts` equal to the time at which it is sent, so stream times only follow the schedule.
- What comes again comes after what it repeats, on the same topic with the same key, so in the same partition.
- What is late comes right after something on time with the same key, which has just moved that stream time.
- A refresh repeats the place of a render that counts; places are planned so that nothing else repeats one so soon.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.sources.truth import Fact, Made

PLACE_FREE_MS: Final = 60_000
"""Plans keep renders of one viewer, slot and creative this far apart: twice the interval of a refresh."""

_BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36"
_CRAWLER = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
_DEVICES = ("desktop", "desktop", "phone", "phone", "phone", "tablet")
_SIZES = ('"width":300,"height":250', '"width":728,"height":90', '"width":970,"height":250')
_AGAIN_MS = 20_000  # at most; half of what comes again does so within an eighth of it
_LATEST_REFRESH_MS = 29_000
_CLICK_MS = 10_000
_BIG_BYTES = 5_000_000
_DECLARED = 0.5
"""Share of refreshes that say so,"""
_SPEAKS = 0.5
"""of tags that fail and still say something,"""
_STRAY_VIEWS = 0.8
"""and of views among what has no render; the others are clicks."""


class Scheduled(NamedTuple):
    """A record and when it is to be sent, on the event clock: ms since the epoch."""

    at_ms: int
    topic: str
    key: bytes
    value: bytes | None
    fact: Fact
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What the events are made of. All are shares between 0 and 1.

    Of renders: anonymous, duplicates, refreshes, bots, malformed (records beside them), strays (views and clicks of
    impressions that never were), measurable, ctr. Of measurable ones: viewable. Of all on-time events: late.
    Views and clicks come again as often as renders do.
    """

    anonymous: float = 0.29
    duplicates: float = 0.02
    refreshes: float = 0.02
    bots: float = 0.02
    late: float = 0.001
    malformed: float = 0.001
    strays: float = 0.001
    measurable: float = 0.9548
    viewable: float = 0.3993
    ctr: float = 0.0048
    two_step: float = 0.1
    """Of viewable ones: a tag that first says measurable, then viewable."""
    late_by_ms: int = 7_200_000
    """How far late events lie behind; more than the lateness that the worker allows."""
    big_record: bool = False
    """Whether to begin with one record of 5 MB that is no event."""


CLEAN: Final = Mix(
    anonymous=0, duplicates=0, refreshes=0, bots=0, late=0, malformed=0, strays=0, measurable=1, viewable=1, ctr=0
)
"""Nothing goes wrong: every render counts, is measurable and viewable."""


@dataclass(frozen=True)
class Campaign:
    """A campaign with one price: `cost` in nano-units an impression, `price` the JSON members that say the same."""

    campaign_id: str
    currency: str
    cost: int
    price: str


def priced(campaign_id: str, currency: str, cost: int, form: int = 0) -> Campaign:
    """Return a campaign whose impressions cost so many nano-units, told in one of the forms that prices have."""
    cpm, impression = f"{cost // 10**6}.{cost % 10**6:06d}", f"{cost}e-9"
    forms = (
        f'"price":"{cpm}"',
        f'"price":{cpm},"price_unit":"cpm"',
        f'"price":{impression},"price_unit":"impression"',
        f'"price":{cost},"price_unit":"micros_cpm"',
        f'"price":"{cost}e-3","price_unit":"micros_impression"',
    )
    return Campaign(campaign_id, currency, cost, forms[form % len(forms)])


class Plan(NamedTuple):
    """One render to be made. No two plans within `PLACE_FREE_MS` have the same viewer, slot and creative."""

    at_ms: int
    impression_id: str
    campaign: Campaign
    viewer_id: str
    page_view_id: str
    slot_id: str
    creative_id: str
    viewable: float
    """How likely it is viewable, if it is measurable."""
    clicked: bool | None = None
    """None if chance decides."""
    measurable: float = 1.0
    """A part of the mix's share of measurable ones: less while a tag is broken."""


class _Shown(NamedTuple):
    """A render that its views and clicks refer to. `ids` are their first JSON members."""

    at_ms: int
    key: bytes
    ids: str
    made: Made
    campaign: Campaign


class EventMaker:
    """Makes the events of planned renders; the same for the same mix, randomness and plans."""

    def __init__(self, mix: Mix, random: Random) -> None:
        self._mix = mix
        self._random = random
        self._chance = random.random
        self._coming: list[tuple[int, int, Scheduled]] = []
        self._number = 0

    def events(self, plans: Iterable[Plan]) -> Iterator[Scheduled]:
        """Yield all events in order of the time at which they are to be sent. Plans come in order of time."""
        coming = self._coming
        for plan in plans:
            while coming and coming[0][0] < plan.at_ms:
                yield heapq.heappop(coming)[2]
            self._play(plan)
        while coming:
            yield heapq.heappop(coming)[2]

    def _put(self, at_ms: int, topic: str, key: bytes, value: bytes | None, fact: Fact) -> None:
        self._number += 1
        heapq.heappush(self._coming, (at_ms, self._number, Scheduled(at_ms, topic, key, value, fact)))

    def _put_on_time(self, at_ms: int, key: bytes, value: bytes, fact: Fact) -> None:
        """Send an event, perhaps again, and perhaps once more by a clock that is hours behind."""
        self._put(at_ms, fact.topic, key, value, fact)
        if self._chance() < self._mix.duplicates:
            self._put(at_ms + int(self._chance() ** 3 * _AGAIN_MS), fact.topic, key, value, _repeat(fact))
        if self._chance() < self._mix.late:
            behind = value.replace(b'"ts":%d' % at_ms, b'"ts":%d' % (at_ms - self._mix.late_by_ms))
            self._put(at_ms, fact.topic, key, behind, Fact(fact.topic, "late"))

    def _play(self, plan: Plan) -> None:
        mix, chance = self._mix, self._chance
        if mix.big_record and self._number == 0:
            big = Fact(RENDERS, "malformed", reason="not_json")
            self._put(plan.at_ms, RENDERS, plan.viewer_id.encode(), b"x" * _BIG_BYTES, big)
        anonymous = chance() < mix.anonymous
        bot = chance() < mix.bots
        self._show(plan, "bot" if bot else "render", anonymous)
        if not anonymous and not bot and chance() < mix.refreshes:
            later = plan.at_ms + 1_000 + int(chance() * (_LATEST_REFRESH_MS - 1_000))
            again = plan._replace(at_ms=later, impression_id=plan.impression_id + "-refresh", clicked=None)
            self._show(again, "refresh", anonymous)
        if chance() < mix.malformed:
            self._break(plan)
        if chance() < mix.strays:
            self._stray(plan)

    def _show(self, plan: Plan, made: Made, anonymous: bool) -> None:
        campaign = plan.campaign
        viewer = "" if anonymous else f'"viewer_id":"{plan.viewer_id}",'
        ids = f'{{"impression_id":"{plan.impression_id}",{viewer}'
        key = (plan.impression_id if anonymous else plan.viewer_id).encode()
        fact = Fact(RENDERS, made, None, campaign.campaign_id, campaign.currency, campaign.cost)
        self._put_on_time(plan.at_ms, key, self._render(plan, ids, made), fact)
        shown = _Shown(plan.at_ms, key, ids, made, campaign)
        self._look(shown, self._mix.measurable * plan.measurable, plan.viewable)
        if self._chance() < self._mix.ctr if plan.clicked is None else plan.clicked:
            self._click(shown, plan.impression_id)

    def _render(self, plan: Plan, ids: str, made: Made) -> bytes:
        chance = self._chance
        agent = _CRAWLER if made == "bot" else _BROWSER
        declared = (
            '"refresh":{"type":"time","min_interval_s":30},' if made == "refresh" and chance() < _DECLARED else ""
        )
        return (
            f'{ids}"campaign_id":"{plan.campaign.campaign_id}","ts":{plan.at_ms},"page_view_id":"{plan.page_view_id}",'
            f'"slot_id":"{plan.slot_id}","creative_id":"{plan.creative_id}",{plan.campaign.price},'
            f'"currency":"{plan.campaign.currency}",{_SIZES[int(chance() * 3)]},{declared}'
            f'"device":"{_DEVICES[int(chance() * 6)]}","user_agent":"{agent}"}}'
        ).encode()

    # --- views and clicks --------------------------------------------------------------------------------------------

    def _look(self, shown: _Shown, measurable: float, viewable: float) -> None:
        chance, mix = self._chance, self._mix
        after = int(chance() * 2_000)
        if chance() >= measurable:
            if chance() < _SPEAKS:
                self._view(shown, after, "undetermined", ())
        elif chance() >= viewable:
            self._view(shown, after, "not_viewable", ("measurable",))
        elif chance() < mix.two_step:
            self._view(shown, after, "measurable", ("measurable",))
            self._view(shown, after + 1_000, "viewable", ("viewable",))
        else:
            self._view(shown, after + 1_000, "viewable", ("measurable", "viewable"))

    def _view(self, shown: _Shown, after_ms: int, kind: str, gains: tuple[str, ...]) -> None:
        at_ms = shown.at_ms + after_ms
        value = f'{shown.ids}"ts":{at_ms},"kind":"{kind}"}}'.encode()
        series = (shown.campaign.campaign_id, shown.campaign.currency)
        self._put_on_time(at_ms, shown.key, value, Fact(VIEWABILITY, "view", shown.made, *series, 0, gains))

    def _click(self, shown: _Shown, impression_id: str) -> None:
        at_ms = shown.at_ms + 500 + int(self._chance() * _CLICK_MS)
        value = f'{shown.ids}"ts":{at_ms},"click_id":"{impression_id}-click"}}'.encode()
        series = (shown.campaign.campaign_id, shown.campaign.currency)
        self._put_on_time(at_ms, shown.key, value, Fact(CLICKS, "click", shown.made, *series))

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def _break(self, plan: Plan) -> None:
        topic, reason, value = self._random.choice(MALFORMED)
        self._put(plan.at_ms, topic, plan.viewer_id.encode(), value, Fact(topic, "malformed", reason=reason))

    def _stray(self, plan: Plan) -> None:
        topic, kind = (VIEWABILITY, ',"kind":"viewable"') if self._chance() < _STRAY_VIEWS else (CLICKS, "")
        value = (
            f'{{"impression_id":"{plan.impression_id}-never","viewer_id":"{plan.viewer_id}","ts":{plan.at_ms}{kind}}}'
        ).encode()
        self._put(plan.at_ms, topic, plan.viewer_id.encode(), value, Fact(topic, "stray"))


def _repeat(fact: Fact) -> Fact:
    return Fact(fact.topic, "duplicate", fact.of)


_RENDER = b'{"impression_id":"broken","campaign_id":"broken","ts":1700000000000,"viewer_id":"v"'
_VIEW = b'{"impression_id":"broken","ts":1700000000000,"kind":"viewable"'
_CLICK = b'{"impression_id":"broken","ts":1700000000000'

MALFORMED: Final[tuple[tuple[str, str, bytes | None], ...]] = (
    (RENDERS, "null_value", None),
    (RENDERS, "not_json", b"not json at all"),
    (RENDERS, "not_json", _RENDER),
    (RENDERS, "not_json", _RENDER + b',"price":NaN}'),
    (RENDERS, "not_utf8", _RENDER + b',"placement":"\xff\xfe"}'),
    (RENDERS, "not_an_object", b"[" + _RENDER + b"}]"),
    (RENDERS, "missing_field", b'{"impression_id":"broken","ts":1700000000000}'),
    (RENDERS, "missing_field", b'{"impression_id":"broken","campaign_id":null,"ts":1700000000000}'),
    (RENDERS, "wrong_type", b'{"impression_id":"broken","campaign_id":"broken","ts":"1700000000000"}'),
    (RENDERS, "wrong_type", b'{"impression_id":7,"campaign_id":"broken","ts":1700000000000}'),
    (RENDERS, "out_of_range", b'{"impression_id":"broken","campaign_id":"broken","ts":-1}'),
    (RENDERS, "out_of_range", _RENDER + b',"price_unit":"dollars"}'),
    (RENDERS, "bad_price", _RENDER + b',"price":1e400}'),
    (RENDERS, "bad_price", _RENDER + b',"price":"-2.5"}'),
    (RENDERS, "bad_price", _RENDER + b',"price":"NaN"}'),
    (VIEWABILITY, "null_value", None),
    (VIEWABILITY, "not_json", b""),
    (VIEWABILITY, "not_utf8", _VIEW + b',"vendor":"\xc3\x28"}'),
    (VIEWABILITY, "not_an_object", b"[]"),
    (VIEWABILITY, "missing_field", b'{"impression_id":"broken","ts":1700000000000}'),
    (VIEWABILITY, "wrong_type", _VIEW + b',"muted":"no"}'),
    (VIEWABILITY, "out_of_range", _VIEW + b',"in_view_pct":101}'),
    (CLICKS, "null_value", None),
    (CLICKS, "not_json", _CLICK),
    (CLICKS, "not_an_object", b'"click"'),
    (CLICKS, "missing_field", b'{"ts":1700000000000}'),
    (CLICKS, "wrong_type", _CLICK + b',"click_id":{}}'),
)
"""Records that are no events: topic, reason, value. None has a line feed, so that files can hold them by line."""
