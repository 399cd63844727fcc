"""Sends records at their time: an open loop, so a slow broker is told by how far the sending is behind.

Records with equal keys lie in the same partition number of every topic (Kafka's default, murmur2), in the order in
which they come. Every delivery is confirmed; a retry does not store a record twice; a failure raises.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, Protocol, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from streams.core.events import TOPICS
from streams.kafka.connection import Broker, Connection
from streams.kafka.topics import Topic, TopicAdmin

_TICK_S: Final = 0.05
_AT_ONCE: Final = 4_000
"""Records between two looks at the clock: how long others wait for the event loop."""
_BATCH_BYTES: Final = 256 << 10
_REQUEST_BYTES: Final = 16 << 20
_AHEAD: Final = 4
"""Values that are made before they are asked for."""
_GIVE_UP_S: Final = 30.0
"""How long the broker may be away, such as for a restart."""


Headers = Sequence[tuple[str, bytes]]


class Record(Protocol):
    """What is to be sent, and when on the event clock (ms since the epoch)."""

    @property
    def at_ms(self) -> int:
        """When it is sent."""

    @property
    def topic(self) -> str:
        """Name of its topic, without prefix."""

    @property
    def key(self) -> bytes:
        """What its partition is chosen by."""

    @property
    def value(self) -> bytes | None:
        """The event; not always one that can be read."""

    @property
    def headers(self) -> Headers:
        """What stands beside it."""


R = TypeVar("R", bound=Record)
T = TypeVar("T")


class ProduceError(Exception):
    """Records that could not be delivered."""


@dataclass
class Sending:
    """How far the sending is: records handed over, and by how much the schedule is missed, in ms."""

    sent: int = 0
    behind_ms: float = 0


@lru_cache(maxsize=1 << 18)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner gives to a key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def by_key(record: Record, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner gives to a record."""
    return partition_of(record.key, partitions)


class PacedProducer(Generic[R]):
    """Sends records to some topics in order. `taken` is called with each that will be delivered, and its partition."""

    def __init__(
        self,
        broker: Broker,
        prefix: str,
        taken: Callable[[R, int], None],
        give_up_s: float = _GIVE_UP_S,
        *,
        topics: Sequence[str] = TOPICS,
        partition: Callable[[R, int], int] = by_key,
    ) -> None:
        self._connection = Connection.to(broker)
        self._topics = topics
        self._partition = partition
        self._give_up_s = give_up_s
        self._prefix = prefix
        self._taken = taken
        self._partitions = 0
        self._batches: dict[tuple[str, int], Any] = {}
        self._deliveries: set[asyncio.Future[Any]] = set()
        self._failed: BaseException | None = None
        self.sending = Sending()

    async def send(self, records: Iterator[R], stop: asyncio.Event, *, paced: bool = True) -> None:
        """Send each record at its time, late ones at once; all at once unless paced. Ends with the records, or on stop.

        Returns when every record that was taken is delivered. Raises ProduceError if one was not, TopicsError if the
        topics are missing or have unequal partition counts.
        """
        await self._with_producer(lambda producer: self._send_all(producer, records, stop, paced))

    async def send_batches(self, batches: AsyncIterator[Iterable[R]], stop: asyncio.Event) -> None:
        """Send all batches as they come, in order. Ends with the batches, or on stop: then it waits for no more.

        Returns when every record that was taken is delivered. Raises what `send` raises.
        """
        await self._with_producer(lambda producer: self._send_each(producer, batches, stop))

    async def _with_producer(self, work: Callable[[Any], Awaitable[None]]) -> None:
        async with TopicAdmin(self._connection) as admin:
            topics = [Topic(self._prefix + topic, {}) for topic in self._topics]
            self._partitions = await admin.agreed_partitions(topics)
        producer = AIOKafkaProducer(
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES,
            max_request_size=_REQUEST_BYTES,
            request_timeout_ms=int(self._give_up_s * 1000),
            **self._connection.arguments,
        )
        try:
            await producer.start()
            try:
                await work(producer)
            finally:
                await self._close(producer)
        except (KafkaError, OSError) as error:  # a time-out is an OSError
            raise ProduceError(
                f"Kafka at {self._connection.address} did not take a record ({type(error).__name__}): what was sent"
                " is not known"
            ) from error

    async def _close(self, producer: Any) -> None:
        """Close a producer even if its broker is gone: its own `stop` would wait for that for ever."""
        try:
            await asyncio.wait_for(producer.stop(), self._give_up_s)
        except TimeoutError:
            await producer.client.close()

    async def _send_all(self, producer: Any, records: Iterator[R], stop: asyncio.Event, paced: bool) -> None:
        next_record = next(records, None)
        while next_record is not None and not stop.is_set():
            due_ms = time.time() * 1000 if paced else float("inf")
            for _ in range(_AT_ONCE):
                if next_record is None or next_record.at_ms > due_ms:
                    break
                await self._take(producer, next_record)
                next_record = next(records, None)
            await self._ship_all(producer)
            self._raise_failed()
            await self._rest(next_record, stop, paced)
        await self._confirmed()

    async def _send_each(self, producer: Any, batches: AsyncIterator[Iterable[R]], stop: asyncio.Event) -> None:
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while True:
                coming = asyncio.ensure_future(anext(batches, None))
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                batch = None if stop.is_set() else await coming
                if batch is None:
                    break
                for record in batch:
                    await self._take(producer, record)
                await self._ship_all(producer)
                self._raise_failed()
            coming.cancel()
        finally:
            stopping.cancel()
        await self._confirmed()

    async def _confirmed(self) -> None:
        """Wait until all that was shipped is delivered."""
        await asyncio.wait_for(asyncio.gather(*self._deliveries), self._give_up_s)
        self._raise_failed()

    async def _rest(self, next_record: R | None, stop: asyncio.Event, paced: bool) -> None:
        """Let others run; wait for what is not due yet."""
        wait_s = next_record.at_ms / 1000 - time.time() if paced and next_record is not None else 0.0
        self.sending.behind_ms = max(0.0, -wait_s * 1000)
        if wait_s <= 0:
            await asyncio.sleep(0)
            return
        try:
            await asyncio.wait_for(stop.wait(), max(wait_s, _TICK_S))
        except TimeoutError:
            return

    async def _take(self, producer: Any, record: R) -> None:
        partition = self._partition(record, self._partitions)
        place = (record.topic, partition)
        batch = self._batches.get(place)
        if batch is None:
            batch = self._batches[place] = producer.create_batch()
        told = {"timestamp": None, "key": record.key, "value": record.value, "headers": [*record.headers]}
        if batch.append(**told) is None:
            await self._ship(producer, place)
            batch = self._batches[place] = producer.create_batch()
            batch.append(**told)
        self._taken(record, partition)
        self.sending.sent += 1

    async def _ship_all(self, producer: Any) -> None:
        for place in list(self._batches):
            await self._ship(producer, place)

    async def _ship(self, producer: Any, place: tuple[str, int]) -> None:
        topic, partition = place
        delivery = await producer.send_batch(self._batches.pop(place), self._prefix + topic, partition=partition)
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._confirm)

    def _confirm(self, delivery: "asyncio.Future[Any]") -> None:
        self._deliveries.discard(delivery)
        self._failed = self._failed or delivery.exception()

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed


async def read_ahead(values: Iterable[T]) -> AsyncIterator[T]:
    """Yield values that are made in a thread of their own, so that a file or pipe that is slow holds up nothing else.

    When nobody asks any more the thread ends with the value that it is at, or is left behind waiting for it.
    """
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue[T | Exception | None]()
    room, given_up = threading.Semaphore(_AHEAD), threading.Event()

    def make() -> None:
        for value in _with_end(values):
            room.acquire()
            if given_up.is_set():
                return
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(queue.put_nowait, value)

    threading.Thread(target=make, daemon=True).start()
    try:
        while (value := await queue.get()) is not None:
            room.release()
            if isinstance(value, Exception):
                raise value
            yield value
    finally:
        given_up.set()
        room.release()


def _with_end(values: Iterable[T]) -> Iterator[T | Exception | None]:
    """Yield values, and what ended them: None or an error."""
    try:
        yield from values
    except Exception as error:  # raised again where the values are asked for
        yield error
    else:
        yield None
