"""How records are fetched: what is changed of aiokafka, and that the private parts that it uses are still there."""

import asyncio
import gc
import inspect
import tracemalloc
import weakref
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, AIOKafkaProtocol
from aiokafka.consumer import fetcher
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol import fetch
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.core.events import RENDERS
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.fetch import (
    BEHIND,
    BEHIND_WAIT_MS,
    BULK_BYTES,
    BULK_WAIT_MS,
    LOOK_S,
    UNBOUNDED,
    InPlace,
    fetch_ahead,
    hand_on,
    is_corrupt,
    read_in_place,
    take_parsed,
    take_unparsed,
)
from streams.kafka.transport import FETCH_BYTES, FETCH_WAIT_MS, PARTITION_BYTES
from tests.conftest import create_topics
from tests.worker import send


def test_aiokafka_still_keeps_what_is_reached_into() -> None:
    def source(of: Any) -> str:
        return inspect.getsource(of)

    process = source(fetcher.Fetcher._proc_fetch_request)
    assert "self._records[tp] = FetchResult(" in process
    assert "backoff=self._prefetch_backoff" in process
    routine = source(fetcher.Fetcher._fetch_requests_routine)
    assert "self._in_flight.discard(node_id)" in routine
    assert (
        "fetch_requests,\n                    reset_requests,\n                    timeout,\n"
        "                    invalid_metadata,\n                    resume_futures,\n"
        "                ) = self._get_actions_per_node(assignment)"
    ) in routine
    assert "for node_id, request in fetch_requests:" in routine
    assert "timeout=timeout" in routine
    assert "fetchable[node_id].append((tp, position))" in source(fetcher.Fetcher._get_actions_per_node)
    assert "res_or_error.getall(max_records)" in source(fetcher.Fetcher.fetched_records)
    assert "self._partition_records" in source(fetcher.FetchResult.__init__)
    assert "consumed_to(self._partition_records.next_fetch_offset)" in source(fetcher.FetchResult)
    for name in ("check_assignment", "has_more", "_update_position"):
        assert hasattr(fetcher.FetchResult, name)
    assert "self._records_iterator = self._unpack_records()" in source(fetcher.PartitionRecords.__init__)
    unpack = source(fetcher.PartitionRecords._unpack_records)
    assert "while records.has_next():\n            next_batch = records.next_batch()" in unpack
    assert "if record.offset < self.next_fetch_offset" in unpack
    assert "self.next_fetch_offset = next_batch.next_offset" in unpack
    assert "assert tp not in self._records" in source(fetcher.Fetcher._set_error)
    assert "await self._client.send(node_id, request)" in process
    assert "MemoryRecords(part_data[-1])" in process
    for name in ("_max_wait_ms", "_min_bytes"):
        assert f"self.{name}" in source(fetch.FetchRequest.build)
    assert "await self._get_conn(node_id" in source(AIOKafkaClient.ready)
    connect = source(AIOKafkaConnection.connect)
    assert "self._closed_fut = create_future()" in connect
    assert "AIOKafkaProtocol(self._closed_fut, reader, loop=loop)" in connect
    assert "self._reader, self._writer, self._protocol = reader, writer, protocol" in connect
    assert "self._requests.append(" in source(AIOKafkaConnection.send)
    assert "resp = await reader.readexactly(size)" in source(AIOKafkaConnection._read)
    assert "self._handle_frame(resp)" in source(AIOKafkaConnection._read)


def fetch_of(batch: bytes) -> fetcher.FetchResult:
    """Return a fetch of one batch of records, which is about to be handed on."""
    place = TP("renders", 0)
    records = MemoryRecords(batch)
    source = fetcher.PartitionRecords(place, records, [], 0, None, None, True, fetcher.READ_UNCOMMITTED)
    state = SimpleNamespace(paused=False, position=0, consumed_to=lambda offset: None)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    return fetcher.FetchResult(place, assignment=assignment, partition_records=source, backoff=0)


@pytest.mark.parametrize(("take", "parses"), [(take_parsed(UNBOUNDED), True), (take_unparsed, False)])
def test_what_was_fetched_is_gone_from_memory_as_soon_as_it_is_handed_on(take: Any, parses: bool) -> None:
    fetched = fetch_of(batch_of([b"a", b"b"]))
    source = weakref.ref(fetched._partition_records)
    whole = weakref.ref(fetched)
    gc.disable()
    try:
        hand_on(fetched, take)
        taken = fetched.getall(None)
        assert [record.value for record in (taken if parses else taken[0])] == [b"a", b"b"]
        assert source() is None
        del fetched
        assert whole() is None
    finally:
        gc.enable()


def test_what_lies_before_the_offset_that_was_asked_for_is_not_handed_on() -> None:
    fetched = fetch_of(batch_of([b"a", b"b", b"c"]))
    fetched._partition_records.next_fetch_offset = fetched._assignment.state_value(None).position = 1
    (taken,) = take_unparsed(fetched)
    assert (len(taken), taken.next_offset) == (2, 3)
    assert [record.value for record in taken] == [b"b", b"c"]
    assert fetched._partition_records is None


def consumer_of(one: Any) -> Any:
    """Return what has this fetcher, and a client that is never asked for anything."""
    return SimpleNamespace(_fetcher=one, _client=SimpleNamespace(_get_conn=None, send=None))


async def test_a_fetch_is_no_longer_under_way_when_its_task_ends() -> None:
    """aiokafka notes it a moment later: who looks in between fetches nothing for 0.2 s."""

    async def answer(assignment: Any, node: int, request: Any) -> bool:
        assert under_way == {7}
        return True

    under_way = {7}
    one = SimpleNamespace(_records={}, _proc_fetch_request=answer, _get_actions_per_node=None, _in_flight=under_way)
    fetch_ahead(consumer_of(one), take_unparsed)
    assert await one._proc_fetch_request(SimpleNamespace(state_value={}.get), 7, None)
    assert under_way == set()


@pytest.mark.parametrize(
    ("position", "highwater", "waits"),
    [
        (0, BEHIND + 1, BEHIND_WAIT_MS),
        (0, BEHIND, FETCH_WAIT_MS),
        (7, BEHIND + 7, FETCH_WAIT_MS),
        (None, BEHIND + 1, FETCH_WAIT_MS),
        (0, None, FETCH_WAIT_MS),
    ],
)
async def test_a_fetch_for_others_waits_briefly_while_a_partition_with_records_left_is_behind(
    position: int | None, highwater: int | None, waits: int
) -> None:
    async def answer(assignment: Any, node: int, request: Any) -> bool:
        return True

    state = TopicPartitionState(None)
    if position is not None:
        state.seek(position)
    state.highwater = highwater
    assignment = SimpleNamespace(state_value={"renders": state}.get)
    for left, wait in (({"renders": None}, waits), ({}, FETCH_WAIT_MS), ({"gone": None}, FETCH_WAIT_MS)):
        one = SimpleNamespace(_records=left, _proc_fetch_request=answer, _get_actions_per_node=None, _in_flight={7})
        fetch_ahead(consumer_of(one), take_unparsed)
        request = SimpleNamespace(_max_wait_ms=FETCH_WAIT_MS)
        await one._proc_fetch_request(assignment, 7, request)
        assert request._max_wait_ms == wait


@pytest.mark.parametrize(
    ("in_bulk", "highwater", "waits"),
    [
        pytest.param(True, 7, (BULK_BYTES, BULK_WAIT_MS), id="all was fetched"),
        pytest.param(True, 8, (FETCH_BYTES, FETCH_WAIT_MS), id="an answer was full"),
        pytest.param(True, None, (FETCH_BYTES, FETCH_WAIT_MS), id="nothing is known"),
        pytest.param(False, 7, (FETCH_BYTES, FETCH_WAIT_MS), id="there is time"),
    ],
)
async def test_in_bulk_a_fetch_waits_for_more_but_not_while_more_is_there(
    in_bulk: bool, highwater: int | None, waits: tuple[int, int]
) -> None:
    async def answer(assignment: Any, node: int, request: Any) -> bool:
        return True

    one = SimpleNamespace(_records={}, _proc_fetch_request=answer, _get_actions_per_node=None, _in_flight={7})
    fetch_ahead(consumer_of(one), take_unparsed, in_bulk=lambda: in_bulk)
    topics = [("renders", [(0, 7, 1)])]
    request = SimpleNamespace(topics=topics, _min_bytes=FETCH_BYTES, _max_wait_ms=FETCH_WAIT_MS)
    assignment = SimpleNamespace(state_value={TP("renders", 0): state_of(7, highwater)}.get)
    await one._proc_fetch_request(assignment, 7, request)
    assert (request._min_bytes, request._max_wait_ms) == waits


def requests_of(*asked: tuple[int, str, int]) -> list[tuple[int, Any]]:
    """Return a fetch for each (node, topic, offset)."""
    return [(node, SimpleNamespace(topics=[(topic, [(0, offset, 1)])])) for node, topic, offset in asked]


def state_of(position: int, highwater: int | None) -> TopicPartitionState:
    state = TopicPartitionState(None)
    state.seek(position)
    state.highwater = highwater
    return state


@pytest.mark.parametrize(
    ("behind", "ends", "lately", "later"),
    [
        pytest.param(BEHIND + 1, 5, [], [1], id="nothing there is asked for now and then"),
        pytest.param(BEHIND + 1, 6, [1], [1], id="what is there is asked for"),
        pytest.param(BEHIND + 1, None, [1], [1], id="of what was never asked for nothing is known"),
        pytest.param(BEHIND, 5, [1], [1], id="nobody is behind"),
    ],
)
async def test_while_a_partition_is_behind_others_that_have_nothing_are_asked_now_and_then(
    monkeypatch: pytest.MonkeyPatch, behind: int, ends: int | None, lately: list[int], later: list[int]
) -> None:
    states = {TP("left", 0): state_of(0, behind), TP("other", 0): state_of(5, ends)}
    assignment = SimpleNamespace(state_value=states.get)
    now = 100.0
    monkeypatch.setattr("streams.kafka.fetch.monotonic", lambda: now)
    one = SimpleNamespace(
        _records={TP("left", 0): None},
        _proc_fetch_request=None,
        _get_actions_per_node=lambda _: (requests_of((1, "other", 5)), "resets", 0.2, "stale", "resumed"),
    )
    fetch_ahead(consumer_of(one), take_unparsed)

    def asked() -> list[int]:
        requests, resets, wait_s, *others = one._get_actions_per_node(assignment)
        assert (resets, others) == ("resets", ["stale", "resumed"])
        assert wait_s == (LOOK_S if behind > BEHIND else 0.2)
        return [node for node, _ in requests]

    assert asked() == [1]  # the first time it was not asked for lately
    now += LOOK_S / 2
    assert asked() == lately
    now += LOOK_S
    assert asked() == later


async def test_a_node_is_asked_for_nothing_whatever_another_one_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {TP("left", 0): state_of(0, BEHIND + 1), TP("a", 0): state_of(5, 5), TP("b", 0): state_of(5, 5)}
    assignment = SimpleNamespace(state_value=states.get)
    monkeypatch.setattr("streams.kafka.fetch.monotonic", lambda: 100.0)
    due: list[tuple[int, str, int]] = []
    one = SimpleNamespace(
        _records={TP("left", 0): None},
        _proc_fetch_request=None,
        _get_actions_per_node=lambda _: (requests_of(*due), {}, 0.2, False, []),
    )
    fetch_ahead(consumer_of(one), take_unparsed)
    due[:] = [(1, "a", 5)]
    assert [node for node, _ in one._get_actions_per_node(assignment)[0]] == [1]
    due[:] = [(1, "a", 5), (2, "b", 5)]
    assert [node for node, _ in one._get_actions_per_node(assignment)[0]] == [2]


class Connection:
    """What a connection of aiokafka is to who reads its answers."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.protocol: Any = None
        self._protocol: Any = None
        self._requests: list[Any] = []
        self._loop: Any
        self._loop = self._closed_fut = SimpleNamespace(create_future=lambda: SimpleNamespace(done=lambda: False))
        self._reader: Any = None
        self._writer = SimpleNamespace(transport=self, _protocol=None)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> None:
        """Return nothing: there is no socket."""

    def _handle_frame(self, answer: bytes) -> None:
        self.answers.append(answer)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(1, 30), min_size=1))
def test_answers_are_what_was_sent_however_it_is_cut(answers: list[bytes], cuts: Sequence[int]) -> None:
    connection = Connection()
    protocol = InPlace(connection)
    assert connection.protocol is protocol
    sent, number = b"".join(len(one).to_bytes(4) + one for one in answers), 0
    while sent:
        place = protocol.get_buffer(-1)
        some = min(len(place), len(sent), cuts[number % len(cuts)])
        place[:some], sent, number = sent[:some], sent[some:], number + 1
        protocol.buffer_updated(some)
    assert connection.answers == answers


def test_an_answer_lies_in_memory_once() -> None:
    connection, size = Connection(), 1 << 20
    protocol = InPlace(connection)
    protocol.get_buffer(-1)[:] = size.to_bytes(4)
    tracemalloc.start()
    protocol.buffer_updated(4)
    for _ in range(2):
        place = protocol.get_buffer(-1)  # asyncio keeps it, too, until it was told
        protocol.buffer_updated(size // 2)
    (answer,) = map(BytesIO, connection.answers)  # as aiokafka reads it
    assert answer.read(1) == b"\0"
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size <= most < 1.1 * size, place


def test_an_answer_that_comes_when_its_connection_is_gone_is_nobodys() -> None:
    connection = Connection()
    protocol = InPlace(connection)
    alive = weakref.ref(connection)
    protocol.get_buffer(-1)[:] = (1).to_bytes(4)
    protocol.buffer_updated(4)
    del connection
    gc.collect()
    protocol.get_buffer(-1)[:] = b"x"
    protocol.buffer_updated(1)
    assert alive() is None


async def test_a_connection_that_waits_for_an_answer_reads_it_as_it_began_to() -> None:
    connection = Connection()
    client = SimpleNamespace(_get_conn=None)

    async def connect(node: int, *, group: str) -> Connection | None:
        return connection if (node, group) == (7, "default") else None

    client._get_conn = connect
    read_in_place(client)
    connection._requests = [("an answer is", "on its way")]
    assert await client._get_conn(7, group="default") is connection
    assert connection._protocol is None
    connection._requests = []
    assert await client._get_conn(7, group="default") is connection
    first = connection._protocol
    assert isinstance(first, InPlace)
    assert await client._get_conn(7, group="default") is connection
    assert connection._protocol is first
    assert await client._get_conn(8, group="default") is None


async def connected_to(server: asyncio.Server) -> Connection:
    """Return a connection to a server that reads its answers in place."""
    connection = Connection()
    connection._loop = asyncio.get_running_loop()
    connection._closed_fut = connection._loop.create_future()
    connection._reader = asyncio.StreamReader()
    connection._writer.transport, _ = await connection._loop.create_connection(
        lambda: AIOKafkaProtocol(connection._closed_fut, connection._reader, loop=connection._loop),
        *server.sockets[0].getsockname(),
    )
    InPlace(connection)
    return connection


async def test_a_broker_that_says_no_more_is_hung_up_on() -> None:
    """A transport that were told otherwise would stay open for what there is to say to it."""
    hung_up = asyncio.Event()

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((2).to_bytes(4) + b"ok" + (9_000_000).to_bytes(4) + b"not all of it")
        writer.write_eof()
        assert await reader.read() == b""
        hung_up.set()
        writer.close()

    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        connection = await connected_to(server)
        await asyncio.wait_for(connection._closed_fut, 10)
        assert connection._writer.transport.is_closing()
        assert connection.answers == [b"ok"]
        assert connection._reader.at_eof()
        await asyncio.wait_for(hung_up.wait(), 10)


async def test_an_answer_that_comes_bit_by_bit_wakes_nobody_until_much_of_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, wakes = [b"a" * 3_000_000, b"small", b"b" * 200_000], []
    updated = InPlace.buffer_updated
    monkeypatch.setattr(InPlace, "buffer_updated", lambda self, nbytes: wakes.append(nbytes) or updated(self, nbytes))

    async def answer_slowly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            writer.write(len(answer).to_bytes(4))
            for start in range(0, len(answer), 20_000):
                writer.write(answer[start : start + 20_000])
                await writer.drain()
                await asyncio.sleep(0.001)
        writer.close()

    async with await asyncio.start_server(answer_slowly, "127.0.0.1", 0) as server:
        connection = await connected_to(server)
        async with asyncio.timeout(20):
            while len(connection.answers) < len(answers):
                await asyncio.sleep(0.01)
        await connection._closed_fut
    assert connection.answers == answers
    assert len(wakes) <= 20, "of 161 parts that were sent"


async def test_a_consumer_reads_all_its_answers_in_place_and_ends_in_order(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, 2)
    values = [b"%d" % number * 50_000 for number in range(10)]
    send(broker.bootstrap, topic_prefix + RENDERS, [(str(number), value) for number, value in enumerate(values)])
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    fetch_ahead(consumer, take_parsed(UNBOUNDED))
    consumer.assign([TopicPartition(topic_prefix + RENDERS, number) for number in range(2)])
    found: list[bytes] = []
    while len(found) < len(values):
        for records in (await consumer.getmany(timeout_ms=1_000)).values():
            found += [record.value for record in records]
    assert sorted(found) == sorted(values)
    connections = list(consumer._client._conns.values())
    assert [type(connection._protocol) for connection in connections] == [InPlace] * len(connections)
    await consumer.stop()
    assert all(connection._closed_fut.done() for connection in connections)


async def test_a_fetch_gives_two_of_the_largest_batches_that_are_sent(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, 1)
    place = TopicPartition(topic_prefix + RENDERS, 0)
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, max_batch_size=1 << 20) as producer:
        for value in (b"a", b"b"):
            await producer.send_and_wait(place.topic, value * ((1 << 20) - 200), partition=0)  # less than its header
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest", max_partition_fetch_bytes=PARTITION_BYTES
    )
    await consumer.start()
    fetch_ahead(consumer, take_unparsed)
    consumer.assign([place])
    (taken,) = (await consumer.getmany(timeout_ms=10_000))[place]
    await consumer.stop()
    assert [record.value[:1] for record in taken] == [b"a", b"b"]


def batch_of(values: Sequence[bytes], magic: int = 2) -> bytes:
    """Return a batch as Kafka stores it."""
    if magic < 2:
        old = LegacyRecordBatchBuilder(magic, 0, 1 << 20)
        for offset, value in enumerate(values):
            old.append(offset, 1_000, b"k", value)
        return bytes(old.build())
    builder = DefaultRecordBatchBuilder(magic, 0, 0, -1, -1, -1, 1 << 20)
    for offset, value in enumerate(values):
        builder.append(offset, 1_000, b"k", value, [])
    return bytes(builder.build())


BATCHES = st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=3).map(batch_of), min_size=1, max_size=3)
COVERED = 17
"""From here on, with the checksum itself, each byte of a batch is held by its checksum."""


@given(BATCHES, st.integers(0, 100))
def test_batches_as_kafka_has_them_are_not_corrupt_wherever_they_are_cut_off(batches: list[bytes], cut: int) -> None:
    whole = b"".join(batches)
    assert all(MemoryRecords(one).next_batch().validate_crc() for one in batches)
    assert not is_corrupt(whole)
    assert not is_corrupt(whole[: max(0, len(whole) - cut)])


@given(BATCHES, st.data())
def test_a_batch_of_which_any_bit_changed_is_corrupt(batches: list[bytes], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(batches) - 1))
    changed = bytearray(batches[number])
    changed[data.draw(st.integers(COVERED, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not MemoryRecords(bytes(changed)).next_batch().validate_crc()
    batches[number] = bytes(changed)
    assert is_corrupt(b"".join(batches))


def test_batches_from_before_kafka_0_11_have_their_own_checksum() -> None:
    batch = batch_of([b"a"], magic=1)
    assert not is_corrupt(batch)
    assert [record.value for record in take_parsed(UNBOUNDED)(fetch_of(batch))] == [b"a"]
    changed = batch[:-1] + b"b"
    assert not is_corrupt(changed)
    with pytest.raises(CorruptRecordException):
        take_parsed(UNBOUNDED)(fetch_of(changed))


def broken_where_first(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what was fetched of a partition, but of the first one with a last byte that is wrong."""
    partition, *others, records = answer
    return (partition, *others, records[:-1] + b"!" if partition == 0 and records else records)


async def test_who_reads_a_corrupt_batch_is_told_and_reads_it_when_it_is_whole_again(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, 2)
    send(broker.bootstrap, topic_prefix + RENDERS, [(str(number), b"%d" % number) for number in range(10)])
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    is_broken, read = True, consumer._client.send

    async def read_badly(node: int, request: Any, **kwargs: Any) -> Any:
        answer = await read(node, request, **kwargs)
        if isinstance(request, fetch.FetchRequest) and is_broken:
            answer.topics = [(topic, [*map(broken_where_first, partitions)]) for topic, partitions in answer.topics]
        return answer

    consumer._client.send = read_badly
    fetch_ahead(consumer, take_parsed(UNBOUNDED))
    broken, whole = (TopicPartition(topic_prefix + RENDERS, number) for number in range(2))
    consumer.assign([broken, whole])
    try:
        for _ in range(2):
            with pytest.raises(CorruptRecordException, match=f"{topic_prefix}{RENDERS}.*partition=0"):
                await consumer.getmany(broken, timeout_ms=10_000)
        found = (await consumer.getmany(whole, timeout_ms=10_000))[whole]
        is_broken = False
        for _ in range(10):
            with suppress(CorruptRecordException):  # once more, if it was fetched before
                found += (await consumer.getmany(broken, timeout_ms=200)).get(broken, [])
    finally:
        await consumer.stop()
    assert sorted(int(record.value) for record in found) == list(range(10))
