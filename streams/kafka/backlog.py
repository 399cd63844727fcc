"""Whose turn it is: the input topics of one partition, brought near to order of event time.

Law: order decides nothing that is counted. But a view that is read long before its render has to wait in memory, and
costs four times as much; so at catch-up no topic runs ahead of another one that still has older events to come.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

from streams.core.delta import Batch
from streams.core.events import TOPICS, Malformed
from streams.wire.events import decoder

CHUNK: Final = 2_000
"""Records applied at a time: the event loop is held no longer, so that heartbeats and scrapes are answered, and their
events fit into a processor's cache. Half as many cost 7 % more, twice as many 20 %."""

FULL: Final = 4
"""Chunks of a topic that may lie here before its fetching is paused."""

APPENDED: Final = "appended"
"""Header with the time at which a record that was copied was first appended, in ms since the epoch, as text."""
_LONGEST_TIME: Final = 13

_offset, _timestamp, _headers, _value = map(attrgetter, ("offset", "timestamp", "headers", "value"))


class Chunk:
    """Consecutive records of one topic partition, decoded when they are taken.

    What was decoded just before it is decided lies in the processor's cache still; all of a fetch would not.
    """

    __slots__ = ("records", "topic", "ts")

    def __init__(self, topic: str, records: list[Any]) -> None:
        self.topic = topic
        self.records = records
        decode = decoder(topic)
        firsts = (decode([record.value])[0] for record in records)
        self.ts = next((event.ts for event in firsts if not isinstance(event, Malformed)), 0)
        """The time of its first event in ms; 0 if there is none, so that nothing waits for it."""

    @property
    def batch(self) -> Batch:
        """Its events as the core applies them."""
        offsets, events = [*map(_offset, self.records)], decoder(self.topic)([*map(_value, self.records)])
        return Batch(self.topic, offsets, events, offsets[-1] + 1, appended_ms(self.records))


def chunks(topic: str, records: list[Any]) -> Iterator[Chunk]:
    """Cut consecutive records of a topic partition into chunks."""
    return (Chunk(topic, records[start : start + CHUNK]) for start in range(0, len(records), CHUNK))


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
    """What was fetched of one partition and is not applied yet."""

    def __init__(self, due: Callable[[Chunk], int] = attrgetter("ts")) -> None:
        self._due = due
        self._chunks: dict[str, deque[tuple[int, Chunk]]] = {topic: deque() for topic in TOPICS}

    def put(self, chunk: Chunk) -> None:
        """Add a chunk behind those of its topic."""
        self._chunks[chunk.topic].append((self._due(chunk), chunk))

    def is_full(self, topic: str) -> bool:
        """Say whether no more of a topic should be fetched."""
        return len(self._chunks[topic]) >= FULL

    def next(self, stream_times: Mapping[str, int], may_have_more: Callable[[str], bool]) -> Chunk | None:
        """Take the oldest chunk out; None if there is none, or if another topic may still give older events."""
        heads = [(chunks[0][0], topic) for topic, chunks in self._chunks.items() if chunks]
        if not heads:
            return None
        ts, oldest = min(heads)
        for topic, chunks in self._chunks.items():
            if not chunks and stream_times[topic] < ts and may_have_more(topic):
                return None
        return self._chunks[oldest].popleft()[1]
