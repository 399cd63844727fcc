"""Reads topics from their oldest record to their end: in no group, committing nothing.

Law: what is read is what lay in the topics when reading began; records that come meanwhile are left alone.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from time import monotonic
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.core.events import TOPICS
from streams.kafka.backlog import Backlog, Chunk, chunks
from streams.kafka.connection import Broker, Connection
from streams.kafka.topics import Topic, TopicAdmin, TopicsError

_FETCH_MS: Final = 500
_WAIT_MS: Final = 10
"""How long the broker may wait for records at the end of a partition: the next one's fetch waits for that answer."""
_AT_ONCE: Final = 4_000
"""Records that one look at the consumer may give."""
_SILENCE_S: Final = 30.0
"""How long the broker may give nothing, though there are records left."""

NOWHERE: Final[Mapping[tuple[str, int], int]] = {}


class Reader:
    """Reads topics that have the same partitions. Use as an async context manager; raises TopicsError."""

    def __init__(self, broker: Broker, prefix: str, topics: Iterable[str] = TOPICS) -> None:
        self._connection = Connection.to(broker)
        self._prefix = prefix
        self._topics = tuple(topics)
        self._consumer: Any = None
        self._ends: dict[TopicPartition, int] = {}
        self.partitions = 0

    async def __aenter__(self) -> "Reader":
        async with TopicAdmin(self._connection) as admin:
            self.partitions = await admin.agreed_partitions([Topic(self._prefix + topic, {}) for topic in self._topics])
        self._consumer = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_WAIT_MS,
            **self._connection.arguments,
        )
        try:
            await self._consumer.start()
            self._ends = await self._consumer.end_offsets(self._places(range(self.partitions)))
        except (KafkaError, OSError) as error:
            await self._consumer.stop()
            raise self._gone(type(error).__name__) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    def _places(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._prefix + topic, number) for number in partitions for topic in self._topics]

    def _gone(self, why: str) -> TopicsError:
        where = self._connection.address
        return TopicsError(f"no answer from Kafka at {where} ({why}): what was read so far is not all there is")

    async def sizes(self) -> dict[int, int]:
        """Return how many records each partition number holds, in all topics."""
        begins = await self._consumer.beginning_offsets(list(self._ends))
        sizes = dict.fromkeys(range(self.partitions), 0)
        for place, end in self._ends.items():
            sizes[place.partition] += end - begins[place]
        return sizes

    @property
    def ends(self) -> dict[tuple[str, int], int]:
        """Where each (topic without prefix, partition) ended when reading began."""
        return {(place.topic.removeprefix(self._prefix), place.partition): end for place, end in self._ends.items()}

    async def newest(self, count: int) -> AsyncIterator[tuple[str, int, list[Any]]]:
        """Yield what `records` does, but only of the last `count` offsets of each partition."""
        since = {place: end - count for place, end in self.ends.items()}
        async for found in self.records(range(self.partitions), since):
            yield found

    async def records(
        self, partitions: Iterable[int], since: Mapping[tuple[str, int], int] = NOWHERE
    ) -> AsyncIterator[tuple[str, int, list[Any]]]:
        """Yield (topic without prefix, partition, records), each partition in order of its offsets.

        Reading begins at the oldest records, or at the offset that `since` has for a (topic, partition).
        """
        left = await self._start(self._places(partitions), since)
        while left:
            for place, records in await self._fetched(left):
                yield place.topic.removeprefix(self._prefix), place.partition, records

    async def chunks(self, partition: int) -> AsyncIterator[Chunk]:
        """Yield the chunks of one partition number of the inputs, its topics near to order of event time."""
        places = {topic: TopicPartition(self._prefix + topic, partition) for topic in TOPICS}
        left = await self._start(list(places.values()))
        backlog, reached = Backlog(), dict.fromkeys(TOPICS, -1)
        while True:
            chunk = backlog.next(reached, lambda topic: places[topic] in left)
            if chunk is not None:
                reached[chunk.topic] = max(reached[chunk.topic], chunk.ts)
                yield chunk
            elif left:
                self._hold_back({place for topic, place in places.items() if backlog.is_full(topic)} & left)
                for place, records in await self._fetched(left):
                    for piece in chunks(place.topic.removeprefix(self._prefix), records):
                        backlog.put(piece)
            else:
                return

    async def follow(self, since: Mapping[tuple[str, int], int]) -> AsyncGenerator[list[tuple[int, Chunk]]]:
        """Yield what comes on the inputs from these offsets on, for ever: (partition, chunk), nothing now and then.

        Topics of a partition are near to order of event time. Where the broker is away, nothing comes until it is back.
        """
        places = self._places(range(self.partitions))
        self._consumer.assign(places)
        for place in places:
            self._consumer.seek(place, since[place.topic.removeprefix(self._prefix), place.partition])
        backlogs = [Backlog() for _ in range(self.partitions)]
        reached = [dict.fromkeys(TOPICS, -1) for _ in backlogs]
        while True:
            full = {
                place for place in places if backlogs[place.partition].is_full(place.topic.removeprefix(self._prefix))
            }
            self._hold_back(full)
            fetched = await self._consumer.getmany(timeout_ms=_FETCH_MS, max_records=_AT_ONCE)
            for place, records in fetched.items():
                for piece in chunks(place.topic.removeprefix(self._prefix), records):
                    backlogs[place.partition].put(piece)
            behind = {place for place in places if await self._is_behind(place)}
            yield [*self._ripe(backlogs, reached, behind)]

    def _ripe(
        self, backlogs: list[Backlog], reached: list[dict[str, int]], behind: set[TopicPartition]
    ) -> Iterator[tuple[int, Chunk]]:
        for number, (backlog, times) in enumerate(zip(backlogs, reached, strict=True)):
            may_have_more = {topic: TopicPartition(self._prefix + topic, number) in behind for topic in TOPICS}
            while (chunk := backlog.next(times, may_have_more.__getitem__)) is not None:
                times[chunk.topic] = max(times[chunk.topic], chunk.ts)
                yield number, chunk

    async def _is_behind(self, place: TopicPartition) -> bool:
        end = self._consumer.highwater(place)
        return end is None or await self._consumer.position(place) < end

    async def _start(
        self, places: list[TopicPartition], since: Mapping[tuple[str, int], int] = NOWHERE
    ) -> set[TopicPartition]:
        """Begin anew at the oldest records, or where `since` says; return the topic partitions that have any."""
        begins = await self._consumer.beginning_offsets(places)
        for place in places:
            wanted = since.get((place.topic.removeprefix(self._prefix), place.partition), 0)
            begins[place] = max(begins[place], wanted)
        left = {place for place in places if begins[place] < self._ends[place]}
        if left:  # a consumer that is closed while it takes an assignment in waits for ever (aiokafka 0.14)
            self._consumer.assign(sorted(left))
        for place in left:
            self._consumer.seek(place, begins[place])
        return left

    def _hold_back(self, full: set[TopicPartition]) -> None:
        """Fetch no more of these for now, and all others."""
        self._consumer.resume(*self._consumer.paused())
        self._consumer.pause(*full)

    async def _fetched(self, left: set[TopicPartition]) -> list[tuple[TopicPartition, list[Any]]]:
        """Return the next records. Takes what is read to its end out of `left`: offsets need not all be records."""
        deadline = monotonic() + _SILENCE_S
        while monotonic() < deadline:
            fetched = await self._consumer.getmany(timeout_ms=_FETCH_MS, max_records=_AT_ONCE)
            ended = {place for place in left if await self._consumer.position(place) >= self._ends[place]}
            left -= ended
            if fetched or ended:
                return [(place, self._in_time(place, records)) for place, records in fetched.items()]
        raise self._gone(f"nothing for {_SILENCE_S:.0f} s")

    def _in_time(self, place: TopicPartition, records: list[Any]) -> list[Any]:
        return [record for record in records if record.offset < self._ends[place]]
