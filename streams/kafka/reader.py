"""Reads topics from their oldest record to their end: in no group, committing nothing.

Law: what is read is what lay in the topics when reading began; records that come meanwhile are left alone.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from time import monotonic
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from streams.core.events import TOPICS
from streams.kafka.backlog import Backlog, Chunk
from streams.kafka.connection import Broker, Connection
from streams.kafka.fetch import fetch_ahead, take_parsed
from streams.kafka.topics import Topic, TopicAdmin, TopicsError

_FETCH_MS: Final = 500
_WAIT_MS: Final = 10
"""How long the broker may wait for records at the end of a partition: the next one's fetch waits for that answer."""
_AT_ONCE: Final = 4_000
"""Records of a topic partition that one look at the consumer gives, or a batch more."""
_AT_ONCE_OF_ALL: Final = 48_000
_AT_LEAST: Final = 500
_FETCH_BYTES: Final = 1 << 20
_FETCH_BYTES_OF_ALL: Final = 64 << 20
"""Bytes that may lie here unread, of a topic partition and of all; a batch is fetched whole."""
_SILENCE_S: Final = 30.0
"""How long the broker may give nothing, though there are records left."""

Offsets = Mapping[tuple[str, int], int]
"""(topic without prefix, partition) -> offset."""

NOWHERE: Final[Offsets] = {}


class Extent(NamedTuple):
    """What there is of a topic partition: its oldest offset, the one after its newest, the first from a time on."""

    begin: int
    end: int
    since: int
    """The first offset whose record's own time is not before the time that was asked for; `end` if there is none."""


class Reader:
    """Reads topics that have the same partitions. Use as an async context manager; raises TopicsError."""

    def __init__(self, broker: Broker, prefix: str, topics: Iterable[str] = TOPICS, group: str | None = None) -> None:
        self._connection = Connection.to(broker)
        self._group = group
        self._prefix = prefix
        self._topics = tuple(topics)
        self._consumer: Any = None
        self._ends: dict[TopicPartition, int] = {}
        self._left: set[TopicPartition] = set()
        self._fetched_to: dict[TopicPartition, int] = {}
        self.partitions = 0

    async def __aenter__(self) -> "Reader":
        async with TopicAdmin(self._connection) as admin:
            self.partitions = await admin.agreed_partitions([Topic(self._prefix + topic, {}) for topic in self._topics])
        self._consumer = AIOKafkaConsumer(
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=_WAIT_MS,
            max_partition_fetch_bytes=min(_FETCH_BYTES, _FETCH_BYTES_OF_ALL // (self.partitions * len(self._topics))),
            **self._connection.arguments,
        )
        async with AsyncExitStack() as unless_started:
            unless_started.push_async_callback(self._consumer.stop)
            try:
                await self._consumer.start()
                self._ends = await self._consumer.end_offsets(self._places(range(self.partitions)))
            except (KafkaError, OSError) as error:
                raise self._gone(type(error).__name__) from None
            at_once = min(_AT_ONCE, max(_AT_LEAST, _AT_ONCE_OF_ALL // len(self._ends)))
            fetch_ahead(self._consumer, take_parsed(at_once))
            unless_started.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    def _places(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [self.place(topic, number) for number in partitions for topic in self._topics]

    def place(self, topic: str, partition: int) -> TopicPartition:
        """Return Kafka's name of a topic partition."""
        return TopicPartition(self._prefix + topic, partition)

    def _name(self, place: TopicPartition) -> tuple[str, int]:
        return place.topic.removeprefix(self._prefix), place.partition

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
        return {self._name(place): end for place, end in self._ends.items()}

    async def extents(self, since_ms: int) -> dict[tuple[str, int], Extent]:
        """Return what there is of each topic partition, and where records of a time (ms) and later begin."""
        try:
            begins = await self._consumer.beginning_offsets(list(self._ends))
            found = await self._consumer.offsets_for_times(dict.fromkeys(self._ends, max(0, since_ms)))
        except (KafkaError, OSError) as error:
            raise self._gone(type(error).__name__) from None
        return {
            self._name(place): Extent(begins[place], end, found[place].offset if found[place] is not None else end)
            for place, end in self._ends.items()
        }

    async def tell(self, offsets: Offsets) -> None:
        """Commit how far a reader with a group of its own has come: only for others to see."""
        with suppress(KafkaError):
            await self._consumer.commit({self.place(*name): offset for name, offset in offsets.items()})

    def end_at(self, ends: Offsets) -> None:
        """Read up to these offsets instead: where the topics ended at some time before."""
        self._ends = {place: min(end, ends[self._name(place)]) for place, end in self._ends.items()}

    async def newest(self, count: int) -> AsyncIterator[tuple[str, int, list[Any]]]:
        """Yield what `records` does, but only of the last `count` offsets of each partition."""
        since = {place: end - count for place, end in self.ends.items()}
        async for found in self.records(range(self.partitions), since):
            yield found

    async def records(
        self, partitions: Iterable[int], since: Offsets = NOWHERE
    ) -> AsyncIterator[tuple[str, int, list[Any]]]:
        """Yield (topic without prefix, partition, records), each partition in order of its offsets.

        Reading begins at the oldest records, or at the offset that `since` has for a (topic, partition).
        """
        left = await self._start(self._places(partitions), since)
        while left:
            for place, records in await self._fetched(left, left):
                yield *self._name(place), records

    async def chunks(self, partition: int) -> AsyncIterator[Chunk]:
        """Yield the chunks of one partition number of the inputs, its topics near to order of event time."""
        async for _, chunk in self.interleaved({partition}):
            yield chunk

    async def interleaved(
        self,
        partitions: Collection[int],
        since: Offsets = NOWHERE,
        is_wanted: Callable[[str, int], bool] = lambda topic, partition: True,
    ) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield (partition, chunk), the topics of each partition near to order of event time.

        No more is fetched of a topic partition that is not wanted any more.
        """
        turns = {partition: _Turns(self, partition) for partition in partitions}
        places = [self._name(place) for place in self._places(partitions)]
        starts = {place: since.get(place, 0) for place in places}
        async for poll in self.polls(starts, lambda topic, partition: turns[partition].is_full(topic), is_wanted):
            for topic, partition, records in poll:
                turns[partition].put(topic, records)
            for partition, turn in turns.items():
                for chunk in turn.ripe():
                    yield partition, chunk

    async def polls(
        self, starts: Offsets, is_full: Callable[[str, int], bool], is_wanted: Callable[[str, int], bool]
    ) -> AsyncIterator[list[tuple[str, int, list[Any]]]]:
        """Yield (topic, partition, records) of each look at the consumer, or that something is not wanted any more.

        Of a topic partition that is full nothing comes for now, and of one that is not wanted any more nothing ever.
        """
        left = await self._start([self.place(*name) for name in starts], starts)
        while left:
            if unwanted := {place for place in left if not is_wanted(*self._name(place))}:
                left -= unwanted
                self._consumer.pause(*unwanted)
                yield []  # what waited for these need not wait any more
            else:
                asked = {place for place in left if not is_full(*self._name(place))}
                yield [(*self._name(place), records) for place, records in await self._fetched(left, asked)]

    async def follow(self, since: Offsets) -> AsyncGenerator[list[tuple[int, Chunk]]]:
        """Yield what comes on the inputs from these offsets on, for ever: (partition, chunk), nothing now and then.

        Topics of a partition are near to order of event time. Where the broker is away, nothing comes until it is back.
        """
        places = self._places(range(self.partitions))
        self._consumer.assign(places)
        for place in places:
            self._consumer.seek(place, since[self._name(place)])
        turns = {partition: _Turns(self, partition) for partition in range(self.partitions)}
        while True:
            asked = {place for place in places if not turns[place.partition].is_full(self._name(place)[0])}
            for place, records in (await self._getmany(asked)).items():
                turns[place.partition].put(self._name(place)[0], records)
            self._left = {place for place in places if await self._is_behind(place)}
            yield [(number, chunk) for number, turn in turns.items() for chunk in turn.ripe()]

    def may_have_more(self, topic: str, partition: int) -> bool:
        """Say whether there are records of a topic partition that are not fetched yet."""
        return self.place(topic, partition) in self._left

    def has_ended(self, topic: str, partition: int, fence: int) -> bool:
        """Say whether no record of a topic partition comes after an offset up to which it is applied."""
        place = self.place(topic, partition)
        return place not in self._left and fence >= self._fetched_to.get(place, 0)

    async def _is_behind(self, place: TopicPartition) -> bool:
        end = self._consumer.highwater(place)
        return end is None or await self._consumer.position(place) < end

    async def _start(self, places: list[TopicPartition], since: Offsets = NOWHERE) -> set[TopicPartition]:
        """Begin anew at the oldest records, or where `since` says; return the topic partitions that have any."""
        begins = await self._consumer.beginning_offsets(places)
        for place in places:
            begins[place] = max(begins[place], since.get(self._name(place), 0))
        left = {place for place in places if begins[place] < self._ends[place]}
        if left:  # a consumer that is closed while it takes an assignment in waits for ever (aiokafka 0.14)
            self._consumer.assign(sorted(left))
        for place in left:
            self._consumer.seek(place, begins[place])
        self._left, self._fetched_to = left, {}
        return left

    async def _fetched(
        self, left: set[TopicPartition], asked: set[TopicPartition]
    ) -> list[tuple[TopicPartition, list[Any]]]:
        """Return the next records. Takes what is read to its end out of `left`: offsets need not all be records."""
        deadline = monotonic() + _SILENCE_S
        while monotonic() < deadline:
            fetched = await self._getmany(asked)
            ended = {place for place in left if await self._consumer.position(place) >= self._ends[place]}
            left -= ended
            if fetched or ended:
                return [(place, self._in_time(place, records)) for place, records in fetched.items()]
        raise self._gone(f"nothing for {_SILENCE_S:.0f} s")

    async def _getmany(self, asked: set[TopicPartition]) -> dict[TopicPartition, list[Any]]:
        """Return the next records of some topic partitions; what was fetched of others is kept."""
        try:
            found: dict[TopicPartition, list[Any]] = await self._consumer.getmany(*asked, timeout_ms=_FETCH_MS)
            return found
        except OffsetOutOfRangeError as error:
            (offsets,) = error.args
            where = ", ".join(f"{place.topic}/{place.partition} from {at}" for place, at in sorted(offsets.items()))
            raise TopicsError(f"{where}: was deleted (retention) before it was read") from None

    def _in_time(self, place: TopicPartition, records: list[Any]) -> list[Any]:
        if records and records[-1].offset >= self._ends[place]:
            records = [record for record in records if record.offset < self._ends[place]]
        if records:
            self._fetched_to[place] = records[-1].offset + 1
        return records


class _Turns:
    """Whose turn it is among the topics of one partition number."""

    def __init__(self, reader: Reader, partition: int) -> None:
        self._partition = partition
        self._backlog = Backlog()
        self._reader = reader
        self._reached = dict.fromkeys(TOPICS, -1)

    def put(self, topic: str, records: list[Any]) -> None:
        """Take what comes next of a topic."""
        self._backlog.put(topic, records)

    def ripe(self) -> Iterator[Chunk]:
        """Yield the chunks whose turn it is now."""
        while (chunk := self._backlog.next(self._reached, self._may_have_more)) is not None:
            self._reached[chunk.topic] = max(self._reached[chunk.topic], chunk.due)
            yield chunk

    def _may_have_more(self, topic: str) -> bool:
        return self._reader.may_have_more(topic, self._partition)

    def is_full(self, topic: str) -> bool:
        """Say whether enough of a topic lies here."""
        return self._backlog.is_full(topic)
