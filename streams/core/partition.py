"""One partition of viewers: decides what becomes of every event, and holds all that a later decision needs.

Law: the state after a batch is a function of the records up to it and of nothing else. What a batch did is a `Delta`,
and folding the deltas of a partition in order gives the state that wrote them, field by field.

    renders ──┐
    views   ──┼─> apply(batch) ─> outcomes, impressions, cells ─> take() ─> Delta ─> fold(delta) ─> the same state
    clicks  ──┘
"""

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, Final

import msgspec
import xxhash

from streams.core.books import Books
from streams.core.bulk import FEW, count_marks, count_rows
from streams.core.campaigns import BASIS, Campaigns, Cap, Caps
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
from streams.core.money import impression_nano
from streams.core.panes import NOBODY, PANE_MS, Ledgers, Touched, pane_of
from streams.core.refresh import NOWHERE, Anchors, place_of
from streams.core.rules import Outcome, PlainRules, Rules
from streams.core.standards import STANDARDS, standard_of, verdict
from streams.core.traffic import INVALID_REASONS, Addresses, invalid_reason

# To read a member of an enum class costs as much as a call in Python 3.11: on the path of every event, these stand in.
_COUNTED: Final = Outcome.COUNTED
_DUPLICATE: Final = Outcome.DUPLICATE
_FUTURE: Final = Outcome.FUTURE
_INVALID_TRAFFIC: Final = Outcome.INVALID_TRAFFIC
_LATE: Final = Outcome.LATE
_MALFORMED: Final = Outcome.MALFORMED
_ORPHAN: Final = Outcome.ORPHAN
_REFRESH: Final = Outcome.REFRESH

NEVER: Final = -1
"""The stream time of a topic partition that has given no event yet."""

FUTURE: Final = _FUTURE.name.lower()
"""Why a record whose event lies too far ahead of it is refused."""

NOBODYS: Final[Ledgers] = ()
"""Where refreshes are counted."""

# What each kind of view says, as bits of a row (MRC: a verdict on viewability implies that it could be measured).
_SAYS: Final[Mapping[str, int]] = {
    "undetermined": SAID_UNDETERMINED,
    "measurable": SAID_MEASURABLE,
    "not_viewable": SAID_MEASURABLE,
    "viewable": SAID_MEASURABLE | SAID_VIEWABLE,
}


class Batch(msgspec.Struct, frozen=True):
    """Consecutive records of one topic partition, decoded: `events[i]` lay at `offsets[i]`."""

    topic: str
    offsets: Sequence[int]
    events: Sequence[Event | Malformed]
    next_offset: int
    """Where reading goes on after this batch."""
    timestamps: Sequence[int | None] = ()
    """The own time of each record in ms, None where it has none; nothing at all for files, which have none."""


class Refused(msgspec.Struct, frozen=True):
    """A record that goes to `dead-letters`: where it lay and why."""

    topic: str
    offset: int
    reason: str
    detail: str


class Waiting(msgspec.Struct, array_like=True, gc=False):
    """A view or click whose render has not come yet, with all that its decision will need."""

    topic: str
    offset: int
    key: int
    ts: int
    says: int
    """What it says, as bits of a row; a raw signal, a byte for each standard that its render may have."""
    click: int
    """64-bit key of the click's id, 0 if it has none; for a view 0 as well."""
    seq: int
    """The journal record that first told of it."""


class Marks(msgspec.Struct, frozen=True, array_like=True):
    """Counted views as columns (the row of each, and what it says as bits of a row), and counted clicks.

    A click is its row and the 64-bit key of its id, 0 if it has none.
    """

    rows: bytes
    says: bytes
    clicks: list[tuple[int, int]]


class Progress(msgspec.Struct, array_like=True):
    """How far one input topic has been read, and what became of it. All of it is cumulative."""

    fence: int = 0
    """Offset after the last applied record: records below it are in the state already."""
    stream_time: int = NEVER
    outcomes: list[int] = msgspec.field(default_factory=lambda: [0] * len(Outcome))

    @property
    def consumed(self) -> int:
        """Records read so far, whatever became of them, without those that wait."""
        return sum(self.outcomes)

    def copy(self) -> "Progress":
        """Return progress of its own with the same figures."""
        return Progress(self.fence, self.stream_time, list(self.outcomes))


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What happened to a partition between two `take`s: one journal record. Progress and counts are absolute."""

    seq: int
    fences_before: list[int]
    progress: list[Progress]
    reasons: dict[str, int]
    bound: int
    """Panes before this are final, and a confirmed partial has said so: what lies there is forgotten."""
    rows: Rows
    marks: Marks
    waiting: list[Waiting]
    settled: list[tuple[str, int]]
    """(topic, offset) of what earlier records said is waiting, and waits no more."""
    invalid: dict[str, int] = {}
    unchecked: int = 0
    click_credits: int = 0
    """What a counted click is worth, as bits of a row."""
    rules: PlainRules = {}
    """What all of this was decided by."""
    caps: list[tuple[int, int, int]] = []
    """(end of a period in ms, key of (source, campaign, viewer), impressions in it so far)."""
    campaigns: str = ""
    """Hash of the campaigns' history up to the stream time of renders."""


def _says(view: Viewability) -> int:
    """Return what a view says, as bits of a row; for a raw signal, a byte for each standard, by its number."""
    if view.kind != "signal":
        return _SAYS[view.kind]
    return sum(_SAYS[verdict(standard, view)] << 8 * number for number, standard in enumerate(STANDARDS))


def identity(source: str | None, impression_id: str) -> int:
    """Return the 64-bit key of an impression: its identity is (source, impression_id), never the id alone."""
    return xxhash.xxh3_64_intdigest(impression_id.encode(), _seed(source))


@lru_cache(maxsize=4_096)
def _seed(source: str | None) -> int:
    return xxhash.xxh3_64_intdigest((source or DEFAULT_SOURCE).encode())


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
        self._due = _DueDates()
        self._deciders: dict[str, Callable[[int, Any, int, int, Progress], Outcome | None]] = {
            RENDERS: self._render,
            VIEWABILITY: self._view,
            CLICKS: self._click,
        }
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

    def remembered(self) -> int:
        """Return how many impressions and waiting events are held: what the memory of a partition grows with."""
        return len(self.impressions) + sum(self.pending.values())

    # --- applying events -------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> list[Refused]:
        """Decide a batch event by event; return what goes to `dead-letters`. Records below the fence are skipped."""
        progress = self.progress[batch.topic]
        refused: list[Refused] = []
        decide = self._deciders[batch.topic]
        outcomes, fence, future = progress.outcomes, progress.fence, self.rules.future_ms
        own_times = batch.timestamps or repeat(None, len(batch.offsets))
        keys = [0 if isinstance(one, Malformed) else identity(one.source, one.impression_id) for one in batch.events]
        self.impressions.make_room(len(keys))
        sealed = self.impressions.sealed(keys)
        for offset, event, key, row, own_time in zip(batch.offsets, batch.events, keys, sealed, own_times, strict=True):
            if offset < fence:
                continue
            outcome: Outcome | None
            if isinstance(event, Malformed):
                refused.append(Refused(batch.topic, offset, event.reason, event.detail))
                outcome = _MALFORMED
            elif own_time is not None and event.ts > own_time + future:
                refused.append(Refused(batch.topic, offset, FUTURE, f"ts: more than {future} ms after the record"))
                outcome = _FUTURE
            else:
                outcome = decide(offset, event, key, row, progress)
            if outcome is not None:
                outcomes[outcome] += 1
        progress.fence = max(fence, batch.next_offset)
        for letter in refused:
            self.reasons[letter.reason] = self.reasons.get(letter.reason, 0) + 1
        self._settle_orphans()
        return refused

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

    def _render(self, offset: int, render: Render, key: int, sealed: int, progress: Progress) -> Outcome:
        ts = render.ts
        if ts < progress.stream_time - self.rules.lateness_ms:
            return _LATE
        if ts > progress.stream_time:
            progress.stream_time = ts
        older = self.impressions.recent.get(key, sealed)
        if older != NO_ROW and self._duplicated(older, ts):
            return _DUPLICATE
        outcome, born, place = self._judge(render, progress.stream_time - ts)
        cost, ledgers = 0, NOBODYS
        if born:
            cost, agreed, ledgers = self._priced(render, born)
            born |= agreed
        row = self._remember(key, ts, cost, ledgers, born, place, older)
        if key in self.waiting:
            self._meet_waiting(key, row)
        return outcome

    def _judge(self, render: Render, behind_ms: int) -> tuple[Outcome, int, int]:
        """Decide rules 5, 6 and 8 of a render; return with the outcome what its row is born with, and its place."""
        if render.invalid or render.user_agent or render.ip:
            reason = invalid_reason(render, self._datacenters)
            if reason is not None:
                self.invalid[reason] += 1
                return _INVALID_TRAFFIC, INVALID, NOWHERE
        asks = self.rules.refresh_interval_ms and self.rules.key == "viewer"
        place = place_of(render) if asks else NOWHERE
        if self._is_refresh(render, place, behind_ms):
            return _REFRESH, 0, NOWHERE
        born = COUNTED | standard_of(render) * 8
        if place:
            born |= ANCHOR
        if render.refresh is not None:
            born |= DECLARED
        return _COUNTED, born, place

    def _is_refresh(self, render: Render, place: int, behind_ms: int) -> bool:
        rules = self.rules
        if not rules.refresh_interval_ms or (
            rules.count_user_refresh and render.refresh is not None and render.refresh.type == "user"
        ):
            return False
        if not place or behind_ms > rules.refresh_slack_ms:
            self.unchecked += 1
            return False
        return place in self.anchors.by_place and self.anchors.is_near(place, render.ts)

    def _view(self, offset: int, view: Viewability, key: int, sealed: int, progress: Progress) -> Outcome | None:
        return self._join(VIEWABILITY, offset, view.ts, _says(view), 0, key, sealed, progress)

    def _click(self, offset: int, click: Click, key: int, sealed: int, progress: Progress) -> Outcome | None:
        click_key = xxhash.xxh3_64_intdigest(click.click_id.encode()) if click.click_id else 0
        return self._join(CLICKS, offset, click.ts, 0, click_key, key, sealed, progress)

    def _join(
        self, topic: str, offset: int, ts: int, says: int, click: int, key: int, sealed: int, progress: Progress
    ) -> Outcome | None:
        """Bring a view or click to its render; None if the render may still come."""
        if ts < progress.stream_time - self.rules.lateness_ms:
            return _LATE
        if ts > progress.stream_time:
            progress.stream_time = ts
        newest = self.impressions.recent.get(key, sealed)
        if newest >= self.impressions.first:
            row = self._row_for(newest, ts)
            if row != NO_ROW:
                return self._meet(row, says, click)
        if ts < self._earliest_possible_render() - self.rules.early_ms:
            return _ORPHAN
        self._wait(Waiting(topic, offset, key, ts, says, click, self.seq))
        return None

    def _duplicated(self, newest: int, ts: int) -> list[int]:
        """Return the rows of an identity, of which this is the newest, that a render of that time is a duplicate of."""
        horizon, ts_of = self.rules.dedup_horizon_ms, self.impressions.ts_of
        return [row for row in self.impressions.with_older(newest) if abs(ts - ts_of(row)) <= horizon]

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
        self._mark(generation, position, says, click, self._click_credits)
        if says:
            self._marked_rows.append(row)
            self._marked_says.append(says)
        else:
            self._clicks.append((row, click))
        return _COUNTED

    # --- what an impression costs and where it is counted ----------------------------------------------------------

    def _priced(self, render: Render, born: int) -> tuple[int, int, Ledgers]:
        """Return what a render costs in nano-units, for what and whether over the cap (bits of a row), and its ledgers.

        Its own price holds unless its campaign has terms.
        """
        campaign = self.campaigns.by_id.get(render.campaign_id)
        terms = None if campaign is None else campaign.terms_at(render.ts)
        agreed = 0
        if campaign is None or terms is None:
            cost = impression_nano(bytes(render.price), render.price_unit or "cpm")
            currency = NO_CURRENCY if cost is None else render.currency or DEFAULT_CURRENCY
        else:
            cost, currency, agreed = terms.nano, campaign.currency, BASIS[terms.model]
        if campaign is not None and born & COUNTED and (terms is not None or not campaign.terms):
            agreed |= self._capped(render, campaign.cap)
        return cost or 0, agreed, self.books.of(render, currency)

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

    # --- effects: what `apply` does and `fold` repeats -------------------------------------------------------------

    def _remember(self, key: int, ts: int, cost: int, ledgers: Ledgers, born: int, place: int, older: int) -> int:
        row = self.impressions.append(key, ts, cost, ledgers, born, older)
        if place:
            self._anchor(place, ts)
        if ts >= self.bound:
            for ledger in ledgers:
                cell = ledger.touch(ts - ts % PANE_MS)
                cell.gross += 1
                if born & COUNTED:
                    cell.served += 1
                    cell.revision += 1
                    if not born & (PER_VIEWABLE | PER_CLICK):
                        cell.spend += cost
                    if born & (DECLARED | OVER_CAP):
                        cell.declared += bool(born & DECLARED)
                        cell.over_cap += bool(born & OVER_CAP)
        return row

    def _anchor(self, place: int, ts: int) -> None:
        self.anchors.add(place, ts)
        self._places.append(place)
        if ts > self._newest_anchor:
            self._newest_anchor = ts

    def _mark(self, generation: Generation, position: int, says: int, click: int, click_credits: int) -> None:
        before = generation.bits[position]
        after = before | says | (CREDITS[says] if says else click_credits)
        generation.bits[position] = after
        if not says:
            generation.clicked.setdefault(generation.start + position, set()).add(click)
        ts = generation.ts[position]
        if ts >= self.bound:
            born, cost, gained = generation.born[position], generation.cost[position], after & ~before
            for ledger in generation.groups[generation.which[position]]:
                cell = ledger.touch(ts - ts % PANE_MS)
                cell.revision += 1
                if not says:
                    cell.clicks += 1
                    if born & PER_CLICK:
                        cell.spend += cost
                if gained & MEASURABLE:
                    cell.measurable += 1
                if gained & VIEWABLE:
                    cell.viewable += 1
                    if born & PER_VIEWABLE:
                        cell.spend += cost

    def _forget(self, bound: int) -> None:
        """Forget panes before a bound, and renders that neither a view nor a duplicate can refer to any more."""
        if bound > self.bound:
            self.books.forget(self.bound, bound)
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
        return self.books.touched()

    def cells(self) -> list[Touched]:
        """Return every cell that is held: read them before the next `apply`."""
        return self.books.cells()

    def take(self, confirmed: int = 0) -> Delta:
        """Close the journal record that is being gathered and return it; what is below `confirmed` is forgotten.

        `confirmed` is the `final_before` of a partial whose delivery is confirmed. Nothing is forgotten before
        that, or a cell's last word could be lost with the partial.
        """
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

    def _fold(self, delta: Delta, stream_time: int) -> None:
        self.seq = delta.seq
        if not self._records:
            self.impressions.start_at(delta.rows.first)
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
        if len(rows) < FEW:
            self.impressions.make_room(len(rows))
            for key, ts, cost, which, born, place in rows:
                self._remember(key, ts, cost, ledgers[which], born, place, NO_ROW)
        else:
            self.impressions.extend(rows, ledgers)
            count_rows(rows, ledgers, self.bound)
            anchors, newest = rows.anchors(self.anchors.needed_since(stream_time))
            for place, ts in anchors:
                self.anchors.add(place, ts)
            self._newest_anchor = max(self._newest_anchor, newest)

    def _mark_all(self, marks: Marks, click_credits: int) -> None:
        if len(marks.says) < FEW:
            for row, says in zip(array("Q", marks.rows), marks.says, strict=True):
                if row >= self.impressions.first:
                    self._mark(*self.impressions.at(row), says, 0, 0)
        else:
            count_marks(self.impressions, marks.rows, marks.says, self.bound)
        for row, click in marks.clicks:
            if row >= self.impressions.first:
                self._mark(*self.impressions.at(row), 0, click, click_credits)

    def _close(self, delta: Delta) -> None:
        self.journaled_rules, self.journaled_campaigns = delta.rules, delta.campaigns
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


class _DueDates:
    """What waits, by the pane of its time, so that what can wait no longer is found without a search."""

    def __init__(self) -> None:
        self._panes: dict[int, dict[tuple[str, int], Waiting]] = {}
        self._order: list[int] = []

    def add(self, waiting: Waiting) -> None:
        pane = pane_of(waiting.ts)
        if pane not in self._panes:
            self._panes[pane] = {}
            heapq.heappush(self._order, pane)
        self._panes[pane][waiting.topic, waiting.offset] = waiting

    def remove(self, waiting: Waiting) -> None:
        self._panes.get(pane_of(waiting.ts), {}).pop((waiting.topic, waiting.offset), None)

    def before(self, ts_ms: int) -> list[Waiting]:
        """Return what has an earlier time; panes that are empty and past are dropped."""
        found: list[Waiting] = []
        while self._order and self._order[0] < ts_ms:
            held = self._panes[self._order[0]]
            found += [waiting for waiting in held.values() if waiting.ts < ts_ms]
            if self._order[0] + PANE_MS > ts_ms:
                break
            del self._panes[heapq.heappop(self._order)]
        return found
