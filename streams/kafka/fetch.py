"""How a consumer of aiokafka fetches: ahead of what is applied, in place, and what came is handed on in whole batches.

What is changed of aiokafka here, and why (versions are pinned in pyproject.toml; tests hold the private names):

- What was fetched of a partition is handed on as `take` takes it: a record at a time costs more than to count it.
- While a partition is behind, those that have nothing are asked now and then only, and briefly.
- An answer is read straight to its place, and in few parts: a stream copies it four times, and for each part that comes
  all other threads stand still for a moment.
- Checksums are made by the processor: aiokafka takes fifteen times as long, and all other threads stand still as well.
"""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from itertools import chain, compress, dropwhile
from struct import Struct
from time import monotonic
from typing import Any, Final
from weakref import proxy, ref

from aiokafka import TopicPartition
from aiokafka.conn import AIOKafkaProtocol
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.legacy_records import LegacyRecordBatch
from crc32c import crc32c

BEHIND: Final = 10_000
BEHIND_WAIT_MS: Final = 5
"""How long the broker waits for records while a partition with records left here is further behind: one request at a
time is under way, and its next one must not wait for others that have nothing."""
BULK_WAIT_MS: Final = 60
BULK_BYTES: Final = 4 << 20
"""What the broker waits for, and how long, where who counts has no time left: batches are larger then, and an event
costs 4 % less."""
LOOK_S: Final = 0.05
"""How often others are asked for meanwhile if none is known to have anything: every 5 ms took 5 % of the rate."""

UNBOUNDED: Final = 1 << 62

_PART: Final = 1 << 20
"""So many bytes of an answer, or what is left of it, are waited for before they are read. Linux takes less where it has
not so much room: whatever it waits for, it tells when no more can come."""

_HEADER: Final = Struct(">8xi4xbI")
"""How a batch begins (Kafka's protocol, record batch): its length, magic, and the CRC-32C of all that follows."""
_LENGTH_COUNTS_FROM: Final = 12
_MAGIC: Final = 2


def fetch_ahead(
    consumer: Any,
    take: Callable[[FetchResult, int | None], list[Any]],
    note: Callable[[Any, Any], None] = lambda assignment, request: None,
    in_bulk: Callable[[], bool] = lambda: False,
) -> None:
    """Let a consumer fetch ahead of what is applied, and hand on what was fetched of a partition as `take` takes it.

    `note` hears of each answer. While `in_bulk` says so, the broker waits for more, unless it has more than it gave the
    last time. Whoever wants records of a partition that has a corrupt batch gets CorruptRecordException.
    """
    fetcher = consumer._fetcher
    # A partition that has records left would keep all others from being fetched for so long.
    fetcher._prefetch_backoff = 0.0
    read_in_place(consumer._client)
    corrupt = check_answers(consumer._client)
    decide, process = fetcher._get_actions_per_node, fetcher._proc_fetch_request
    asked_at: dict[int, float] = {}

    def decide_sparingly(assignment: Any) -> tuple[Any, ...]:
        requests, resets, wait_s, *others = decide(assignment)
        if _is_behind(assignment, fetcher):
            now = monotonic()
            is_due = [now >= asked_at.get(node, 0) + LOOK_S or _has_more(assignment, one) for node, one in requests]
            requests = [*compress(requests, is_due)]
            asked_at.update((node, now) for node, _ in requests)
            wait_s = min(wait_s, LOOK_S)
        return requests, resets, wait_s, *others

    async def process_without_copies(assignment: Any, node: int, request: Any) -> Any:
        if _is_behind(assignment, fetcher):
            request._max_wait_ms = BEHIND_WAIT_MS
        elif in_bulk() and not _has_more(assignment, request):
            request._max_wait_ms, request._min_bytes = BULK_WAIT_MS, BULK_BYTES
        try:
            result = await process(assignment, node, request)
        finally:
            # aiokafka itself does so just after this task: who looks in between fetches nothing for 0.2 s.
            fetcher._in_flight.discard(node)
        note(assignment, request)
        for fetched in fetcher._records.values():
            if isinstance(fetched, FetchResult):
                hand_on(fetched, take)
        for place in corrupt & fetcher._records.keys():
            del fetcher._records[place]
            fetcher._set_error(place, CorruptRecordException(f"a batch of {place} is not what its checksum says"))
        corrupt.clear()
        return result

    fetcher._get_actions_per_node, fetcher._proc_fetch_request = decide_sparingly, process_without_copies


def asked(request: Any) -> Iterator[tuple[TopicPartition, int]]:
    """Yield what a fetch asks for, and from which offset on."""
    for topic, partitions in request.topics:
        for partition, offset, _ in partitions:
            yield TopicPartition(topic, partition), offset


def _is_behind(assignment: Any, fetcher: Any) -> bool:
    """Say whether a partition with records left here has many more that are not handed on yet."""
    states = map(assignment.state_value, fetcher._records)
    return any(one and one.has_valid_position and (one.highwater or 0) - one.position > BEHIND for one in states)


def _has_more(assignment: Any, request: Any) -> bool:
    """Say whether the broker has records of a partition that a request asks for, as far as is known."""
    ends = ((assignment.state_value(place).highwater, offset) for place, offset in asked(request))
    return any(end is None or end > offset for end, offset in ends)


# --- reading answers --------------------------------------------------------------------------------------------------


def read_in_place(client: Any) -> None:
    """Let the answers that a client gets be read to their places, on each connection from its first request on."""
    connect = client._get_conn

    async def connect_in_place(node: Any, **kwargs: Any) -> Any:
        connection = await connect(node, **kwargs)
        if connection and not connection._requests and not isinstance(connection._protocol, InPlace):
            InPlace(connection)
        return connection

    client._get_conn = connect_in_place


class InPlace(AIOKafkaProtocol, asyncio.BufferedProtocol):
    """Reads the answers of a connection that waits for none just now.

    The task that read them before waits on, and hears of the end of the connection as ever.
    """

    def __init__(self, connection: Any) -> None:
        super().__init__(connection._closed_fut, connection._reader, loop=connection._loop)
        self._connection = ref(connection)  # one that nobody has closed has to be able to say so
        self._size = bytearray(4)
        self._answer: BytesIO | None = None
        """What comes after its size. Its bytes are handed on where they lie; those of a bytearray would be copied, and
        all other threads stand still meanwhile."""
        self._left = memoryview(self._size)
        """Where the next bytes belong."""
        connection._protocol = connection._writer._protocol = self
        transport = connection._writer.transport
        transport.set_protocol(self)
        is_plain = sys.platform == "linux" and not transport.get_extra_info("sslcontext")
        self._socket = transport.get_extra_info("socket") if is_plain else None
        """What can be told how many bytes are waited for: with TLS they are others than those that are read."""
        self._awaited = 1

    def get_buffer(self, _: int) -> memoryview:
        """Return where to read to: what is left of an answer, or of the size before it."""
        return self._left

    def buffer_updated(self, nbytes: int) -> None:
        """Take note that so many bytes were read; hand an answer on that is whole."""
        read, self._left = self._left, self._left[nbytes:]
        answer = None
        if not self._left:
            for view in (read, self._left):
                view.release()  # while there is one, an answer is copied when its bytes are asked for
            answer, self._answer = self._answer, None
            if answer is None:
                self._answer = BytesIO(bytes(int.from_bytes(self._size)))
            self._left = memoryview(self._size) if self._answer is None else self._answer.getbuffer()
        self._await(min(len(self._left), _PART))
        if answer is not None and (connection := self._connection()) is not None:
            connection._handle_frame(answer.getvalue())

    def _await(self, nbytes: int) -> None:
        if self._socket is not None and nbytes != self._awaited:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes)
            self._awaited = nbytes

    def eof_received(self) -> bool:
        """Let the transport be closed: a broker that says no more hears no more."""
        super().eof_received()
        return False


# --- checksums --------------------------------------------------------------------------------------------------------


def check_answers(client: Any) -> set[TopicPartition]:
    """Let a client check what it fetches. Return the set to which it adds topic partitions with a corrupt batch."""
    corrupt: set[TopicPartition] = set()
    send = client.send

    async def send_and_check(node: int, request: Any, **kwargs: Any) -> Any:
        answer = await send(node, request, **kwargs)
        if isinstance(request, FetchRequest):
            for topic, partitions in answer.topics:
                corrupt.update(TopicPartition(topic, one[0]) for one in partitions if is_corrupt(one[-1] or b""))
        return answer

    client.send = send_and_check
    return corrupt


def is_corrupt(records: bytes) -> bool:
    """Say whether one of these batches, as Kafka stores them, is not what its checksum says.

    The last one may be cut off, and is not read. Batches from before Kafka 0.11 have another checksum.
    """
    left = memoryview(records)
    while len(left) >= _HEADER.size:
        length, magic, checksum = _HEADER.unpack_from(left)
        end = _LENGTH_COUNTS_FROM + length
        if len(left) < end:
            break
        if magic == _MAGIC and crc32c(left[_HEADER.size : end]) != checksum:
            return True
        left = left[end:]
    return False


# --- handing on -------------------------------------------------------------------------------------------------------


def hand_on(fetched: FetchResult, take: Callable[[FetchResult, int | None], list[Any]]) -> None:
    """Let what was fetched of a partition be handed on as `take` takes it."""
    if fetched._partition_records is None:
        return
    # Nothing may hold itself: the buffers of all that was ever fetched would lie in memory until cycles are looked for.
    fetched._partition_records._records_iterator = None
    fetched.getall = partial(take, proxy(fetched))


class Batches:
    """Batches of one topic partition that are not parsed yet."""

    __slots__ = ("_batches", "_begin", "next_offset")

    def __init__(self, batches: list[Any], begin: int, next_offset: int) -> None:
        self._batches = batches
        self._begin = begin
        """Offset before which no record is wanted."""
        self.next_offset = next_offset
        """Offset from which on none is here."""

    def __len__(self) -> int:
        """Return how many records there are at most: offsets need not all be records."""
        return self.next_offset - self._begin

    def __iter__(self) -> Iterator[Any]:
        """Parse them, once, each record when it is asked for. They are as aiokafka's parser has them.

        A fourth of all work would be a step in Python for each, and a ConsumerRecord with its topic and sizes.
        """
        return dropwhile(lambda record: record.offset < self._begin, chain.from_iterable(self._batches))


def take_unparsed(fetched: FetchResult, _: int | None = None) -> list[Batches]:
    """Take what was fetched of a partition for another thread, which parses it. Raises CorruptRecordException.

    Parsed here, every record would have to come over from the cache of another processor to who counts it.
    """
    batches, begin, end = _taken(fetched, UNBOUNDED)
    return [Batches(batches, begin, end)] if batches else []


def take_parsed(at_once: int) -> Callable[[FetchResult, int | None], list[Any]]:
    """Return what takes up to so many records at a time, or a batch more. Raises CorruptRecordException."""

    def take(fetched: FetchResult, max_records: int | None = None) -> list[Any]:
        return [*Batches(*_taken(fetched, min(at_once, max_records or at_once)))]

    return take


def _taken(fetched: FetchResult, most: int) -> tuple[list[Any], int, int]:
    """Take whole batches of what was fetched of a partition, up to so many records or a batch more.

    Returns them with the offset before which no record is wanted, and the one from which on none is there. None are
    taken of what is not wanted any more.
    """
    place, batches = fetched._topic_partition, list[Any]()
    if not fetched.check_assignment(place) or not fetched.has_more():
        return batches, 0, 0
    source = fetched._partition_records
    begin = source.next_fetch_offset
    while source._records.has_next() and source.next_fetch_offset < begin + most:
        batch = source._records.next_batch()
        if isinstance(batch, LegacyRecordBatch) and not batch.validate_crc():
            raise CorruptRecordException(f"Invalid CRC - {place}")
        if not batch.is_control_batch:
            batches.append(batch)
        source.next_fetch_offset = batch.next_offset
    fetched._update_position()
    if not source._records.has_next():
        fetched._partition_records = None
    return batches, begin, source.next_fetch_offset
