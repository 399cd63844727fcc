"""Faust's Kafka transport with whole batches: one event a poll and partition instead of one a record.

What is overridden here, and why (versions are pinned in pyproject.toml; tests hold the private names that are used):

- `Consumer.getmany` hands a poll's records of a partition on as one message: stock Faust spends 80 us a record.
- `Consumer.on_partitions_revoked` gives a recovery up, and lets what was applied be committed before stock code forgets
  it.
- `Consumer.wait_empty` does not wait in a worker that crashed: stock code is cancelled there, and does not leave the
  group.
- `Consumer.ack` never decides what is committed: stock code acknowledges events that it skips in a rebalance.
  Offsets are committed up to what `done` was told, and nothing else.
- `ConsumerThread.seek_to_committed` seeks partitions without a committed offset too: aiokafka leaves them where they
  are, and what had been fetched of them before was lost.
- `ConsumerThread` notices when an offset is out of range, and `getmany` stops the worker then: aiokafka goes on with
  the oldest record, and says nothing.
- `ConsumerThread` may end before the worker, and after it: stock code then tells a loop that is closed, and crashes.
- `ConsumerThread` leaves the group at once when it stops: stock code waits until a rebalance that is under way has
  ended, and where it hears of one it closes the consumer from another thread, under the hands of this one. It ends a
  commit that is on its way: stock code lets that fail, and nobody hears of it.
- `Producer` asks for the lease before each request that writes, so `ConsumerThread` remembers its heartbeats.
- `back_off` lets clients wait between tries to connect: aiokafka tries on and on.
- `Producer` keeps records until they are delivered, however long the broker is away: aiokafka gives up in a minute.
- `Producer.send_all` hands records over by the batch: stock code has a future for each.
- `Producer.flush` waits for every delivery and raises if one failed: stock code gives up and only logs.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from random import uniform
from time import monotonic
from typing import Any, NamedTuple, Protocol

import faust
from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import JoinGroupRequestStruct, LeaveGroupRequest
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.kafka.fetch import UNBOUNDED, Batches, asked, fetch_ahead, take_unparsed
from streams.kafka.topics import TopicsError

FETCH_WAIT_MS = 50
FETCH_BYTES = 1 << 20
"""How much the broker waits for, up to that long: a batch of few records costs three times as much for each of them.
A single partition that is behind gives as much at once."""
PARTITION_BYTES = 2 << 20
"""What a fetch gives of a partition at most. Kafka gives whole batches, and a producer's may have 1 MiB: with room for
less than two of them a worker gets one batch a fetch, however many lie there, and is late for good by those that lay
there once."""

_LEASE_TICK_S = 0.05
_ASK_AGAIN_S = 0.5
_CANCEL_AGAIN_S = 0.1
_NAMED_WITHIN_S = 1.0

_FOREVER_S = 1e9

_FIRST_BACK_OFF_S = 0.025
_LONGEST_BACK_OFF_S = 2.0
_MANY = 10

NOT_YET = float("-inf")
"""When a worker that was never a member of its group last heard of it."""


Keyed = tuple[bytes, bytes | None]
"""Key and value of a record that is to be sent."""


class RecordBatch(NamedTuple):
    """The records of one topic partition that one poll gave, in order of their offsets."""

    topic: str
    partition: int
    records: Batches


class Extent(NamedTuple):
    """What Kafka says of a topic partition that is about to be read."""

    begin: int
    """Offset of the oldest record that is there still; that of the next one if there is none."""
    committed: int
    """Offset before which all was read; 0 if none is committed."""
    end: int = UNBOUNDED
    """Offset of the next record."""


class Lost(NamedTuple):
    """A topic partition, and an offset that was to be read from next, but is out of what Kafka has of it."""

    place: TopicPartition
    offset: int


class Flow(Protocol):
    """What a stage asks of the consumer."""

    def done(self, topic: str, partition: int, next_offset: int) -> None:
        """Say that what lies before an offset need never be read again."""

    def pause(self, topic: str, partition: int) -> None:
        """Fetch no more of a partition until `resume`."""

    def resume(self, topic: str, partition: int) -> None:
        """Fetch a partition again, if it was paused."""

    def committed(self, topic: str, partition: int) -> int:
        """Return the offset that is committed, 0 if none is."""

    def end_offset(self, topic: str, partition: int) -> int | None:
        """Return the end of a partition as the last fetch reported it, or None before the first."""

    def heard_at(self) -> float:
        """Return when (`monotonic`) the newest heartbeat was sent that the group answered as one of this member.

        Whatever was delivered before that, was delivered by the owner of its partitions.
        """

    async def confirm(self) -> None:
        """Wait until the group has answered a heartbeat, sent from now on, as one of a member of this generation."""


class BatchSchema(faust.Schema):
    """Hands a batch through to the agent as it is: decoding is the agent's work."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        """Return the function that makes an event of a message."""

        async def decode(message: ConsumerMessage, *, propagate: bool = False) -> Any:
            return app.create_event(None, message.value, message.headers, message)

        return decode


def back_off(client: Any) -> None:
    """Let a client of aiokafka wait longer and longer between tries to connect to a node that does not answer.

    Without, each of its tasks tries again at once or ten times a second, for as long as the node is away.
    """
    connect = client._get_conn
    failures: Counter[Any] = Counter()

    async def connect_patiently(node: Any, **kwargs: Any) -> Any:
        if failures[node]:
            await asyncio.sleep(min(_LONGEST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2 ** failures[node]) * uniform(0.5, 1))
        connection = await connect(node, **kwargs)
        failures[node] = 0 if connection else min(failures[node] + 1, _MANY)
        return connection

    client._get_conn = connect_patiently


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks until they have ended: one that waits for another may hand that on, and not hear of it itself."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)


def _unnamed(connection: Any) -> list["asyncio.Future[Any]"]:
    """Return the answers to joins that will tell by which id Kafka knows this member: without it, it cannot leave."""
    sent = ((request, answer) for _, request, answer in connection._requests)
    return [answer for request, answer in sent if isinstance(request, JoinGroupRequestStruct) and not request.member_id]


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's thread that fetches: ahead of what is applied, and what it fetched is handed on unparsed.

    A broker is asked for one fetch at a time. One for partitions without new records, while those with records are
    being applied, would hold up the next fetch of those for as long as the broker waits: stock Faust says 1.5 s.
    """

    heard_at = NOT_YET
    """When the newest heartbeat was sent that the group answered well."""
    lost: Lost | None = None
    """What could not be read on, if there was anything."""
    in_bulk = False
    """Whether fetches wait for more."""
    _committing: "asyncio.Task[Any] | None" = None
    """The newest request that commits offsets: aiokafka lets it go on when who waits for it is cancelled."""
    _seeking = False
    """Whether partitions are on their way to their beginning, as nothing is committed of them."""

    def _stopped_set(self) -> None:
        with suppress(RuntimeError):  # this thread's loop is closed: it has ended by itself
            super()._stopped_set()

    def set_shutdown(self) -> None:
        """Tell the worker's loop that this thread ends, if that loop has not ended before it."""
        with suppress(RuntimeError):
            super().set_shutdown()

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        consumer._fetch_min_bytes = FETCH_BYTES
        return consumer

    async def on_start(self) -> None:
        """Start the consumer, and let its fetcher hand out what it fetched."""
        await super().on_start()
        back_off(self._consumer._client)
        fetch_ahead(self._consumer, take_unparsed, self._note_lost, lambda: self.in_bulk)
        coordinator = self._consumer._coordinator
        beat, commit = coordinator._do_heartbeat, coordinator._do_commit_offsets

        async def beat_and_remember() -> bool:
            sent_at = monotonic()
            is_member: bool = await beat()
            if is_member:
                self.heard_at = sent_at
            return is_member

        async def commit_in_sight(*what: Any) -> None:
            self._committing = asyncio.current_task()
            await commit(*what)

        coordinator._do_heartbeat, coordinator._do_commit_offsets = beat_and_remember, commit_in_sight

    def close(self) -> None:
        """Do nothing: `on_thread_stop` closes the consumer."""

    async def on_thread_stop(self) -> None:
        """Leave the group and close the consumer, when nothing that was called here is at work any more."""
        await self.method_queue.stop()
        if self._consumer is not None and self._consumer._coordinator is not None:
            await self._leave()
        await super().on_thread_stop()

    async def _leave(self) -> None:
        """Leave the group without waiting for a rebalance, which ends when Kafka holds those for dead that are.

        aiokafka waits; and leaving in its first one, it would not tell, and the others would wait for this one.
        """
        client, fetcher, coordinator = self._consumer._client, self._consumer._fetcher, self._consumer._coordinator
        if self._committing is not None:
            await _end(self._committing)  # nobody would hear how it fails
        connection = client._conns.get((coordinator.coordinator_id, ConnectionGroup.COORDINATION))
        if connection is not None and (unnamed := _unnamed(connection)):
            await asyncio.wait(unnamed, timeout=_NAMED_WITHIN_S)
        await _end(coordinator._coordination_task, fetcher._fetch_task)
        started = (coordinator._heartbeat_task, coordinator._commit_refresh_task, *fetcher._pending_tasks)
        await _end(*filter(None, started))
        fetcher._pending_tasks.clear()
        if connection is not None and connection._requests:
            connection.close()  # Kafka reads no more of it before it has answered what came on it
        if coordinator.member_id:
            with suppress(KafkaError):
                await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, coordinator.member_id))
            coordinator.reset_generation()

    def _note_lost(self, assignment: Any, request: Any) -> None:
        """Take note of what was asked for out of range of what there is: it is about to be sought elsewhere."""
        if not assignment.active or self._seeking:
            return
        for place, offset in asked(request):
            state = assignment.state_value(place)
            if state is not None and state.awaiting_reset:
                self.lost = Lost(place, offset)

    async def seek_to_committed(self) -> Any:
        """Seek every partition to its committed offset, and where none is committed to its beginning.

        aiokafka leaves the latter where they are: what was fetched of them and dropped would never be read again.
        """
        return await self.call_thread(self._seek_all)

    async def _seek_all(self) -> dict[Any, int | None]:
        consumer = self._ensure_consumer()
        committed: dict[Any, int | None] = await consumer.seek_to_committed()
        unread = [tp for tp, offset in committed.items() if not offset]
        if self.consumer.accepts_loss:
            begins = await consumer.beginning_offsets(list(committed))
            unread += [tp for tp, offset in committed.items() if 0 < (offset or 0) < begins[tp]]
        if unread:
            self._seeking = True
            try:
                await consumer.seek_to_beginning(*unread)
            finally:
                self._seeking = False
        self.lost = None  # what was asked for before, aiokafka's own first fetch, is not read on from
        return committed

    async def is_member(self, generation: int) -> bool:
        """In the thread: ask the group now whether this worker is a member of a generation; False if nobody answers."""
        coordinator = self._ensure_consumer()._coordinator
        is_member: bool = coordinator.generation == generation and await coordinator._do_heartbeat()
        return is_member and coordinator.generation == generation

    async def extents(self, places: list[TP]) -> dict[TP, Extent]:
        """In the thread: return where topic partitions begin and what is committed of them."""
        consumer = self._ensure_consumer()
        begins, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        return {place: Extent(begins[place], await consumer.committed(place) or 0, ends[place]) for place in places}


class Consumer(driver.Consumer):
    """Reads batches, and commits exactly the offsets that it was told are done."""

    before_revoke: Callable[[], Awaitable[None]] | None = None
    """Called when partitions are about to go and nothing is being applied: the last chance to commit."""

    accepts_loss = False
    """Whether reading may begin behind what Kafka deleted before it was counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._done: dict[TP, int] = {}

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # --- what is done ----------------------------------------------------------------------------------------------

    def done(self, topic: str, partition: int, next_offset: int) -> None:
        """Say that what lies before an offset need never be read again."""
        self._done[TP(topic, partition)] = next_offset

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterable[TP]:
        return [tp for tp in self._done if topics is None or tp in topics or tp.topic in topics]

    def _new_offset(self, tp: TP) -> int | None:
        return self._done.pop(tp, None)

    def ack(self, message: ConsumerMessage) -> bool:
        """Take note that an event is no longer being worked on; what is committed is said by `done`."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        driver_waiting = self._waiting_for_ack
        if driver_waiting is not None and not driver_waiting.done():
            driver_waiting.set_result(None)
        return True

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Batches name their last offset, so gaps between messages mean nothing."""

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: a full queue of batches blocks the fetch loop by itself, without its second of sleep."""

    # --- reading -----------------------------------------------------------------------------------------------------

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Yield one message a partition. Raises TopicsError where records are missing that were not read."""
        records, _ = await self._wait_next_records(timeout)
        if self._thread.lost is not None:
            raise TopicsError(_lost(self._thread.lost))
        # Read after the wait, which may span a whole rebalance: these records belong to the generation of now.
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            await self._seek_back()
            return
        for tp, (found,) in records.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return  # a rebalance began: its own seek comes when it ends
            yield tp, self._message(tp, found)

    def _message(self, tp: TP, found: Batches) -> ConsumerMessage:
        return ConsumerMessage(
            topic=tp.topic,
            partition=tp.partition,
            offset=found.next_offset - 1,
            timestamp=0.0,  # each record has its own
            timestamp_type=0,
            headers=None,
            key=None,
            value=RecordBatch(tp.topic, tp.partition, found),
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    def fetch_in_bulk(self, in_bulk: bool) -> None:
        """Let fetches wait for more from now on, or for no more than ever: less work, but shown later."""
        self._thread.in_bulk = in_bulk

    async def _seek_back(self) -> None:
        """Return to the committed offsets: what was just fetched while the flow was stopped would be lost."""
        try:
            await self.perform_seek()
        except driver.IllegalStateError as error:
            self.log.debug("no seek during a rebalance: %s", error)

    # --- losing partitions -------------------------------------------------------------------------------------------

    async def wait_empty(self) -> None:
        """Let agents finish and commit, unless the worker crashed: it leaves what was not committed to be read again.

        The thread ends by itself then, and cancels who asks it to commit: he would end without having left the group.
        """
        if not self.app.crashed:
            await super().wait_empty()

    async def drain(self) -> None:
        """Stop the flow, let agents finish what they are applying, and commit it."""
        self.app.tables.give_up()
        self.stop_flow()
        self.app.flow_control.suspend()
        self.app.flow_control.clear()
        await self.wait_empty()
        if self.before_revoke is not None:
            await self.before_revoke()
        await self.commit()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Give a recovery up, commit what was applied, then let Faust forget it."""
        self.app.tables.give_up()
        if self.assignment() and not self.app.should_stop:
            try:
                await self.drain()
            except Exception as error:  # whatever it was, the worker must not go on as if it had committed
                await self.crash(error)
                raise
        self._done.clear()
        await super().on_partitions_revoked(revoked)

    def pause(self, topic: str, partition: int) -> None:
        """Fetch no more of a partition until `resume`."""
        self.pause_partitions({TP(topic, partition)})

    def resume(self, topic: str, partition: int) -> None:
        """Fetch a partition again, if it was paused."""
        tp = TP(topic, partition)
        if tp in self._paused_partitions and self.flow_active:
            self.resume_partitions({tp})

    # --- what metrics read -------------------------------------------------------------------------------------------

    def committed(self, topic: str, partition: int) -> int:
        """Return the offset that is committed, 0 if none is."""
        return self._committed_offset.get(TP(topic, partition)) or 0

    def end_offset(self, topic: str, partition: int) -> int | None:
        """Return the end of a partition as the last fetch reported it, or None before the first."""
        tp, consumer = TP(topic, partition), self._thread._consumer
        # Faust would copy the whole assignment to tell that: 4 % of a worker that is not busy.
        return consumer.highwater(tp) if consumer._subscription.is_assigned(tp) else None

    async def extents(self, places: Iterable[TP]) -> Mapping[TP, Extent]:
        """Return where topic partitions begin and what is committed of them."""
        return await self._thread.call_thread(self._thread.extents, list(places))

    async def confirm(self) -> None:
        """Wait until the group has answered a heartbeat, sent from now on, as one of a member of this generation."""
        thread = self._thread
        while not await thread.call_thread(thread.is_member, self.app.consumer_generation_id):
            await asyncio.sleep(_ASK_AGAIN_S)

    def heard_at(self) -> float:
        """Return when the newest heartbeat was sent that the group answered as one of this member."""
        return self._thread.heard_at

    def generation(self) -> int:
        """Return the generation of the group that this worker is a member of, -1 while it is none."""
        return self._thread._consumer._coordinator.generation

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Let Faust go on; to be assigned is as good as a heartbeat."""
        self._thread.heard_at = monotonic()
        await super().on_partitions_assigned(assigned, generation_id)


def _lost(lost: Lost) -> str:
    return (
        f"{lost.place.topic}/{lost.place.partition} was read up to offset {lost.offset}, and Kafka has nothing there: "
        "retention deleted what was not counted yet, or the topic was created anew. Nothing is skipped: start the "
        "worker again, it says which of them it is and what can be done"
    )


class LeaseError(KafkaError):
    """Partitions that this worker may own no longer: it was paused, or cut off, for longer than the group waits.

    An error of Kafka, so that aiokafka fails the deliveries with it and does not try them again.
    """

    def __str__(self) -> str:
        return str(self.args[0])


class Producer(driver.Producer):
    """Keeps every delivery that is not confirmed yet; a failed one is never forgotten.

    It sends nothing while it is not known whether this worker still is what it was when the records were made: after a
    pause, the group is asked first. What an old owner writes is void anyway (core/journal), but for what others read.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unconfirmed: set[asyncio.Future[Any]] = set()

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        """Return a producer whose records do not expire: a broker that is gone may come back."""
        producer = super()._new_producer(transactional_id)
        producer._request_timeout_ms = _FOREVER_S * 1000
        producer._message_accumulator._batch_ttl = _FOREVER_S
        return producer

    async def on_start(self) -> None:
        """Start, and look at the lease before each request that writes."""
        await super().on_start()
        client = self._producer.client
        back_off(client)
        send = client.send

        async def send_with_lease(node: int, request: Any, **kwargs: Any) -> Any:
            if isinstance(request, ProduceRequest):
                await self._lease()
            return await send(node, request, **kwargs)

        client.send = send_with_lease

    async def _lease(self) -> None:
        """Wait until a heartbeat is younger than the session timeout. Raises LeaseError if the group has gone on."""
        app, consumer = self.app, self.app.consumer
        generation = app.consumer_generation_id
        while NOT_YET < consumer.heard_at() < monotonic() - app.conf.broker_session_timeout:
            if consumer.generation() != generation:
                raise LeaseError(
                    "this worker was paused or cut off for longer than STREAMS_SESSION_TIMEOUT, and others may own its "
                    "partitions: start it again"
                )
            await asyncio.sleep(_LEASE_TICK_S)

    async def send(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Hand a record to the producer; `flush` says whether it arrived."""
        delivery: Any = await super().send(*args, **kwargs)
        self._follow(delivery)
        return delivery

    async def send_all(self, topic: str, partition: int, records: Iterable[Keyed]) -> None:
        """Hand records of a partition over in whole batches: 1 us each, where one by one it is 11."""
        producer = self._ensure_producer()
        batch = producer.create_batch()
        for key, value in records:
            if batch.append(timestamp=None, key=key, value=value) is None:
                self._follow(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(timestamp=None, key=key, value=value)
        self._follow(await producer.send_batch(batch, topic, partition=partition))

    def _follow(self, delivery: "asyncio.Future[Any]") -> None:
        self._unconfirmed.add(delivery)
        delivery.add_done_callback(self._confirm)

    def _confirm(self, delivery: "asyncio.Future[Any]") -> None:
        if not delivery.cancelled() and delivery.exception() is None:
            self._unconfirmed.discard(delivery)

    async def flush(self) -> None:
        """Wait until every record is delivered. Raises what the broker said of one that was not."""
        await self.buffer.flush()
        unconfirmed = set(self._unconfirmed)
        if unconfirmed:
            await asyncio.wait(unconfirmed)  # unlike gather, it cancels no delivery when it is cancelled itself
        for delivery in unconfirmed:
            delivery.result()


class Transport(driver.Transport):
    """What `impressions://host:port` stands for."""

    Consumer = Consumer
    Producer = Producer
