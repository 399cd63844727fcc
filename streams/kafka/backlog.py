"""Whose turn it is: the input topics of one partition, brought near to order of event time.

Law: order decides nothing that is counted. But a view that is read long before its render has to wait in memory, and
costs four times as much; so at catch-up no topic runs ahead of another one that still has older events to come.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from streams.core.delta import Batch
from streams.core.events import RENDERS, TOPICS, Malformed
from streams.core.rules import MINUTE, SECOND
from streams.kafka.fetch import Batches
from streams.wire.events import decoder

CHUNK: Final = 3_000
"""Records applied at a time: the event loop is held no longer, some 10 ms, so that heartbeats and scrapes are answered.
Of 1,000 each costs 13 % more, of 2,000 5 %, of 4,000 1 % less."""

_LOOKED_AT: Final = 5
_AHEAD_MS: Final = 10 * MINUTE
_VIEWED_AFTER_MS: Final = SECOND
"""What was in view for less is not viewable (MRC), so hardly any view comes sooner after its render."""

FULL: Final = 4 * CHUNK
"""Records of a topic that may lie here before its fetching is paused."""

APPENDED: Final = "appended"
"""Header with the time at which a record that was copied was first appended, in ms since the epoch, as text."""
_LONGEST_TIME: Final = 13

_offset, _timestamp, _headers, _value = map(attrgetter, ("offset", "timestamp", "headers", "value"))


class Chunk:
    """Consecutive records of one topic partition, decoded when they are taken.

    What was decoded just before it is decided lies in the processor's cache still; all of a fetch would not.
    """

    __slots__ = ("due", "records", "topic")

    def __init__(self, topic: str, records: list[Any]) -> None:
        self.topic = topic
        self.records = records
        self.due = _due(topic, records)
        """The event time in ms at which it is its turn."""

    @property
    def batch(self) -> Batch:
        """Its events as the core applies them."""
        offsets, events = _offsets(self.records), decoder(self.topic)([*map(_value, self.records)])
        return Batch(self.topic, offsets, events, offsets[-1] + 1, appended_ms(self.records))


def _due(topic: str, records: list[Any]) -> int:
    """Return the event time in ms at which it is the turn of records: of renders when they begin.

    Of others, when the renders of nearly all of them are there: a view that has to wait for its render costs four times
    as much. But where views are few, the renders of hours would wait for them.
    """
    begin = _time_of(topic, records[:_LOOKED_AT])
    if topic == RENDERS or len(records) <= _LOOKED_AT:
        return begin
    end = _time_of(topic, records[-_LOOKED_AT:])
    return max(begin, min(end - _VIEWED_AFTER_MS, begin + _AHEAD_MS))


def _time_of(topic: str, records: list[Any]) -> int:
    """Return the time in the middle of theirs, as one that is far off says nothing; 0 if none is an event."""
    events = decoder(topic)([record.value for record in records])
    times = sorted(event.ts for event in events if not isinstance(event, Malformed))
    return times[len(times) // 2] if times else 0


def _offsets(records: list[Any]) -> Sequence[int]:
    """Return the offsets of consecutive records: nearly always one after the other, and then they need no list."""
    offsets = range(records[0].offset, records[-1].offset + 1)
    return offsets if len(offsets) == len(records) else [*map(_offset, records)]


def appended_ms(records: list[Any]) -> list[int | None]:
    """Return when each record was first appended: what its header `appended` says, else Kafka's time; None without."""
    times: list[int | None] = [*map(_timestamp, records)]
    distinct = set(times)  # those of records that were appended together are the same
    # That `min` meets no None mypy cannot see.
    if None in distinct or min(distinct) < 0 or any(map(_headers, records)):  # type: ignore[type-var, operator]
        return [_appended_ms(record) for record in records]
    return times


def _appended_ms(record: Any) -> int | None:
    for name, value in record.headers:
        if name == APPENDED and value is not None and value.isdigit() and len(value) <= _LONGEST_TIME:
            return int(value)
    return record.timestamp if record.timestamp is not None and record.timestamp >= 0 else None


class Backlog:
    """What was fetched of one partition and is not applied yet: of each topic its next chunk, and what is not parsed.

    Parsed records take twice the memory, in small objects. Where all that was fetched was parsed at once, it was more
    than the processor's cache has room for, and each object had to be waited for.
    """

    def __init__(self) -> None:
        self._next: dict[str, Chunk] = {}
        self._behind: dict[str, deque[tuple[Iterator[Any], int]]] = {topic: deque() for topic in TOPICS}
        """What follows it, as it was fetched: records, and how many are left at most."""

    def put(self, topic: str, records: Batches | Sequence[Any]) -> None:
        """Add records behind those of their topic: they are gone through once."""
        self._behind[topic].append((iter(records), len(records)))

    def is_full(self, topic: str) -> bool:
        """Say whether no more of a topic should be fetched. Ask after `next`, which may end that."""
        return sum(left for _, left in self._behind[topic]) >= FULL

    def next(self, stream_times: Mapping[str, int], may_have_more: Callable[[str], bool]) -> Chunk | None:
        """Take the chunk out whose turn it is; None if there is none, or another topic may still give older ones."""
        for topic in TOPICS:
            if topic not in self._next and (records := self._take(topic)):
                self._next[topic] = Chunk(topic, records)
        if not self._next:
            return None
        due, first = min((chunk.due, topic) for topic, chunk in self._next.items())
        for topic in TOPICS:
            if topic not in self._next and stream_times[topic] < due and may_have_more(topic):
                return None
        return self._next.pop(first)

    def _take(self, topic: str) -> list[Any]:
        """Take as many records as a chunk has of what comes next, whatever fetch they came with."""
        taken, behind = list[Any](), self._behind[topic]
        while behind and len(taken) < CHUNK:
            records, left = behind.popleft()
            more = [*islice(records, CHUNK - len(taken))]
            taken += more
            if more:
                behind.appendleft((records, left - len(more)))
        return taken
