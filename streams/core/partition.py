"""One partition of viewers: decides what becomes of every event, and holds all that a later decision needs.

Law: the state after a batch is a function of the records up to it and of nothing else. What a batch did is a `Delta`,
and folding the deltas of a partition in order gives the state that wrote them, field by field.

    renders ──┐
    views   ──┼─> apply(batch) ─> outcomes, impressions, cells ─> take() ─> Delta ─> fold(delta) ─> the same state
    clicks  ──┘
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from streams.core.books import Books
from streams.core.bulk import WORTH, count_rows, count_views, mark, repeated
from streams.core.campaigns import BASIS, Campaigns, Cap, Caps
from streams.core.delta import NEVER, Batch, Delta, Marks, Progress, Refused
from streams.core.events import (
    CLICKS,
    DEFAULT_CURRENCY,
    DEFAULT_SOURCE,
    NO_CURRENCY,
    RENDERS,
    TOPICS,
    VIEWABILITY,
    Click,
    Event,
    Malformed,
    Render,
    Viewability,
)
from streams.core.impressions import (
    ANCHOR,
    COUNTED,
    CREDITS,
    DECLARED,
    INVALID,
    MEASURABLE,
    NO_ROW,
    OVER_CAP,
    PER_CLICK,
    PER_VIEWABLE,
    SAID,
    SAID_MEASURABLE,
    SAID_UNDETERMINED,
    SAID_VIEWABLE,
    STANDARD,
    VIEWABLE,
    Generation,
    Impressions,
    Rows,
)
from streams.core.lookup import Numbers
from streams.core.money import impression_nano
from streams.core.panes import NOBODY, PANE_MS, Ledgers, Touched, pane_of
from streams.core.refresh import NOWHERE, Anchors, ad_of
from streams.core.rules import Outcome, PlainRules, Rules
from streams.core.standards import STANDARDS, standard_of, verdict
from streams.core.traffic import INVALID_REASONS, Addresses, invalid_reason
from streams.core.waiting import DueDates, Waiting

# To read a member of an enum class costs as much as a call in Python 3.11: these stand in.
_COUNTED: Final = Outcome.COUNTED
_DUPLICATE: Final = Outcome.DUPLICATE
_FUTURE: Final = Outcome.FUTURE
_INVALID_TRAFFIC: Final = Outcome.INVALID_TRAFFIC
_LATE: Final = Outcome.LATE
_MALFORMED: Final = Outcome.MALFORMED
_ORPHAN: Final = Outcome.ORPHAN
_REFRESH: Final = Outcome.REFRESH

_UNSIGNED: Final = 2**64 - 1

FUTURE: Final = _FUTURE.name.lower()
"""Why a record whose event lies too far ahead of it is refused."""

NOBODYS: Final[Ledgers] = ()
"""Where refreshes are counted."""

_KNOWN_ADS: Final = 65_536
"""Ads that are known by their fields: a new one costs three times as much."""
_ts_of, _price_of, _unit_of, _viewer_of = map(attrgetter, ("ts", "price", "price_unit", "viewer_id"))
_born_of = attrgetter("born")

# What each kind of view says, as bits of a row (MRC: a verdict on viewability implies that it could be measured).
_SAYS: Final[Mapping[str, int]] = {
    "undetermined": SAID_UNDETERMINED,
    "measurable": SAID_MEASURABLE,
    "not_viewable": SAID_MEASURABLE,
    "viewable": SAID_MEASURABLE | SAID_VIEWABLE,
}


def _says(view: Viewability) -> int:
    """Return what a view says, as bits of a row; for a raw signal, a byte for each standard, by its number."""
    if view.kind != "signal":
        return _SAYS[view.kind]
    return sum(_SAYS[verdict(standard, view)] << 8 * number for number, standard in enumerate(STANDARDS))


def identity(source: str | None, impression_id: str) -> int:
    """Return the 64-bit key of an impression: its identity is (source, impression_id), never the id alone."""
    return xxhash.xxh3_64_intdigest(impression_id.encode(), _seed(source))


def _times(events: Sequence[Event | Malformed]) -> Numbers | None:
    """Return when each event happened; None if one of them is none."""
    try:
        return np.fromiter(map(_ts_of, events), np.int64, len(events))
    except AttributeError:
        return None


def _identities(events: Sequence[Event]) -> Numbers:
    """Return the key of each event's impression, its 64 bits read as a signed number."""
    digest, seeds = xxhash.xxh3_64_intdigest, {source: _seed(source) for source in {event.source for event in events}}
    keys = array("Q", [digest(event.impression_id.encode(), seeds[event.source]) for event in events])
    return np.frombuffer(keys, np.int64)


@lru_cache(maxsize=4_096)
def _seed(source: str | None) -> int:
    return xxhash.xxh3_64_intdigest((source or DEFAULT_SOURCE).encode())


class _Ad:
    """What renders of one ad have in common."""

    __slots__ = ("born", "free", "place", "priced")

    def __init__(self, born: int, place: int) -> None:
        self.born = born
        """What a row of it is born with, if it counts."""
        self.place = place
        """What the keys of its places are made from; NOWHERE where it has none."""
        self.priced: Ledgers | None = None
        """Where it is counted at its own price,"""
        self.free: Ledgers | None = None
        """and without any; None until that was looked up."""


def _places(renders: Sequence[Render], ads: Sequence[_Ad]) -> Numbers:
    """Return the key of the place of each render, read as a signed number; NOWHERE without viewer or slot."""
    digest, viewers = xxhash.xxh3_64_intdigest, map(_viewer_of, renders)
    places = [
        digest(viewer.encode(), ad.place) or 1 if viewer and ad.place else NOWHERE
        for viewer, ad in zip(viewers, ads, strict=True)
    ]
    return np.array(places, np.uint64).view(np.int64)


class _Judged(NamedTuple):
    """Columns of renders that are no duplicates: what each is born with, its place or NOWHERE, its cost and ledgers."""

    born: bytearray
    places: Numbers
    costs: list[int]
    ledgers: list[Ledgers]


class Partition:
    """The state of one partition: build it empty, `fold` a journal into it, then `apply` batches and `take` deltas."""

    def __init__(self, rules: Rules, campaigns: Campaigns | None = None, segments: Sequence[str] = ()) -> None:
        self.rules = rules
        self._plain_rules = rules.plain()
        self.journaled_rules: PlainRules = {}
        self.journaled_campaigns = ""
        """What the newest journal record was written under: nothing if there is none, or if it does not say."""
        self.campaigns = campaigns or Campaigns(billing_source=rules.billing_source)
        """Terms of renders to come; those of a remembered impression are remembered with it."""
        self.seq = 0
        """Number of the journal record that is being gathered."""
        self.bound = 0
        self.progress = {topic: Progress() for topic in TOPICS}
        self.reasons: dict[str, int] = {}
        self.invalid = dict.fromkeys(INVALID_REASONS, 0)
        """How many renders were invalid traffic, by reason."""
        self.unchecked = 0
        """How many counted renders could not be asked whether they are refreshes."""
        self.anchors = Anchors(rules.refresh_interval_ms, rules.refresh_slack_ms)
        self.caps = Caps()
        self._datacenters = Addresses(rules.datacenters)
        self._click_credits = MEASURABLE | VIEWABLE if rules.click_makes_viewable else 0
        self.impressions = Impressions()
        self.books = Books(segments)
        self.waiting: dict[int, list[Waiting]] = {}
        """What waits for each identity, in the order in which it came."""
        self.pending = dict.fromkeys(TOPICS, 0)
        """How many events of each topic wait."""
        self._held: dict[tuple[str, int], Waiting] = {}
        self._due = DueDates()
        self._deciders: dict[str, Callable[[Sequence[int], Any, Any, Progress], None]] = {
            RENDERS: self._renders,
            VIEWABILITY: self._views,
            CLICKS: self._clicked,
        }
        fields = ("slot_id", "creative_id", "format", "device", "width", "height", "currency", *self.books.fields)
        self._fields_of_ad = attrgetter(*fields)
        self._ads: dict[Any, _Ad] = {}
        """The ads met lately, by their fields."""
        self._counted_to = 0
        """Row up to which the cells hold all renders."""
        self._gained_rows = array("Q")
        """Rows of counted views that the cells do not hold yet,"""
        self._gains = bytearray()
        """and the bits that each of those rows gained by it."""
        self._records: deque[tuple[int, int, int]] = deque()
        """Number, end of the rows, and time of the newest anchor of each journal record that is kept."""
        self._open()

    def _open(self) -> None:
        self._taken_row = self.impressions.end
        self._taken_fences = [progress.fence for progress in self.progress.values()]
        self._places = array("Q")
        self._newest_anchor = NEVER
        self._marked_rows = array("Q")
        self._marked_says = bytearray()
        self._clicks: list[tuple[int, int]] = []
        self._added: dict[tuple[str, int], Waiting] = {}
        self._settled: list[tuple[str, int]] = []

    def change_campaigns(self, campaigns: Campaigns) -> None:
        """Let other terms hold for renders to come."""
        self.campaigns = campaigns
        self._ads.clear()

    def remembered(self) -> int:
        """Return how many impressions and waiting events are held: what the memory of a partition grows with."""
        return len(self.impressions) + sum(self.pending.values())

    # --- applying events -------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> list[Refused]:
        """Decide a batch; return what goes to `dead-letters`. Records below the fence are skipped."""
        progress = self.progress[batch.topic]
        start = bisect_left(batch.offsets, progress.fence)
        offsets, events, own_times = batch.offsets[start:], batch.events[start:], batch.timestamps[start:]
        refused: list[Refused] = []
        ts = _times(events)
        if ts is None or self._may_be_ahead(ts, own_times):
            refused = self._refused(batch.topic, offsets, events, own_times, progress)
            gone = {letter.offset for letter in refused}
            events = [event for offset, event in zip(offsets, events, strict=True) if offset not in gone]
            offsets = [offset for offset in offsets if offset not in gone]
            ts = _times(events)
        if events:
            self._deciders[batch.topic](offsets, events, ts, progress)
        progress.fence = max(progress.fence, batch.next_offset)
        self._settle_orphans()
        return refused

    def _may_be_ahead(self, ts: Numbers, own_times: Sequence[int | None]) -> bool:
        """Say, at a glance at all events, whether rule 2 may have something against one of them."""
        known = [own_time for own_time in own_times if own_time is not None]
        return bool(known) and int(ts.max()) > min(known) + self.rules.future_ms

    def _refused(
        self,
        topic: str,
        offsets: Sequence[int],
        events: Sequence[Event | Malformed],
        own_times: Sequence[int | None],
        progress: Progress,
    ) -> list[Refused]:
        """Decide rules 1 and 2."""
        refused: list[Refused] = []
        future = self.rules.future_ms
        for offset, event, own_time in zip(offsets, events, own_times or [None] * len(events), strict=True):
            if isinstance(event, Malformed):
                refused.append(Refused(topic, offset, event.reason, event.detail))
                progress.outcomes[_MALFORMED] += 1
            elif own_time is not None and event.ts > own_time + future:
                refused.append(Refused(topic, offset, FUTURE, f"ts: more than {future} ms after the record"))
                progress.outcomes[_FUTURE] += 1
        for letter in refused:
            self.reasons[letter.reason] = self.reasons.get(letter.reason, 0) + 1
        return refused

    def _behind(self, ts: Numbers, progress: Progress) -> tuple[Numbers, NDArray[np.bool_]]:
        """Move the stream time of a topic on, and decide rule 3.

        Returns how far each event lies behind stream time in ms, and whether it is late.
        """
        reached = np.maximum.accumulate(np.maximum(ts, progress.stream_time))
        progress.stream_time = int(reached[-1])
        behind = reached - ts
        late = behind > self.rules.lateness_ms
        progress.outcomes[_LATE] += int(late.sum())
        return behind, late

    def lift(self, topic: str, ts_ms: int) -> bool:
        """Move the stream time of a silent topic on, by a pane or more; return whether it moved.

        A topic that was read to its end and gives nothing must not hold back what the others wait for. The lift is
        part of the next journal record: it is the one input that is not a record.
        """
        progress = self.progress[topic]
        if ts_ms < progress.stream_time + PANE_MS:
            return False
        progress.stream_time = ts_ms
        self._settle_orphans()
        return True

    # --- renders: rules 4, 5, 6 and 8, each over all that the one before it left -----------------------------------

    def _renders(self, offsets: Sequence[int], renders: Sequence[Render], ts: Numbers, progress: Progress) -> None:
        behind, late = self._behind(ts, progress)
        keys = _identities(renders)
        first, older = self._firsts(keys, ts, late)
        if not first.all():
            progress.outcomes[_DUPLICATE] += int((~first & ~late).sum())
            renders = list(compress(renders, first.tolist()))
            keys, ts, behind = keys[first], ts[first], behind[first]
        judged = self._judged(renders, ts, behind, progress)
        row = self.impressions.append(keys, ts, judged.costs, judged.ledgers, judged.born)
        for position, before, is_row in older:
            self.impressions.link(row + position, before if is_row else row + before)
        self._note_anchors(judged.places, ts)
        if self.waiting:
            for number, key in enumerate(keys.view(np.uint64).tolist(), row):
                if key in self.waiting:
                    self._meet_waiting(key, number)

    def _firsts(
        self, keys: Numbers, ts: Numbers, late: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], list[tuple[int, int, bool]]]:
        """Decide rule 4: say which renders are neither late nor duplicates.

        And of those of a known identity: (position among them, what came before it, whether that is a row); if not,
        it is a position as well.
        """
        known = self.impressions.find(keys)
        first = ~late
        again: list[tuple[int, int, bool]] = []
        times: dict[int, list[int]] = {}
        newest: dict[int, int] = {}
        for at in (((known >= self.impressions.first) | repeated(keys)) & first).nonzero()[0].tolist():
            key, time, row = int(keys[at]), int(ts[at]), int(known[at])
            if key not in times:
                times[key] = [self.impressions.ts_of(one) for one in self.impressions.with_older(row)]
            if any(abs(time - other) <= self.rules.dedup_horizon_ms for other in times[key]):
                first[at] = False
                continue
            if times[key]:
                again.append((at, newest.get(key, row), key not in newest))
            times[key].append(time)
            newest[key] = at
        place = (np.cumsum(first) - 1).tolist() if again else []
        return first, [(place[at], before if is_row else place[before], is_row) for at, before, is_row in again]

    def _judged(self, renders: Sequence[Render], ts: Numbers, behind: Numbers, progress: Progress) -> _Judged:
        """Decide rules 5, 6 and 8, and what each render costs."""
        ads = self._ads_of(renders)
        born, places = bytearray(map(_born_of, ads)), _places(renders, ads)
        invalid = [at for at, one in enumerate(renders) if one.invalid or one.user_agent or one.ip]
        invalid = [at for at in invalid if self._is_invalid(renders[at])]
        for at in invalid:
            born[at], places[at] = INVALID, NOWHERE
        declared = [at for at, render in enumerate(renders) if render.refresh is not None]
        free = [at for at in declared if self._is_free(renders[at])]
        refreshes = self._refreshes(places, ts, behind, [*invalid, *free])
        for at in refreshes:
            born[at], places[at] = 0, NOWHERE
        for at in declared:
            born[at] |= DECLARED if born[at] & COUNTED else 0
        np.frombuffer(born, np.uint8)[places != NOWHERE] |= ANCHOR
        costs, ledgers = self._costs(renders, ads, born, refreshes)
        progress.outcomes[_INVALID_TRAFFIC] += len(invalid)
        progress.outcomes[_REFRESH] += len(refreshes)
        progress.outcomes[_COUNTED] += len(born) - len(invalid) - len(refreshes)
        return _Judged(born, places, costs, ledgers)

    def _refreshes(self, places: Numbers, ts: Numbers, behind: Numbers, exempt: list[int]) -> list[int]:
        """Decide rule 6: return the positions of refreshes. It is not asked of the exempt, nor where it cannot be."""
        if not self.rules.refresh_interval_ms:
            return []
        asked = np.ones(len(places), np.bool_)
        asked[exempt] = False
        checkable = (places != NOWHERE) & (behind <= self.rules.refresh_slack_ms)
        self.unchecked += int((asked & ~checkable).sum())
        refreshes: list[int] = self.anchors.refreshes(places, ts, asked & checkable).nonzero()[0].tolist()
        return refreshes

    def _costs(
        self, renders: Sequence[Render], ads: Sequence[_Ad], born: bytearray, refreshes: Sequence[int]
    ) -> tuple[list[int], list[Ledgers]]:
        """Return what each render costs in nano-units, and its ledgers; what was agreed for it is added to `born`."""
        own = [*map(impression_nano, map(bytes, map(_price_of, renders)), map(_unit_of, renders))]
        ledgers: list[Any] = [ad.free if cost is None else ad.priced for ad, cost in zip(ads, own, strict=True)]
        for at in refreshes:
            own[at], ledgers[at] = 0, NOBODYS
        for at in [at for at, one in enumerate(ledgers) if one is None]:
            own[at], agreed, ledgers[at] = self._priced(renders[at], own[at], born[at], ads[at])
            born[at] |= agreed
        return [cost or 0 for cost in own], ledgers

    def _ads_of(self, renders: Sequence[Render]) -> list[_Ad]:
        ads: list[Any] = [*map(self._ads.get, map(self._fields_of_ad, renders))]
        if None in ads:
            for at, render in enumerate(renders):
                ads[at] = ads[at] or self._ads.get(self._fields_of_ad(render)) or self._new_ad(render)
        return ads

    def _new_ad(self, render: Render) -> _Ad:
        """Look an ad up. Keyed by impression, nobody sees all renders of one place."""
        if len(self._ads) >= _KNOWN_ADS:
            self._ads.clear()
        asks = self.rules.refresh_interval_ms and self.rules.key == "viewer" and render.slot_id
        ad = _Ad(COUNTED | standard_of(render) * 8, ad_of(render) if asks else NOWHERE)
        self._ads[self._fields_of_ad(render)] = ad
        return ad

    def _is_invalid(self, render: Render) -> bool:
        reason = invalid_reason(render, self._datacenters)
        if reason is not None:
            self.invalid[reason] += 1
        return reason is not None

    def _is_free(self, render: Render) -> bool:
        """Say whether a declared refresh is one that the user asked for, and those count."""
        return self.rules.count_user_refresh and render.refresh is not None and render.refresh.type == "user"

    def _note_anchors(self, places: Numbers, ts: Numbers) -> None:
        """Take note of when renders were counted in a place: of all that have one."""
        there = places != NOWHERE
        if there.any():
            places, ts = places[there], ts[there]
            self.anchors.add(places, ts)
            self._places.frombytes(places.tobytes())
            self._newest_anchor = max(self._newest_anchor, int(ts.max()))

    # --- views and clicks: each is brought to its render -----------------------------------------------------------

    def _views(self, offsets: Sequence[int], views: Sequence[Viewability], ts: Numbers, progress: Progress) -> None:
        _, late = self._behind(ts, progress)
        keys = _identities(views)
        rows = self.impressions.find(keys)
        says = np.array([_SAYS.get(view.kind, 0) for view in views], np.uint8)
        plain = ~late & (says != 0) & (rows >= self.impressions.first) & ~repeated(rows)
        decided = late | self._met_at_once(plain, rows, ts, says, progress)
        for at in (~decided).nonzero()[0].tolist():
            view, key = views[at], int(keys[at]) & _UNSIGNED
            self._tell(VIEWABILITY, self._join(VIEWABILITY, offsets[at], view.ts, _says(view), 0, key, int(rows[at])))

    def _met_at_once(
        self, plain: NDArray[np.bool_], rows: Numbers, ts: Numbers, says: NDArray[np.uint8], progress: Progress
    ) -> NDArray[np.bool_]:
        """Decide views that are plain: the only ones of their render here, and there is no doubt which render that is.

        Returns which were: not those whose render's window does not hold them.
        """
        met = np.zeros(len(rows), np.bool_)
        earliest, latest = ts - self.rules.viewability_horizon_ms, ts + self.rules.early_ms
        for generation, here in self.impressions.parts(rows, plain):
            positions = rows[here] - generation.start
            began = generation.times.take(positions)
            held = (earliest[here] <= began) & (began <= latest[here])
            if generation.older:
                held &= ~np.fromiter(map(generation.older.__contains__, rows[here].tolist()), np.bool_, len(here))
            met[here[held]] = True
            self._meet_at_once(generation, positions[held], says[here[held]], progress)
        return met

    def _meet_at_once(
        self, generation: Generation, positions: Numbers, says: NDArray[np.uint8], progress: Progress
    ) -> None:
        """Decide rules 7, 4 and 8 of views of different renders: `_meet`, as columns."""
        bits = np.frombuffer(generation.bits, np.uint8)
        counted = (np.frombuffer(generation.born, np.uint8).take(positions) & COUNTED) != 0
        before = bits.take(positions)
        new = np.where(says == SAID_UNDETERMINED, (before & SAID) == 0, (says & ~before) != 0) & counted
        orphans, marked = len(counted) - int(counted.sum()), int(new.sum())
        progress.outcomes[_ORPHAN] += orphans
        progress.outcomes[_COUNTED] += marked
        progress.outcomes[_DUPLICATE] += len(counted) - orphans - marked
        positions, says, before = positions[new], says[new], before[new]
        after = before | WORTH[says]
        bits[positions] = after
        rows = (positions + generation.start).tobytes()
        self._marked_rows.frombytes(rows)
        self._marked_says += says.tobytes()
        self._gained_rows.frombytes(rows)
        self._gains += (after & ~before).tobytes()

    def _clicked(self, offsets: Sequence[int], clicks: Sequence[Click], ts: Numbers, progress: Progress) -> None:
        _, late = self._behind(ts, progress)
        keys = _identities(clicks)
        rows = self.impressions.find(keys)
        for at in (~late).nonzero()[0].tolist():
            click, key = clicks[at], int(keys[at]) & _UNSIGNED
            click_key = xxhash.xxh3_64_intdigest(click.click_id.encode()) if click.click_id else 0
            self._tell(CLICKS, self._join(CLICKS, offsets[at], click.ts, 0, click_key, key, int(rows[at])))

    def _tell(self, topic: str, outcome: Outcome | None) -> None:
        if outcome is not None:
            self.progress[topic].outcomes[outcome] += 1

    def _join(self, topic: str, offset: int, ts: int, says: int, click: int, key: int, newest: int) -> Outcome | None:
        """Bring a view or click to its render; None if that may still come. `newest` is the row of its identity."""
        if newest >= self.impressions.first:
            row = self._row_for(newest, ts)
            if row != NO_ROW:
                return self._meet(row, says, click)
        if ts < self._earliest_possible_render() - self.rules.early_ms:
            return _ORPHAN
        self._wait(Waiting(topic, offset, key, ts, says, click, self.seq))
        return None

    def _row_for(self, newest: int, ts: int) -> int:
        """Return the first row, in partition order, of one identity whose window holds a timestamp, or NO_ROW.

        The window of a render is [render - early, render + horizon].
        """
        earliest, latest = ts - self.rules.viewability_horizon_ms, ts + self.rules.early_ms
        generation, position = self.impressions.at(newest)
        if newest not in generation.older:
            return newest if earliest <= generation.ts[position] <= latest else NO_ROW
        ts_of = self.impressions.ts_of
        matching = [row for row in self.impressions.with_older(newest) if earliest <= ts_of(row) <= latest]
        return matching[-1] if matching else NO_ROW

    def _earliest_possible_render(self) -> int:
        """Return the time before which every further render would be late."""
        return self.progress[RENDERS].stream_time - self.rules.lateness_ms

    def _meet(self, row: int, says: int, click: int) -> Outcome:
        """Decide a view or click that has met its render: rules 7, 4 and 8, in this order."""
        generation, position = self.impressions.at(row)
        born, bits = generation.born[position], generation.bits[position]
        if not born & COUNTED:
            return _ORPHAN
        if says > SAID:
            says = says >> (born & STANDARD) & SAID
        if says:
            duplicate = bool(bits & SAID) if says == SAID_UNDETERMINED else not says & ~bits
        else:
            earlier = generation.clicked.get(row, ())
            duplicate = click in earlier if click else bool(earlier)
        if duplicate:
            return _DUPLICATE
        if says:
            generation.bits[position] = after = bits | says | CREDITS[says]
            self._gained(row, after & ~bits)
            self._marked_rows.append(row)
            self._marked_says.append(says)
        else:
            self._count_click(row, click, self._click_credits)
            self._clicks.append((row, click))
        return _COUNTED

    def _gained(self, row: int, gains: int) -> None:
        self._gained_rows.append(row)
        self._gains.append(gains)

    # --- what an impression costs and where it is counted ----------------------------------------------------------

    def _priced(self, render: Render, cost: int | None, born: int, ad: _Ad) -> tuple[int | None, int, Ledgers]:
        """Return what a render costs in nano-units, for what and whether over the cap (bits of a row), and its ledgers.

        Its own price holds, unless its campaign has terms; where nothing is agreed, the ad remembers its ledgers.
        """
        currency = NO_CURRENCY if cost is None else render.currency or DEFAULT_CURRENCY
        campaign = self.campaigns.by_id.get(render.campaign_id)
        if campaign is None:
            ledgers = self.books.of(render, currency)
            if cost is None:
                ad.free = ledgers
            else:
                ad.priced = ledgers
            return cost, 0, ledgers
        terms, agreed = campaign.terms_at(render.ts), 0
        if terms is not None:
            cost, currency, agreed = terms.nano, campaign.currency, BASIS[terms.model]
        if born & COUNTED and (terms is not None or not campaign.terms):
            agreed |= self._capped(render, campaign.cap)
        return cost, agreed, self.books.of(render, currency)

    def _capped(self, render: Render, cap: Cap | None) -> int:
        """Count a viewer's impressions of a campaign; return the bit of those over the cap."""
        if cap is None or not render.viewer_id or self.rules.key != "viewer":
            return 0
        campaign = xxhash.xxh3_64_intdigest(render.campaign_id.encode(), _seed(render.source))
        viewer = xxhash.xxh3_64_intdigest(render.viewer_id.encode(), campaign)
        return OVER_CAP if self.caps.add(viewer, cap, render.ts) else 0

    # --- waiting for a render --------------------------------------------------------------------------------------

    def _wait(self, waiting: Waiting) -> None:
        self._hold(waiting)
        self._added[waiting.topic, waiting.offset] = waiting

    def _hold(self, waiting: Waiting) -> None:
        self.waiting.setdefault(waiting.key, []).append(waiting)
        self._held[waiting.topic, waiting.offset] = waiting
        self.pending[waiting.topic] += 1
        self._due.add(waiting)

    def _meet_waiting(self, key: int, row: int) -> None:
        """Bring what waited for an identity to its new row, each topic in the order of its offsets."""
        render_ts = self.impressions.ts_of(row)
        earliest, latest = render_ts - self.rules.early_ms, render_ts + self.rules.viewability_horizon_ms
        for waiting in [waiting for waiting in self.waiting[key] if earliest <= waiting.ts <= latest]:
            self._settle(waiting, self._meet(row, waiting.says, waiting.click))

    def _settle_orphans(self) -> None:
        for waiting in self._due.before(self._earliest_possible_render() - self.rules.early_ms):
            self._settle(waiting, _ORPHAN)

    def _settle(self, waiting: Waiting, outcome: Outcome) -> None:
        self._release(waiting)
        self.progress[waiting.topic].outcomes[outcome] += 1
        if self._added.pop((waiting.topic, waiting.offset), None) is None:
            self._settled.append((waiting.topic, waiting.offset))

    def _release(self, waiting: Waiting) -> None:
        self._due.remove(waiting)
        del self._held[waiting.topic, waiting.offset]
        self.pending[waiting.topic] -= 1
        of_key = self.waiting[waiting.key]
        of_key.remove(waiting)
        if not of_key:
            del self.waiting[waiting.key]

    # --- effects: what was decided, added to the cells -------------------------------------------------------------

    def _count(self) -> None:
        """Add to the cells what was decided since this was last done."""
        for generation in self.impressions.generations:
            begin, end = max(self._counted_to, generation.start), generation.end
            if begin < end:
                count_rows(generation, begin - generation.start, end - generation.start, self.bound)
        self._counted_to = self.impressions.end
        rows, gains = np.frombuffer(self._gained_rows, np.int64), np.frombuffer(self._gains, np.uint8)
        for generation, here in self.impressions.parts(rows):
            count_views(generation, rows[here] - generation.start, gains[here], self.bound)
        self._gained_rows, self._gains = array("Q"), bytearray()

    def _count_click(self, row: int, click: int, credits: int) -> None:
        generation, position = self.impressions.at(row)
        before, born, ts = generation.bits[position], generation.born[position], generation.ts[position]
        gained = credits & ~before
        generation.bits[position] = before | gained
        generation.clicked.setdefault(row, set()).add(click)
        if ts >= self.bound:
            for ledger in generation.groups[generation.which[position]]:
                cell = ledger.touch(pane_of(ts))
                cell.revision += 1
                cell.clicks += 1
                cell.measurable += bool(gained & MEASURABLE)
                cell.viewable += bool(gained & VIEWABLE)
                if born & PER_CLICK or (born & PER_VIEWABLE and gained & VIEWABLE):
                    cell.spend += generation.cost[position]

    def _forget(self, bound: int) -> None:
        """Forget panes before a bound, and renders that neither a view nor a duplicate can refer to any more."""
        if bound > self.bound:
            if self.books.forget(self.bound, bound):
                self._ads.clear()
            self.bound = bound
        horizon = self._earliest_possible_render() - self.rules.dedup_horizon_ms
        self.impressions.forget_before(min(bound, horizon))

    # --- the journal: taking deltas and folding them -----------------------------------------------------------------

    def final_before(self) -> int:
        """Return the start of the first pane that an acceptable event can still change (README, windows)."""
        stream_times = [progress.stream_time for progress in self.progress.values()]
        if NEVER in stream_times:
            return 0
        renders, *others = stream_times
        last_word = min(renders, *(other - self.rules.viewability_horizon_ms for other in others))
        return max(0, pane_of(last_word - self.rules.lateness_ms))

    def touched(self) -> list[Touched]:
        """Return the cells that changed since the last `take`: read them before the next `apply`."""
        self._count()
        return self.books.touched()

    def cells(self) -> list[Touched]:
        """Return every cell that is held: read them before the next `apply`."""
        self._count()
        return self.books.cells()

    def take(self, confirmed: int = 0) -> Delta:
        """Close the journal record that is being gathered and return it; what is below `confirmed` is forgotten.

        `confirmed` is the `final_before` of a partial whose delivery is confirmed. Nothing is forgotten before
        that, or a cell's last word could be lost with the partial.
        """
        self._count()
        delta = Delta(
            seq=self.seq,
            fences_before=self._taken_fences,
            progress=[progress.copy() for progress in self.progress.values()],
            reasons=dict(self.reasons),
            bound=max(self.bound, confirmed),
            rows=self.impressions.rows_from(self._taken_row, self._places.tobytes()),
            marks=Marks(self._marked_rows.tobytes(), bytes(self._marked_says), self._clicks),
            waiting=list(self._added.values()),
            settled=self._settled,
            invalid=dict(self.invalid),
            unchecked=self.unchecked,
            click_credits=self._click_credits,
            rules=self._plain_rules,
            caps=self.caps.take(self.seq),
            campaigns=self.campaigns.digest(self.progress[RENDERS].stream_time),
        )
        self._close(delta)
        return delta

    def fold(self, deltas: Iterable[Delta], stream_time: int = NEVER) -> None:
        """Repeat what deltas say, in the order of their numbers, from the oldest one kept.

        If it is known which stream time of renders they lead to, what is forgotten by then need not be noted.
        """
        for delta in deltas:
            self._fold(delta, stream_time)
        self.impressions.index()
        self._count()
        self.books.close()

    def _fold(self, delta: Delta, stream_time: int) -> None:
        self.seq = delta.seq
        if not self._records:
            self.impressions.start_at(delta.rows.first)
            self._counted_to = delta.rows.first
        for where in delta.settled:
            if where in self._held:
                self._release(self._held[where])
        rows = delta.rows
        segments = rows.segments or [[]] * len(rows.series)
        ledgers = [
            NOBODYS if one == NOBODY else self.books.open(one, more)
            for one, more in zip(rows.series, segments, strict=True)
        ]
        self._remember_all(rows, ledgers, max(stream_time, delta.progress[0].stream_time))
        self._mark_all(delta.marks, delta.click_credits)
        for waiting in delta.waiting:
            self._hold(waiting)
        self.progress = dict(zip(TOPICS, (progress.copy() for progress in delta.progress), strict=True))
        self.reasons = dict(delta.reasons)
        self.invalid |= delta.invalid
        self.unchecked = delta.unchecked
        self.caps.tell(delta.seq, delta.caps)
        self._close(delta)

    def _remember_all(self, rows: Rows, ledgers: Sequence[Ledgers], stream_time: int) -> None:
        self.impressions.extend(rows, ledgers)
        places, ts, newest = rows.anchors(self.anchors.needed_since(stream_time))
        self.anchors.add(places, ts)
        self._newest_anchor = max(self._newest_anchor, newest)

    def _mark_all(self, marks: Marks, click_credits: int) -> None:
        rows, says = np.frombuffer(marks.rows, np.int64), np.frombuffer(marks.says, np.uint8)
        for generation, here in self.impressions.parts(rows):
            self._gains += mark(generation, rows[here] - generation.start, says[here]).tobytes()
            self._gained_rows.frombytes(rows[here].tobytes())
        for row, click in marks.clicks:
            if row >= self.impressions.first:
                self._count_click(row, click, click_credits)

    def _close(self, delta: Delta) -> None:
        self.journaled_rules, self.journaled_campaigns = delta.rules, delta.campaigns
        if delta.bound > self.bound:
            self._count()  # a ledger is forgotten when it has no cell: those of a fold may still be to come
        self.books.close()
        self._forget(delta.bound)
        self.anchors.forget(self.progress[RENDERS].stream_time)
        self.caps.forget(self._earliest_possible_render())
        self._records.append((delta.seq, self.impressions.end, self._newest_anchor))
        self.seq = delta.seq + 1
        self._open()

    def expired(self) -> list[int]:
        """Return, once, the numbers of journal records that nothing needs any more, oldest first.

        Call it when the last taken record is confirmed; the newest record is never among them.
        """
        numbers = []
        needed = {waiting.seq for waiting in self._held.values()}
        while len(self._records) > 1:
            seq, end, newest_anchor = self._records[0]
            if end > self.impressions.first or seq in needed or newest_anchor >= self.anchors.since:
                break
            if self.caps.carry(seq):
                break
            numbers.append(seq)
            self._records.popleft()
        return numbers
