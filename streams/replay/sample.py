"""What a sample of the newest records tells of their senders: keys, clocks, and whether events can be read.

Law: a sample shows that something is wrong, never that all is right; what it says names places, and nobody.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from streams.core.delta import Batch
from streams.core.events import CLICKS, RENDERS, VIEWABILITY, Event, Malformed, Render
from streams.core.partition import identity
from streams.core.rules import SECOND, Rules

CLOCK_MS: Final = SECOND
"""Clocks that are this close are as good as equal."""
_BY_KEY: Final = {
    "viewer": "key all topics by viewer_id, or by impression_id where there is none; where senders of views and clicks "
    "do not know the viewer, key all topics by impression_id and set STREAMS_KEY=impression",
    "impression": "key all topics by impression_id, as STREAMS_KEY=impression says",
}


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic} {self.partition}/{self.offset}"


class Finding(NamedTuple):
    """What a check has to say. `is_fine` is None where there was nothing to check."""

    check: str
    is_fine: bool | None
    text: str


class Sample:
    """Takes records of the inputs, those of renders first, and says what it finds."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._renders: dict[int, Place] = {}
        self._viewers: dict[str, Place] = {}
        self._compared: Counter[str] = Counter()
        self._apart: dict[str, list[str]] = {RENDERS: [], VIEWABILITY: [], CLICKS: []}
        self._records: Counter[str] = Counter()
        self._malformed: list[str] = []
        self._timed = 0
        self._ahead: list[tuple[int, Place]] = []
        self._behind = 0
        self.newest_ms: int | None = None
        """The largest time at which a record was appended."""

    def look(self, partition: int, batch: Batch) -> None:
        """Take consecutive records of one partition."""
        self._records[batch.topic] += len(batch.events)
        for offset, event, appended in zip(batch.offsets, batch.events, batch.timestamps, strict=True):
            place = Place(batch.topic, partition, offset)
            if isinstance(event, Malformed):
                self._malformed.append(f"{place} ({event.reason})")
                continue
            self._look_at_key(event, place)
            if appended is not None:
                self._look_at_clock(event, appended, place)

    def _look_at_key(self, event: Event, place: Place) -> None:
        key = identity(event.source, event.impression_id)
        if not isinstance(event, Render):
            self._compare(place, self._renders.get(key))
            return
        self._renders.setdefault(key, place)
        if self._rules.key == "viewer" and event.viewer_id:
            self._compare(place, self._viewers.get(event.viewer_id))
            self._viewers.setdefault(event.viewer_id, place)

    def _compare(self, place: Place, render: Place | None) -> None:
        if render is not None:
            self._compared[place.topic] += 1
            if render.partition != place.partition:
                self._apart[place.topic].append(f"{place} and {render}")

    def _look_at_clock(self, event: Event, appended: int, place: Place) -> None:
        self._timed += 1
        self.newest_ms = max(appended, self.newest_ms or 0)
        if event.ts - appended > CLOCK_MS:
            self._ahead.append((event.ts - appended, place))
        elif appended - event.ts > self._rules.lateness_ms:
            self._behind += 1

    # --- what it found -----------------------------------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        """Yield a line for each thing that was looked at."""
        yield self._readable()
        if not self._records:
            return
        for topic, what in (
            (VIEWABILITY, "a view and its render"),
            (CLICKS, "a click and its render"),
            (RENDERS, "renders of one viewer"),
        ):
            yield self._together(topic, what)
        yield self._clocks()
        yield self._lateness()

    def _readable(self) -> Finding:
        count = self._records.total()
        if not count:
            return Finding("events", None, "there are no records yet: send some, and check again")
        if self._malformed:
            text = f"{len(self._malformed):,} of {count:,} records are no events, such as {self._malformed[0]}"
            return Finding("events", False, f"{text}: mend what sends them (README, events)")
        return Finding("events", True, f"all of {count:,} sampled records can be read")

    def _together(self, topic: str, what: str) -> Finding:
        count, apart = self._compared[topic], self._apart[topic]
        if not count:
            return Finding("keys", None, f"{what}: no two of them are in the sample; take a larger --sample")
        if apart:
            text = f"{what} lie in different partitions in {len(apart):,} of {count:,} cases, such as {apart[0]}"
            return Finding("keys", False, f"{text}, and never meet: {_BY_KEY[self._rules.key]}")
        return Finding("keys", True, f"{what} lie in one partition, in all of {count:,} cases")

    def _clocks(self) -> Finding:
        if not self._timed:
            return Finding("clocks", None, "no event of the sample has a time")
        if self._ahead:
            most, place = max(self._ahead)
            events = f"{len(self._ahead):,} of {self._timed:,} events"
            text = f"{events} are ahead of Kafka's clock, up to {most / 1000:,.1f} s"
            do = f"set their senders' clocks; beyond {self._rules.future_ms // 60_000} min they are refused"
            return Finding("clocks", False, f"{text} ({place}): {do}")
        return Finding("clocks", True, f"no event of {self._timed:,} is stamped later than Kafka took it")

    def _lateness(self) -> Finding:
        if self._behind:
            text = f"{self._behind:,} of {self._timed:,} events came later than STREAMS_LATENESS allows"
            return Finding("lateness", False, f"{text}: let them be sent sooner, or raise it")
        return Finding("lateness", True if self._timed else None, "no event came later than STREAMS_LATENESS allows")
