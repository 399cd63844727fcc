"""Whose turn it is: the input topics of one partition, brought near to order of event time.

Law: order decides nothing that is counted. But a view that is read long before its render has to wait in memory, and
costs four times as much; so at catch-up no topic runs ahead of another one that still has older events to come.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from streams.core.events import TOPICS, Event, Malformed

FULL: Final = 16
"""Chunks of a topic that may lie here before its fetching is paused."""


class Chunk(NamedTuple):
    """Consecutive records of one topic partition with what they decode to."""

    topic: str
    records: list[Any]
    events: list[Event | Malformed]

    @property
    def ts(self) -> int:
        """The time of its first event in ms; 0 if there is none, so that nothing waits for it."""
        return next((event.ts for event in self.events if not isinstance(event, Malformed)), 0)


class Backlog:
    """What was fetched of one partition and is not applied yet."""

    def __init__(self) -> None:
        self._chunks: dict[str, deque[tuple[int, Chunk]]] = {topic: deque() for topic in TOPICS}

    def put(self, chunk: Chunk) -> None:
        """Add a chunk behind those of its topic."""
        self._chunks[chunk.topic].append((chunk.ts, chunk))

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
