"""Why an impression counted or not: every event of it, by the core that counts.

Law: no rule is decided here. A `Witness` is a `Partition` that writes down what it decides of the events in question,
what they met, and what they added to the figures.

    look for the id ─> where it lies, in which slots it was rendered ─> watch whole partitions ─> one Finding an event
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from streams.core.campaigns import Campaigns
from streams.core.delta import Batch, Progress, Refused, piece
from streams.core.events import (
    DEFAULT_SOURCE,
    RENDERS,
    TOPICS,
    Event,
    Malformed,
    Render,
    Viewability,
)
from streams.core.impressions import (
    ANCHOR,
    DECLARED,
    INVALID,
    MEASURABLE,
    OVER_CAP,
    PER_CLICK,
    PER_VIEWABLE,
    STANDARD,
    VIEWABLE,
)
from streams.core.lookup import Numbers
from streams.core.money import decimal_text
from streams.core.panes import Ledgers, minute_of
from streams.core.partition import Partition, identity
from streams.core.refresh import NOWHERE, place_of
from streams.core.rules import OUTCOME_NAMES, SECOND, Outcome, Rules
from streams.core.waiting import Waiting
from streams.wire.events import decoder

PENDING: Final = "pending"

_GAINS: Final = ((MEASURABLE, "makes it measurable"), (VIEWABLE, "makes it viewable"))

RULES: Final = {
    "malformed": (1, "an event of the event tables"),
    "future": (2, "at most 10 min ahead of its record's own time"),
    "late": (3, "no older than stream time less STREAMS_LATENESS"),
    "duplicate": (4, "a first render, a view that says something new, or another click"),
    "invalid_traffic": (5, "neither declared invalid, nor of a known bot, nor from a data centre"),
    "refresh": (6, "STREAMS_REFRESH_INTERVAL or more from the counted ones of its slot and viewer"),
    "orphan": (7, "of a counted render whose window holds it"),
    "counted": (8, "none of what rules 1 to 7 refuse"),
    PENDING: (7, "of a counted render whose window holds it"),
}
"""Outcome -> number of the rule that spoke (README, outcomes), and what it wants an event to be."""

STANDARD_NAMES: Final = ("display", "large display", "video", "audio")
"""Names of the viewability standards, by their numbers."""

_FORGET_EVERY: Final = 32
"""Batches after which the core forgets what nothing can refer to any more."""


class Place(NamedTuple):
    """Where an event lies: partition and offset in a topic; in a file, which is partition 0, the offset is its line."""

    topic: str
    partition: int
    offset: int


class Reference(NamedTuple):
    """Another event that decided: where it lies, when it was, and how far away in ms (less than 0: before)."""

    place: Place
    ts: int
    apart_ms: int


@dataclass(kw_only=True)
class Finding:
    """One event and what became of it. Times in ms since the epoch; what does not apply is None."""

    place: Place
    source: str | None = None
    """None of a malformed record."""
    impression_id: str | None = None
    ts: int | None = None
    kind: str | None = None
    """What a view says."""
    outcome: str = ""
    reason: str = ""
    campaign_id: str | None = None
    currency: str | None = None
    spend: str | None = None
    """What it added to the spend of its campaign, as decimal text."""
    window: int | None = None
    """Start of the minute whose figures it changed."""
    refers_to: Reference | None = None
    """Of a duplicate the first, of a refresh the counted one nearest to it, of a view or click its render."""

    @property
    def rule(self) -> tuple[int, str]:
        """Number and sentence of the rule that decided."""
        return RULES[self.outcome]


# --- finding the events -----------------------------------------------------------------------------------------------


class Search:
    """What to look for: events of one impression id, of one source or of all; and what was found so far."""

    def __init__(self, impression_id: str, source: str | None = None) -> None:
        self.impression_id = impression_id
        self.source = source
        self.partitions: set[int] = set()
        """Partitions that hold any of its events."""
        self.slots: set[int] = set()
        """Keys of (source, viewer, slot, ad) that it was rendered in."""
        self._written = orjson.dumps(impression_id)

    def mentions(self, value: bytes | None) -> bool:
        """Say whether a record may be of this id: cheap, before decoding. An id can be written with escapes."""
        return value is not None and (self._written in value or b"\\" in value)

    def is_one(self, event: Event) -> bool:
        """Say whether an event is what is looked for."""
        return event.impression_id == self.impression_id and self.source in (None, source_of(event))

    def matters(self, event: Event) -> bool:
        """Say whether an event is looked for, or is a render of the same slot: it can be what another one refreshes."""
        return self.is_one(event) or (isinstance(event, Render) and place_of(event) in self.slots)

    def look(self, topic: str, partition: int, values: Iterable[bytes | None]) -> None:
        """Take note of where the events lie among the records of a topic partition."""
        suspects = [value for value in values if self.mentions(value)]
        for value, event in zip(suspects, decoder(topic)(suspects), strict=True):
            if isinstance(event, Malformed):
                if self.is_malformed_one(value):
                    self.partitions.add(partition)
            elif self.is_one(event):
                self.partitions.add(partition)
                if isinstance(event, Render):
                    self.slots.add(place_of(event))
        self.slots.discard(NOWHERE)

    def is_malformed_one(self, value: bytes | None) -> bool:
        """Say whether a record that is no event holds the id as it would be written without need of escapes."""
        return value is not None and self._written in value


def source_of(event: Event) -> str:
    """Return who counted an event."""
    return event.source or DEFAULT_SOURCE


# --- watching them being decided --------------------------------------------------------------------------------------


class Met(NamedTuple):
    """A view or click that has met a render: the row, and what that gained by it, as bits and as money."""

    row: int
    gained: int
    spend: int


class Witness(Partition):
    """A partition of viewers that writes down what becomes of the events that are looked for: each is a batch alone."""

    def __init__(self, search: Search, partition: int, rules: Rules, campaigns: Campaigns) -> None:
        super().__init__(rules, campaigns)
        self.number = partition
        self._search = search
        self._batches = 0
        self._findings: dict[Place, Finding] = {}
        self._rows: dict[int, Finding] = {}
        """Row -> the watched render that is remembered there."""
        self._anchored: dict[int, list[Finding]] = {}
        """Slot -> the counted renders that others are compared with."""
        self._met: Met | None = None
        """What the view or click did that is being decided."""

    def watch(self, batch: Batch, values: Sequence[bytes | None]) -> None:
        """Apply a batch. `values` are the records themselves."""
        done = 0
        for number, event in enumerate(batch.events):
            if isinstance(event, Malformed):
                if self._search.is_malformed_one(values[number]):
                    self._note(batch.topic, batch.offsets[number], event)
            elif self._search.matters(event):
                self._pass(batch, done, number)
                self._watch(batch.topic, event, piece(batch, number, number + 1))
                done = number + 1
        self._pass(batch, done, len(batch.events))
        self._batches += 1
        if self._batches % _FORGET_EVERY == 0:
            self.take(self.final_before())

    def _pass(self, batch: Batch, start: int, stop: int) -> None:
        """Apply the events from `start` to `stop`, of which none is looked for unless it is malformed."""
        if start < stop:
            for letter in self.apply(piece(batch, start, stop)):
                self._tell_refused(letter)

    def _watch(self, topic: str, event: Event, alone: Batch) -> None:
        found = self._note(topic, alone.offsets[0], event)
        progress = self.progress[topic]
        behind_ms, outcomes = progress.stream_time - event.ts, list(progress.outcomes)
        if isinstance(event, Render):
            self._watch_render(found, event, alone)
        else:
            for letter in self.apply(alone):
                self._tell_refused(letter)
        if progress.outcomes[Outcome.LATE] > outcomes[Outcome.LATE]:
            found.outcome, found.reason = OUTCOME_NAMES[Outcome.LATE], _late(topic, behind_ms)

    def findings(self) -> list[Finding]:
        """Return what was found out, by source and then in order of time."""
        return sorted(
            self._findings.values(),
            key=lambda one: (one.source or "", one.ts or 0, TOPICS.index(one.place.topic), one.place),
        )

    def _note(self, topic: str, offset: int, event: Event | Malformed) -> Finding:
        """Open a finding; only those of events that are looked for are kept."""
        found = Finding(place=Place(topic, self.number, offset))
        if isinstance(event, Malformed):
            self._findings[found.place] = found
            return found
        found.source, found.impression_id, found.ts = source_of(event), event.impression_id, event.ts
        if isinstance(event, Viewability):
            found.kind = event.kind
        elif isinstance(event, Render):
            found.campaign_id = event.campaign_id
        if self._search.is_one(event):
            self._findings[found.place] = found
        return found

    def _tell_refused(self, letter: Refused) -> None:
        found = self._findings.get(Place(letter.topic, self.number, letter.offset))
        if found is not None:
            found.outcome = "malformed" if found.source is None else "future"
            found.reason = f"{letter.reason}: {letter.detail}"

    # --- renders -----------------------------------------------------------------------------------------------------

    def _watch_render(self, found: Finding, render: Render, alone: Batch) -> None:
        """Apply a render alone, and say what became of it by what is different then."""
        row, unchecked, invalid = self.impressions.end, self.unchecked, dict(self.invalid)
        outcomes = list(self.progress[RENDERS].outcomes)
        self._rows[row] = found
        refused = self.apply(alone)
        for letter in refused:
            self._tell_refused(letter)
        grown = [number for number, count in enumerate(self.progress[RENDERS].outcomes) if count > outcomes[number]]
        if self.impressions.end == row:
            del self._rows[row]
        only_stands_there = not self._search.is_one(render)  # in the slot, for others to be compared with
        if refused or not grown or (only_stands_there and grown[0] != Outcome.COUNTED):
            return
        found.outcome = OUTCOME_NAMES[grown[0]]
        if grown[0] == Outcome.DUPLICATE:
            key = identity(render.source, render.impression_id)
            self._refer(found, self._render_at(self._first_like(key, render.ts)), "this impression was rendered")
        elif grown[0] == Outcome.INVALID_TRAFFIC:
            reason = next(reason for reason, count in self.invalid.items() if count > invalid[reason])
            found.reason = f"{reason}; it is in the gross figures only"
        elif grown[0] == Outcome.REFRESH:
            nearest = self._nearest_anchor(place_of(render), render.ts)
            self._refer(found, nearest, "the same ad was counted in this slot before this viewer")
        elif grown[0] == Outcome.COUNTED:
            self._tell_counted(found, row, place_of(render))
            if self.unchecked > unchecked:
                found.reason += ", could not be asked whether it is a refresh"

    def _first_like(self, key: int, ts: int) -> int:
        """Return the first row of an identity that a render of this time is a duplicate of."""
        rows = self.impressions.with_older(self.impressions.newest(key))
        near = [row for row in rows if abs(self.impressions.ts_of(row) - ts) <= self.rules.dedup_horizon_ms]
        return near[-1]

    def _render_at(self, row: int) -> Finding:
        """Return the render that is remembered in a row: what others refer to is watched, too."""
        return self._rows[row]

    def _nearest_anchor(self, place: int, ts: int) -> Finding:
        return min(self._anchored[place], key=lambda one: abs((one.ts or 0) - ts))

    def _tell_counted(self, found: Finding, row: int, place: int) -> None:
        generation, position = self.impressions.at(row)
        born, cost = generation.born[position], generation.cost[position]
        ledgers = generation.groups[generation.which[position]]
        self._credit(found, ledgers, generation.ts[position], 0 if born & (PER_VIEWABLE | PER_CLICK) else cost)
        found.reason = f"viewability as {STANDARD_NAMES[(born & STANDARD) // 8]}"
        found.reason += ", a declared refresh" if born & DECLARED else ""
        found.reason += ", over the frequency cap" if born & OVER_CAP else ""
        if born & ANCHOR:
            self._anchored.setdefault(place, []).append(found)

    # --- views and clicks --------------------------------------------------------------------------------------------

    def _met_at_once(
        self, plain: NDArray[np.bool_], rows: Numbers, ts: Numbers, says: NDArray[np.uint8], progress: Progress
    ) -> NDArray[np.bool_]:
        """Leave all of them to be decided one after the other."""
        return np.zeros(len(rows), np.bool_)

    def _join(self, topic: str, offset: int, ts: int, says: int, click: int, key: int, newest: int) -> Outcome | None:
        self._met = None
        outcome = super()._join(topic, offset, ts, says, click, key, newest)
        found = self._findings.get(Place(topic, self.number, offset))
        if found is not None:
            self._tell_joined(found, outcome)
        return outcome

    def _meet(self, row: int, says: int, click: int) -> Outcome:
        generation, position = self.impressions.at(row)
        bits, born, cost = generation.bits[position], generation.born[position], generation.cost[position]
        outcome = super()._meet(row, says, click)
        gained = generation.bits[position] & ~bits
        is_paid = (born & PER_VIEWABLE and gained & VIEWABLE) or (born & PER_CLICK and not says)
        self._met = Met(row, gained, cost if is_paid else 0)
        return outcome

    def _settle_orphans(self) -> None:
        self._met = None
        super()._settle_orphans()

    def _settle(self, waiting: Waiting, outcome: Outcome) -> None:
        super()._settle(waiting, outcome)
        found = self._findings.get(Place(waiting.topic, self.number, waiting.offset))
        if found is not None:
            self._tell_joined(found, outcome)

    def _tell_joined(self, found: Finding, outcome: Outcome | None) -> None:
        ts, rules = found.ts or 0, self.rules
        found.outcome = PENDING if outcome is None else OUTCOME_NAMES[outcome]
        if outcome is None:
            until = ts + rules.early_ms + rules.lateness_ms
            found.reason = f"waits for its render until the stream time of renders passes {clock(until)}"
        elif self._met is None:
            earliest, latest = ts - rules.viewability_horizon_ms, ts + rules.early_ms
            found.reason = f"no render between {clock(earliest)} and {clock(latest)} came in time"
        else:
            self._tell_met(found, outcome, self._met)

    def _tell_met(self, found: Finding, outcome: Outcome, met: Met) -> None:
        generation, position = self.impressions.at(met.row)
        born, ts = generation.born[position], generation.ts[position]
        self._refer(found, self._render_at(met.row), "its render began")
        if outcome == Outcome.ORPHAN:
            found.reason += ", and is invalid traffic" if born & INVALID else ", and is a refresh"
        elif outcome == Outcome.DUPLICATE:
            found.reason += "; earlier ones had said the same"
        else:
            self._credit(found, generation.groups[generation.which[position]], ts, met.spend)
            found.reason += "".join(f"; {text}" for bit, text in _GAINS if met.gained & bit)

    # --- what they share ---------------------------------------------------------------------------------------------

    def _credit(self, found: Finding, ledgers: Ledgers, render_ts: int, spend: int) -> None:
        """Say whose figures an event changed, of which minute, and by how much money."""
        series = ledgers[0].series
        found.campaign_id, found.currency = series.campaign_id, series.currency
        found.window, found.spend = minute_of(render_ts), decimal_text(spend)

    def _refer(self, found: Finding, other: Finding, what: str) -> None:
        apart_ms = (other.ts or 0) - (found.ts or 0)
        found.refers_to = Reference(other.place, other.ts or 0, apart_ms)
        found.reason = f"{what} {_span(apart_ms)}"


def _late(topic: str, behind_ms: int) -> str:
    return f"{_seconds(behind_ms)} behind the stream time of {topic}"


def _span(apart_ms: int) -> str:
    """Say how far away in time something is."""
    return "at the same time" if not apart_ms else f"{_seconds(abs(apart_ms))} {'later' if apart_ms > 0 else 'before'}"


def _seconds(ms: int) -> str:
    return f"{ms / SECOND:,.3f}".rstrip("0").rstrip(".") + " s"


def clock(ts_ms: int) -> str:
    """Return a time as people read it, in UTC; what lies before 1970 is its beginning."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=max(ts_ms, 0))
    return moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
