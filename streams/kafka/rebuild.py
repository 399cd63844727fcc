"""Event topics written again under another prefix: with other keys, or in another number of partitions.

Law: what is written is a function of what was planned to be read. Records come in the order in which they were first
appended, over all partitions of a topic, so that stream time rises as it did; each says where it lay and when it was
appended. So where a run was killed is seen from what it has written, and it goes on there: nothing twice, nothing lost.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

from streams.core.delta import NEVER
from streams.core.events import TOPICS, Malformed
from streams.core.rules import Key
from streams.kafka.backlog import APPENDED, appended_ms
from streams.kafka.connection import Connection
from streams.kafka.produce import Headers, partition_of
from streams.kafka.reader import Offsets, Reader
from streams.kafka.topics import Topic, TopicAdmin, TopicsError, all_topics
from streams.wire.events import decoder

ORIGIN: Final = "origin"
"""Header with the run that wrote a record, and where it lay before: `RUN PARTITION/OFFSET`."""
_FULL: Final = 8_000
"""Records of a topic partition that lie here before no more of it is fetched."""

Place = tuple[str, int]
"""(topic without prefix, partition)."""


class Copy(NamedTuple):
    """A record that is to be written, in its place of the order: when it was first appended (ms), and where it lay."""

    appended_ms: int
    origin: int
    offset: int
    topic: str
    key: bytes
    """Empty where there is none."""
    value: bytes | None
    headers: Headers
    at_ms: int = 0


def partition_for(copy: Copy, partitions: int) -> int:
    """Return the partition of a record: Kafka's for its key; what has none, and is no event, stays beside its like."""
    return partition_of(copy.key, partitions) if copy.key else copy.origin % partitions


class Source:
    """What is to be copied: the records from some offsets on, until stream time is as late as is wanted (None: all)."""

    def __init__(
        self,
        reader: Reader,
        starts: Offsets,
        stops: Mapping[str, int | None],
        future_ms: int,
        key: Key | None,
        run: str,
    ) -> None:
        self._reader = reader
        self._starts = starts
        self._stops = stops
        self._future_ms = future_ms
        self._key = key
        self._run = run
        self._waiting: dict[Place, deque[Copy]] = {place: deque() for place in starts}
        self._appended: dict[Place, int] = dict.fromkeys(starts, 0)
        self._stream_times: dict[Place, int] = dict.fromkeys(starts, NEVER)

    async def copies(self) -> AsyncIterator[list[Copy]]:
        """Yield what is to be written, topics beside each other, each in order of append. Raises TopicsError."""
        async for poll in self._reader.polls(self._starts, self._is_full, self._wants):
            for topic, partition, records in poll:
                self._take(topic, partition, records)
            for name in self._stops:
                if ripe := self._ripe(name):
                    yield ripe

    def _is_full(self, topic: str, partition: int) -> bool:
        return len(self._waiting[topic, partition]) >= _FULL

    def _wants(self, topic: str, partition: int) -> bool:
        stop = self._stops[topic]
        return stop is None or self._stream_times[topic, partition] < stop

    def _take(self, topic: str, partition: int, records: list[Any]) -> None:
        place = topic, partition
        events = decoder(topic)([record.value for record in records])
        for record, event, appended in zip(records, events, appended_ms(records), strict=True):
            if not self._wants(topic, partition):
                return
            when = appended or 0
            self._appended[place] = max(self._appended[place], when)
            if not isinstance(event, Malformed) and event.ts <= when + self._future_ms:
                self._stream_times[place] = max(self._stream_times[place], event.ts)
            headers = [(name, value) for name, value in record.headers if name not in (APPENDED, ORIGIN)]
            headers.append((APPENDED, b"%d" % when))
            headers.append((ORIGIN, f"{self._run} {partition}/{record.offset}".encode()))
            self._waiting[place].append(
                Copy(
                    self._appended[place], partition, record.offset, topic, self._key_of(record, event), record.value,
                    headers,
                )
            )  # fmt: skip

    def _key_of(self, record: Any, event: Any) -> bytes:
        """Return the key that is wanted; without a wish the one that is there, and without one that of the viewer."""
        key: bytes = record.key or b""
        if isinstance(event, Malformed) or (self._key is None and key):
            return key
        viewer = "" if self._key == "impression" else event.viewer_id
        return (viewer or event.impression_id).encode()

    def _ripe(self, topic: str) -> list[Copy]:
        """Take what nothing can come before any more: up to the last record of the partition that is least far."""
        places = [place for place in self._waiting if place[0] == topic]
        coming = [place for place in places if self._reader.may_have_more(*place)]
        if any(not self._waiting[place] for place in coming):
            return []
        limits = [self._waiting[place][-1][:3] for place in coming]
        limit = min(limits) if limits else None
        ripe: list[Copy] = []
        for place in places:
            queue = self._waiting[place]
            while queue and (limit is None or queue[0][:3] <= limit):
                ripe.append(queue.popleft())
        return sorted(ripe, key=attrgetter("appended_ms", "origin", "offset"))


class Target:
    """The new topics. `done` are the origins of the newest records there, of a run that was interrupted."""

    def __init__(self, broker: Connection, prefix: str, run: str) -> None:
        self._broker = broker
        self._prefix = prefix
        self._run = run
        self.partitions = 0
        self.done: dict[Place, tuple[int, int]] = {}

    async def prepare(self, partitions: int, replication: int) -> None:
        """Create the topics, or find how far this run has written them. Raises TopicsError."""
        wanted = [topic for topic in all_topics(self._prefix, "") if topic.name.removeprefix(self._prefix) in TOPICS]
        async with TopicAdmin(self._broker) as admin:
            await admin.create(wanted, partitions, replication)
            self.partitions = await admin.agreed_partitions([Topic(one.name, {}) for one in wanted])
        async with Reader(self._broker, self._prefix) as reader:
            async for topic, partition, records in reader.newest(1):
                self.done[topic, partition] = self._origin_of(topic, partition, records[-1])

    def _origin_of(self, topic: str, partition: int, record: Any) -> tuple[int, int]:
        run, _, place = dict(record.headers).get(ORIGIN, b"").decode(errors="replace").partition(" ")
        if run != self._run:
            raise TopicsError(
                f"{self._prefix}{topic}/{partition} holds records that this run did not write: take another --into, or"
                " delete those topics"
            )
        origin, _, offset = place.partition("/")
        return int(origin), int(offset)

    def missing(self, copies: list[Copy]) -> Iterator[Copy]:
        """Yield the records that are not written yet; they have to come in the order of the run."""
        if not self.done:
            yield from copies
            return
        for copy in copies:
            place = copy.topic, partition_for(copy, self.partitions)
            newest = self.done.get(place)
            if newest is None:
                yield copy
            elif newest == (copy.origin, copy.offset):
                del self.done[place]
