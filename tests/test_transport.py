"""The batch transport: what it overrides of Faust, and that the private parts it uses are still there."""

import asyncio
import gc
import inspect
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.producer import message_accumulator, sender
from confluent_kafka.admin import AdminClient
from faust.app.base import App as FaustApp
from faust.tables.manager import TableManager
from faust.transport import consumer as stock
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.core.campaigns import Campaigns
from streams.core.events import RENDERS, TOPICS
from streams.kafka import app, transport
from streams.kafka.app import PLENTY, Worker
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.fetch import Batches
from streams.kafka.tables import Outbox, PartitionTable, Tables
from streams.kafka.transport import (
    PARTITION_BYTES,
    BatchSchema,
    Consumer,
    ConsumerThread,
    Producer,
    RecordBatch,
    Transport,
    _end,
)
from streams.settings import load
from tests.conftest import create_topics
from tests.worker import send

PARTITIONS = 2


def worker(prefix: str = "", bootstrap: str = "127.0.0.1:9") -> Worker:
    """Return a worker that is never started."""
    made = Worker(load(broker=bootstrap, topic_prefix=prefix), Campaigns(), PARTITIONS, lambda _: None)
    made._consumer._thread.thread_loop.close()
    return made


def record(topic: str, partition: int, offset: int, key: bytes = b"k", value: bytes | None = b"v") -> Any:
    return SimpleNamespace(
        topic=topic, partition=partition, offset=offset, key=key, value=value, timestamp=1_000 + offset,
        timestamp_type=1, headers=(), checksum=None, serialized_key_size=1, serialized_value_size=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (stock.Consumer, "_filter_tps_with_pending_acks"),
        (stock.Consumer, "_new_offset"),
        (stock.Consumer, "_add_gap"),
        (stock.Consumer, "_wait_next_records"),
        (stock.Consumer, "on_buffer_full"),
        (stock.Consumer, "on_partitions_revoked"),
        (stock.Consumer, "perform_seek"),
        (stock.Consumer, "wait_empty"),
        (driver.Producer, "__post_init__"),
        (driver.Producer, "_new_producer"),
        (driver, "IllegalStateError"),
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (driver.AIOKafkaConsumerThread, "on_start"),
        (driver.AIOKafkaConsumerThread, "_stopped_set"),
        (driver.AIOKafkaConsumerThread, "set_shutdown"),
        (driver.AIOKafkaConsumerThread, "seek_to_committed"),
        (driver.AIOKafkaConsumerThread, "_ensure_consumer"),
        (driver.AIOKafkaConsumerThread, "on_thread_stop"),
        (driver.AIOKafkaConsumerThread, "close"),
        (GroupCoordinator, "_do_heartbeat"),
        (GroupCoordinator, "_do_commit_offsets"),
        (GroupCoordinator, "_send_req"),
        (GroupCoordinator, "reset_generation"),
        (stock.Consumer, "on_partitions_assigned"),
        (TableManager, "_update_channels"),
        (TableManager, "wait_until_recovery_completed"),
        (TableManager, "on_actives_ready"),
        (TableManager, "on_standbys_ready"),
        (FaustApp, "on_rebalance_end"),
        (FaustApp, "_fetcher"),
        (driver.AIOKafkaConsumerThread, "call_thread"),
        (FaustApp, "_create_directories"),
    ],
)
def test_what_is_overridden_or_called_still_exists_in_faust(owner: Any, name: str) -> None:
    assert hasattr(owner, name)


def test_the_fetcher_still_keeps_what_the_thread_reaches_into() -> None:
    assert "self._request_timeout_ms / 1000" in inspect.getsource(AIOKafkaProducer.send)
    assert "MessageBatch(tp, builder, self._batch_ttl" in inspect.getsource(message_accumulator.MessageAccumulator)
    assert "await self._get_conn(node_id" in inspect.getsource(AIOKafkaClient.ready)
    assert "self.consumer.close()" in inspect.getsource(FaustApp._on_rebalance_when_stopped)
    for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task"):
        assert f"self.{name} = create_task(" in inspect.getsource(GroupCoordinator)
    for name in ("_fetch_task", "_pending_tasks"):
        assert f"self.{name} = " in inspect.getsource(Fetcher.__init__)
    assert "self._conns[(node_id, group)]" in inspect.getsource(AIOKafkaClient.send)
    assert "self._do_heartbeat()" in inspect.getsource(GroupCoordinator._heartbeat_routine)
    assert "asyncio.shield(self._do_commit_offsets(" in inspect.getsource(GroupCoordinator.commit_offsets)
    assert "self._coordinator = GroupCoordinator(" in inspect.getsource(AIOKafkaConsumer.start)
    assert "self._sender.client.send(" in inspect.getsource(sender.BaseHandler)
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in inspect.getsource(AIOKafkaConsumer.start)
    assert "fetch_min_bytes=self._fetch_min_bytes" in inspect.getsource(AIOKafkaConsumer.start)
    assert "=conf.consumer_max_fetch_size" in inspect.getsource(driver.AIOKafkaConsumerThread._create_worker_consumer)
    assert worker()._app.conf.consumer_max_fetch_size == PARTITION_BYTES


def test_a_thread_and_a_worker_that_end_in_any_order_end_in_order() -> None:
    ended = asyncio.new_event_loop()
    ended.close()
    thread = object.__new__(ConsumerThread)
    thread.thread_loop = thread.parent_loop = ended
    thread._stopped = thread._shutdown = asyncio.Event()
    thread._stopped_set()
    thread.set_shutdown()


async def test_a_rebalance_while_a_worker_stops_leaves_its_consumer_to_the_thread_that_works_with_it() -> None:
    made = worker()
    made._consumer._thread._consumer = SimpleNamespace(_closed=False)
    made._app._on_rebalance_when_stopped()
    assert made._consumer._thread._consumer._closed is False


async def test_a_worker_that_crashed_asks_its_thread_which_ends_by_itself_for_no_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = worker()
    asked: list[Any] = []

    async def commit(offsets: Any) -> bool:
        asked.append(offsets)
        return True

    monkeypatch.setattr(made._consumer._thread, "commit", commit)
    made._consumer._thread._consumer = SimpleNamespace(assignment=lambda: {TP("renders", 0)})
    made._consumer.done("renders", 0, 7)
    await made._consumer.wait_empty()
    assert asked == [{TP("renders", 0): 7}]
    made._app._crashed.set()
    made._consumer.done("renders", 0, 8)
    await made._consumer.wait_empty()
    assert len(asked) == 1


async def test_a_task_that_hands_a_cancellation_on_to_another_is_cancelled_again() -> None:
    async def swallows_one() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    task = asyncio.create_task(swallows_one())
    await asyncio.sleep(0)
    await _end(task)
    assert task.cancelled()


async def test_a_consumer_leaves_its_group_while_a_fetch_that_failed_waits_to_be_tried_again(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, PARTITIONS)
    thread = object.__new__(ConsumerThread)
    thread._consumer = consumer = AIOKafkaConsumer(
        topic_prefix + RENDERS, group_id=topic_prefix, bootstrap_servers=broker.bootstrap, enable_auto_commit=False
    )
    await consumer.start()
    consumer._fetcher._pending_tasks.add(asyncio.create_task(asyncio.sleep(60)))
    await thread._leave()
    assert consumer._coordinator._coordination_task.cancelled(), "it would join again"
    await consumer.stop()
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    assert admin.describe_consumer_groups([topic_prefix])[topic_prefix].result(30).members == []


async def test_a_consumer_that_leaves_before_it_has_heard_by_which_name_it_joins_keeps_nobody_waiting(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, PARTITIONS)
    settings = {"group_id": topic_prefix, "bootstrap_servers": broker.bootstrap, "heartbeat_interval_ms": 200}
    async with AIOKafkaConsumer(topic_prefix + RENDERS, **settings):
        thread = object.__new__(ConsumerThread)
        thread._consumer = leaves = AIOKafkaConsumer(topic_prefix + RENDERS, session_timeout_ms=30_000, **settings)
        starting = asyncio.create_task(leaves.start())
        connections = leaves._client._conns.values
        async with asyncio.timeout(10):
            while not any("JoinGroup" in type(sent).__name__ for one in connections() for _, sent, _ in one._requests):
                await asyncio.sleep(0)
        assert leaves._coordinator.member_id == ""
        await thread._leave()
        starting.cancel()
        await leaves.stop()
        async with asyncio.timeout(10), AIOKafkaConsumer(topic_prefix + RENDERS, **settings):
            pass


async def test_a_consumer_that_leaves_while_a_commit_waits_for_its_answer_leaves_no_failure_that_nobody_hears_of(
    broker: EmbeddedBroker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, PARTITIONS)
    thread = worker()._consumer._thread
    thread._consumer = consumer = AIOKafkaConsumer(
        topic_prefix + RENDERS, group_id=topic_prefix, bootstrap_servers=broker.bootstrap, enable_auto_commit=False
    )
    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "on_start", lambda _: consumer.start())
    await thread.on_start()
    unheard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context["message"]))
    connection = consumer._client._conns[(consumer._coordinator.coordinator_id, ConnectionGroup.COORDINATION)]
    connection._writer.transport.pause_reading()
    committing = asyncio.create_task(consumer.commit({TopicPartition(topic_prefix + RENDERS, 0): 0}))
    async with asyncio.timeout(10):
        while not any("OffsetCommit" in type(sent).__name__ for _, sent, _ in connection._requests):
            await asyncio.sleep(0)
    committing.cancel()  # as each call of a thread that ends is
    await asyncio.wait([committing])
    await thread._leave()
    await consumer.stop()
    gc.collect()
    assert unheard == []


@pytest.mark.parametrize(
    ("gathered", "is_current", "busy", "interval_s"),
    [(PLENTY, True, 0.7, 0.1), (PLENTY - 1, True, 0.7, 0.2), (PLENTY, False, 0.7, 0.2), (PLENTY, True, 0.8, 0.2)],
)
def test_many_events_are_shown_twice_as_often_by_a_worker_that_is_up_to_date_and_has_time(
    monkeypatch: pytest.MonkeyPatch, gathered: int, is_current: bool, busy: float, interval_s: float
) -> None:
    made = worker()
    made.qualify.gathered = gathered
    monkeypatch.setattr(made, "up_to_date", lambda: is_current)
    assert made._interval_s(busy) == interval_s


async def test_a_stage_that_has_sixteen_batches_to_do_is_given_no_more() -> None:
    for stage in worker()._app.agents.values():
        queue = stage.channel.clone(is_iterator=True).queue
        for number in range(16):
            assert not queue.full()
            queue.put_nowait(number)
        assert queue.full()


@pytest.mark.parametrize(("used", "in_bulk"), [(0.74, False), (0.75, True)])
async def test_a_worker_that_has_no_time_left_fetches_in_bulk(
    monkeypatch: pytest.MonkeyPatch, used: float, in_bulk: bool
) -> None:
    made = worker()

    async def stop(_: float) -> None:
        made._app._stopped.set()
        monkeypatch.setattr(app, "monotonic", lambda: 1.0)
        monkeypatch.setattr(app, "thread_time", lambda: used)

    monkeypatch.setattr(app, "monotonic", lambda: 0.0)
    monkeypatch.setattr(app, "thread_time", lambda: 0.0)
    monkeypatch.setattr(made._app, "sleep", stop)
    made._consumer.fetch_in_bulk(not in_bulk)
    await made._commit_qualify()
    assert made._consumer._thread.in_bulk is in_bulk


async def test_what_fetches_hears_while_it_runs_whether_it_fetches_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_: Any) -> None:
        pass

    told: list[Any] = []
    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "on_start", start)
    monkeypatch.setattr(transport, "fetch_ahead", lambda *arguments: told.extend(arguments))
    made = worker()
    thread = made._consumer._thread
    client, coordinator = SimpleNamespace(_get_conn=None), SimpleNamespace(_do_heartbeat=None, _do_commit_offsets=None)
    thread._consumer = SimpleNamespace(_client=client, _coordinator=coordinator)
    await thread.on_start()
    in_bulk = told[-1]
    assert not in_bulk()
    made._consumer.fetch_in_bulk(True)
    assert in_bulk()


async def test_the_state_that_is_read_still_exists_on_a_consumer_and_a_producer() -> None:
    consumer = worker()._consumer
    for name in ("_unacked_messages", "_waiting_for_ack", "_committed_offset", "_paused_partitions", "flow_active"):
        assert hasattr(consumer, name)
    assert isinstance(consumer, Consumer)
    assert isinstance(consumer.app.producer, Producer)
    assert hasattr(consumer.app.producer, "buffer")
    assert isinstance(consumer.transport, Transport), "impressions:// is registered as an entry point"


def test_the_signatures_that_are_overridden_are_those_of_faust() -> None:
    transport = ((Consumer, driver.Consumer), (Producer, driver.Producer))
    for ours, theirs in (*transport, (PartitionTable, faust.Table), (Tables, TableManager)):
        for name, function in vars(ours).items():
            original = getattr(theirs, name, None)
            if inspect.isfunction(function) and inspect.isfunction(original) and name != "__init__":
                assert arguments(function) <= arguments(original) or "kwargs" in arguments(function), name


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


async def test_only_what_is_said_to_be_done_is_committed() -> None:
    consumer = worker()._consumer
    consumer.done("renders", 0, 120)
    consumer.done("renders", 1, 7)
    consumer.done("renders", 0, 130)
    assert consumer._filter_committable_offsets(consumer._filter_tps_with_pending_acks()) == {
        TP("renders", 0): 130,
        TP("renders", 1): 7,
    }
    assert not consumer._filter_tps_with_pending_acks(), "each offset is committed once"


def unparsed(records: list[Any]) -> Batches:
    return Batches([records], records[0].offset, records[-1].offset + 1)


async def test_an_acknowledged_event_commits_nothing() -> None:
    consumer = worker()._consumer
    message = consumer._message(TP("renders", 0), unparsed([record("renders", 0, 5)]))
    consumer.track_message(message)
    assert message in consumer.unacked
    assert consumer.ack(message)
    assert not consumer.ack(message), "once is enough"
    assert message not in consumer.unacked
    assert not consumer._filter_tps_with_pending_acks()


async def test_a_poll_of_a_partition_is_one_message() -> None:
    found = unparsed([record("renders", 1, offset) for offset in range(10, 13)])
    message = worker()._consumer._message(TP("renders", 1), found)
    assert message.value == RecordBatch("renders", 1, found)
    assert message.offset == 12, "Faust goes on behind the last one"


async def test_the_schema_hands_a_batch_through_to_the_agent() -> None:
    made = worker()
    message = made._consumer._message(TP("renders", 0), unparsed([record("renders", 0, 0)]))
    event = await BatchSchema().compile(made._app)(message)
    assert event.value is message.value
    assert event.message is message


class Fetched:
    """A consumer's next poll, and what happens to the consumer while it waits for it."""

    def __init__(self, consumer: Consumer, records: dict[TP, list[Any]], meanwhile: Any = lambda: None) -> None:
        self.seeks = 0

        async def wait_next_records(timeout: float) -> tuple[dict[TP, list[Batches]], set[TP]]:
            meanwhile()
            return {tp: [unparsed(found)] for tp, found in records.items()}, set(records)

        async def perform_seek() -> None:
            self.seeks += 1

        consumer._wait_next_records = wait_next_records  # type: ignore[method-assign]
        consumer.perform_seek = perform_seek  # type: ignore[method-assign]


async def polled(consumer: Consumer) -> list[TP]:
    return [tp async for tp, _ in consumer.getmany(1.0)]


async def test_records_that_came_over_a_whole_rebalance_belong_to_the_generation_of_now() -> None:
    consumer = worker()._consumer
    tp = TP("renders", 0)

    def rebalance() -> None:
        consumer.app.consumer_generation_id = 8

    consumer.app.consumer_generation_id = 7
    Fetched(consumer, {tp: [record("renders", 0, 0)]}, rebalance)
    assert await polled(consumer) == [tp]


async def test_records_that_come_while_the_flow_is_stopped_are_sought_back() -> None:
    consumer = worker()._consumer
    fetched = Fetched(consumer, {TP("renders", 0): [record("renders", 0, 0)]}, consumer.stop_flow)
    assert await polled(consumer) == []
    assert fetched.seeks == 1


async def test_a_seek_that_fails_in_a_rebalance_does_not_end_the_worker() -> None:
    consumer = worker()._consumer
    Fetched(consumer, {TP("renders", 0): [record("renders", 0, 0)]}, consumer.stop_flow)

    async def refuse() -> None:
        raise driver.IllegalStateError("no assignment")

    consumer.perform_seek = refuse  # type: ignore[method-assign]
    assert await polled(consumer) == []


async def test_a_paused_input_is_still_handed_on_when_it_was_fetched_before() -> None:
    consumer = worker()._consumer
    first, second = TP("renders", 0), TP("renders", 1)
    consumer._set_active_tps({first, second})
    Fetched(
        consumer,
        {first: [record("renders", 0, 0)], second: [record("renders", 1, 0)]},
        lambda: consumer.pause("renders", 1),
    )
    assert await polled(consumer) == [first, second]


async def test_the_rest_of_a_poll_is_left_to_the_next_owner_when_a_rebalance_begins() -> None:
    consumer = worker()._consumer
    tps = [TP("renders", partition) for partition in range(2)]
    Fetched(consumer, {tp: [record(tp.topic, tp.partition, 0)] for tp in tps})
    seen = []
    async for tp, _ in consumer.getmany(1.0):
        seen.append(tp)
        consumer.app.consumer_generation_id += 1
    assert seen == tps[:1]


# --- on a broker -----------------------------------------------------------------------------------------------------


@pytest.fixture
def topics(broker: EmbeddedBroker, topic_prefix: str) -> str:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    return topic_prefix


@pytest.fixture
def bootstrap(broker: EmbeddedBroker) -> Iterator[str]:
    yield broker.bootstrap


async def test_a_partition_of_which_nothing_is_committed_is_sought_back_to_its_beginning(
    bootstrap: str, topics: str
) -> None:
    made = Worker(
        load(broker=bootstrap, topic_prefix=topics, commit_interval="1h"), Campaigns(), PARTITIONS, lambda _: None
    )
    stop = asyncio.Event()
    running = asyncio.create_task(made.run(stop))
    try:
        await asyncio.to_thread(send, bootstrap, topics + RENDERS, [(str(n), b"{}") for n in range(100)])
        async with asyncio.timeout(30):
            while sum(owned.state.progress[RENDERS].fence for owned in made.qualify.owned.values()) < 100:
                await asyncio.sleep(0.05)
        consumer = made._consumer
        places = [TP(topics + RENDERS, number) for number in range(PARTITIONS)]
        assert all([await consumer.position(place) for place in places]), "it was read"
        consumer.stop_flow()
        await consumer.perform_seek()
        async with asyncio.timeout(10):  # a poll that is under way reads on from there, and is sought back as well
            while any([await consumer.position(place) for place in places]):
                await asyncio.sleep(0.05)
        consumer.resume_flow()
    finally:
        stop.set()
        await running


async def test_a_flush_that_is_cancelled_cancels_no_delivery() -> None:
    producer = worker()._app.producer
    delivery: asyncio.Future[None] = asyncio.Future()
    producer._unconfirmed.add(delivery)
    delivery.add_done_callback(producer._confirm)
    flushing = asyncio.create_task(producer.flush())
    await asyncio.sleep(0.01)
    flushing.cancel()
    await asyncio.wait({flushing})
    assert not delivery.done()
    delivery.set_result(None)
    await producer.flush()


async def test_flush_returns_when_all_is_delivered_and_raises_ever_after_one_was_not(
    bootstrap: str, topics: str
) -> None:
    made = worker(topics, bootstrap)
    producer = made._app.producer
    await producer.start()
    try:
        outbox = Outbox(made._app)
        for number in range(100):
            outbox.send(topics + TOPICS[0], b"k", b"%d" % number, partition=number % PARTITIONS)
        await outbox.flush()
        assert not producer._unconfirmed
        outbox.send(topics + TOPICS[0], b"k", b"x" * (9 << 20), partition=0)
        with pytest.raises(MessageSizeTooLargeError):
            await outbox.flush()
        with pytest.raises(MessageSizeTooLargeError):
            await Outbox(made._app).flush()
        producer._unconfirmed.clear()
    finally:
        await producer.stop()


async def test_records_of_a_partition_arrive_in_their_order_however_many_batches_they_fill(
    bootstrap: str, topics: str
) -> None:
    made = worker(topics, bootstrap)
    topic = TP(topics + TOPICS[0], 0)
    sent = [(b"%d" % number, b"x" * 1_000 if number % 7 else None) for number in range(3_000)]
    await made._app.producer.start()
    try:
        outbox = Outbox(made._app)
        for key, value in sent:
            outbox.send(topic.topic, key, value, partition=0)
        await outbox.flush()
    finally:
        await made._app.producer.stop()
    found: list[tuple[Any, Any]] = []
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([topic])
        while len(found) < len(sent):
            for records in (await consumer.getmany(timeout_ms=10_000)).values():
                found += [(record.key, record.value) for record in records]
    assert found == sent
