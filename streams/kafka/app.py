"""The worker: a Faust app with its two stages, from the claim of partitions to the last commit.

    assigned -> the tables are recovered -> claim: both stages fold them -> flow -> commits on two intervals
    revoked  -> flow stops, what was applied is committed -> release

Whatever goes wrong in an agent or a commit ends the worker, before any offset is committed over it.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from time import monotonic, thread_time
from typing import Any, Final

import faust
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from faust.types import TP
from mode import CrashingSupervisor

from streams.core.campaigns import Campaigns
from streams.core.events import TOPICS
from streams.kafka.connection import Connection
from streams.kafka.journal import JournalError
from streams.kafka.memory import SIZES, give_back_memory, put_in_order
from streams.kafka.qualify import Qualify, partitions_changed
from streams.kafka.rollup import RollupStage
from streams.kafka.tables import Outbox, PartitionTable, Tables
from streams.kafka.topics import CAMPAIGNS, JOURNAL, PARTIALS
from streams.kafka.transport import PARTITION_BYTES, BatchSchema, Consumer
from streams.settings import Settings

ROLLUP_COMMIT_S: Final = 1.0
"""Rows of campaigns are written this often: partials repeat them until then."""
PAUSE: Final = 10
"""To gather a commit holds up all else, so a pause of so many times that follows: with 10,000 campaigns, what is told
of each would else be most of the work. So it is with all of a commit of the rollup's, which no gauge waits for."""
LONGEST_PAUSE_S: Final = 3.0
PLENTY: Final = 4_000
"""A worker that is up to date shows so many events in half of the interval: a commit of fewer would cost a recovery as
much to read, and of one that catches up nobody waits for the gauges."""
BUSY: Final = 0.75
"""Which share of its time a worker counts that has none left for more commits, nor for fetches of few records: what
one takes is nearly the same, however many events are in it."""
ADVANCE_S: Final = 0.1
PROBE_S: Final = 1.0
REACHABLE_FOR_S: Final = 5.0
CURRENT_FOR_S: Final = 10.0
"""Up to date: every input partition was read to its end at some moment in this long."""
GIVE_BACK_S: Final = 10.0
"""It takes 60 ms of a thread where half a gigabyte is resident, and less would let it grow when catching up."""
ORDER_S: Final = 0.05
MANY: Final = 30_000
"""Memory is put in order a size each so many events, and not more often than that: it takes a thirtieth of what they
take, and they take a tenth less."""
STOP_S: Final = 8.0
_QUEUED_BATCHES: Final = 16
"""Each is what was fetched of a partition, up to PARTITION_BYTES. So many wait for a stage: with more, nothing is taken
from who fetches. With fewer, partials would wait that come behind one of each topic partition."""


class _App(faust.App):
    def _create_directories(self) -> None:
        """Make none: state is in memory and in Kafka."""


def _faust_app(settings: Settings, connection: Connection, partitions: int) -> Any:
    return _App(
        settings.topic(settings.group),
        broker=[f"impressions://{address}" for address in connection.address.split(",")],
        broker_credentials=connection.credentials,
        store="memory://",
        Table=PartitionTable,
        TableManager=Tables,
        processing_guarantee="at_least_once",
        topic_partitions=partitions,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=True,
        stream_buffer_maxsize=_QUEUED_BATCHES,  # what a topic is told of it is lost
        stream_publish_on_commit=False,
        broker_commit_interval=1.0,
        broker_session_timeout=settings.session_timeout / 1000,
        broker_heartbeat_interval=settings.session_timeout / 6000,
        broker_request_timeout=60.0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=PARTITION_BYTES,
        producer_acks=-1,
        producer_linger=0,
        producer_request_timeout=60.0,
        producer_max_request_size=32 << 20,
        producer_max_batch_size=512 << 10,  # of 16 kB each, a commit of many rows waits for the broker time and again
        web_enabled=False,
        web_tables_enabled=False,
        web_router_enabled=False,
        worker_redirect_stdouts=False,
    )


def _pause_s(interval_s: float, took_s: float, work_s: float) -> float:
    """Return how long to wait for the next commit, in seconds: to its interval, or longer after one of much work."""
    return max(interval_s - took_s, min(PAUSE * work_s, LONGEST_PAUSE_S))


class StopError(Exception):
    """Tasks of this worker do not end, as they wait for a broker that does not answer: the process should end now.

    Nothing is lost: what was not committed will be read again.
    """


class Worker:
    """One worker process's part of the group. Build it inside a running event loop.

    `on_commit` is told how long each commit of stage 1 took, in seconds. With `accept_settings`, rules may differ from
    those that the journal was written under; with `accept_loss`, inputs may have lost what was not counted yet.
    """

    def __init__(
        self,
        settings: Settings,
        campaigns: Campaigns,
        partitions: int,
        on_commit: Callable[[float], None],
        accept_settings: bool = False,
        accept_loss: bool = False,
    ) -> None:
        self._settings = settings
        self._on_commit = on_commit
        connection = Connection.of(settings)
        self._app = _faust_app(settings, connection, partitions)
        self._consumer: Consumer = self._app.consumer
        self._consumer.before_revoke = self._drain_stages
        self._consumer.accepts_loss = accept_loss
        self.qualify = Qualify(
            settings.rules,
            settings.topic_prefix,
            settings.idle / 1000,
            partitions,
            self._table(JOURNAL, partitions),
            self._consumer,
            campaigns,
            settings.segments,
            accept_settings,
            accept_loss,
            settings.max_remembered,
        )
        self.rollup = RollupStage(
            settings.windows_ms,
            campaigns,
            settings.campaign_ttl,
            settings.topic_prefix,
            self._table(CAMPAIGNS, partitions),
            self._consumer,
        )
        self.qualify.newest_elsewhere = self.rollup.newest
        self._add_agents()
        self._tables: Tables = self._app.tables
        self._tables.broker = connection
        self._tables.begin = self._begin
        self._tables.take_over = self._take_over
        self._tables.claim = self.qualify.claim
        self._reached_at = monotonic()  # it has just said how many partitions there are

    def _table(self, name: str, partitions: int) -> PartitionTable:
        table: PartitionTable = self._app.Table(name, partitions=partitions, key_type=bytes, value_type=bytes)
        table.outbox = Outbox(self._app)
        return table

    def _add_agents(self) -> None:
        inputs = [self._settings.topic(name) for name in TOPICS]
        self._agent("qualify", inputs, self.qualify.run)
        self._agent("rollup", [self._settings.topic(PARTIALS)], self.rollup.run)

    def _agent(self, name: str, topics: list[str], run: Callable[[Any], Any]) -> None:
        async def agent(stream: Any) -> None:
            await run(stream.noack().events())

        self._app.agent(
            self._app.topic(*topics, schema=BatchSchema()),
            name=name,
            concurrency=1,
            supervisor_strategy=CrashingSupervisor,
        )(agent)

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop, then commit and leave the group.

        Raises what made the worker crash, or StopError if it cannot even stop in order.
        """
        self._app.finalize()
        await self._app.start()
        memory = (self._give_back, self._keep_in_order)
        for task in (self._advance_qualify, self._commit_qualify, self._commit_rollup, self._probe, *memory):
            self._app.add_future(task())
        await self._app.wait_for_stopped(stop.wait())
        stopping = asyncio.create_task(self._stop())
        await asyncio.wait({stopping}, timeout=STOP_S)
        crash = self._app.crash_reason or RuntimeError("the worker crashed without a reason")
        if not stopping.done():
            raise StopError(crash if self._app.crashed else f"not all could be committed in {STOP_S:g} s")
        if self._app.crashed:
            raise crash
        await stopping

    async def _stop(self) -> None:
        try:
            if not self._app.crashed:
                await self._consumer.drain()
        finally:
            await self._app.stop()

    async def _give_back(self) -> None:
        """Return freed memory to the system now and then, beside the loop: what is resident would grow for hours."""
        while not self._app.should_stop:
            await self._app.sleep(GIVE_BACK_S)
            await asyncio.to_thread(give_back_memory)

    async def _keep_in_order(self) -> None:
        """Put one size of free memory in order after the other, while events are counted."""
        sizes, done = cycle(SIZES), 0
        while not self._app.should_stop:
            await self._app.sleep(ORDER_S)
            if self.qualify.applied - done >= MANY:
                done = self.qualify.applied
                put_in_order(next(sizes))

    async def _advance_qualify(self) -> None:
        while not self._app.should_stop:
            await self.qualify.advance()
            await self._app.sleep(ADVANCE_S)

    async def _commit_qualify(self) -> None:
        busy = 0.0
        while not self._app.should_stop:
            started, used = monotonic(), thread_time()
            if self.ready:
                if await self.qualify.commit():
                    self._on_commit(monotonic() - started)
            await self._app.sleep(_pause_s(self._interval_s(busy), monotonic() - started, self.qualify.gathering_s))
            busy = (thread_time() - used) / (monotonic() - started)
            self._consumer.fetch_in_bulk(busy >= BUSY)

    def _interval_s(self, busy: float) -> float:
        """Return how far apart commits are; `busy` is which share of the time since the last one this thread had."""
        interval_s = self._settings.commit_interval / 1000
        has_time = self.qualify.gathered >= PLENTY and busy < BUSY and self.up_to_date()
        return interval_s / 2 if has_time else interval_s

    async def _commit_rollup(self) -> None:
        while not self._app.should_stop:
            started = monotonic()
            if self.ready:
                await self.rollup.commit()
            took = monotonic() - started
            await self._app.sleep(_pause_s(ROLLUP_COMMIT_S, took, took))

    async def _probe(self) -> None:
        """Ask the broker for the metadata of no topic now and then: /readyz wants to know whether it answers."""
        client = self._app.producer._producer.client
        while not self._app.should_stop:
            with suppress(KafkaError):
                await client.send(client.get_random_node(), MetadataRequest([]))
                self._reached_at = monotonic()
            await self._app.sleep(PROBE_S)

    def change_campaigns(self, campaigns: Campaigns) -> list[str]:
        """Let another file of campaigns hold from now on; see `Qualify.change_campaigns`."""
        rewritten = self.qualify.change_campaigns(campaigns)
        if not rewritten:
            self.rollup.change_campaigns(campaigns)
        return rewritten

    # --- partitions --------------------------------------------------------------------------------------------------

    def _begin(self, assigned: set[TP]) -> None:
        """Refuse partitions that were not there when this worker started. Raises JournalError."""
        before, now = self.qualify.partitions, max((tp.partition + 1 for tp in assigned), default=0)
        if now > before:
            raise JournalError(partitions_changed(before, now))
        self._release()

    def _take_over(self, number: int) -> None:
        """Both stages own the same numbers: Faust assigns those together to one worker."""
        self.rollup.take_over(number, self._app.consumer_generation_id)
        self.qualify.take_over(number, self._app.consumer_generation_id)

    async def _drain_stages(self) -> None:
        await self.qualify.drain()
        await self.rollup.commit()
        self._release()

    def _release(self) -> None:
        self.qualify.release()
        self.rollup.release()

    # --- how it is doing ---------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether partitions are assigned, recovered and being read."""
        return self._tables.actives_ready

    @property
    def recovery_seconds(self) -> float | None:
        """How long the last recovery took, from the assignment to the claim; None before the first."""
        return self._tables.recovery_seconds

    def not_ready(self) -> list[str]:
        """Return why no work is being done, a line a reason; empty if it is."""
        reasons = []
        if not self._consumer_started or not self._consumer.assignment():
            reasons.append("no partitions are assigned")
        elif not self.ready:
            reasons.append("state is being recovered")
        elif self.qualify.is_full():
            reasons.append(
                f"as much is remembered as STREAMS_MAX_REMEMBERED={self.qualify.max_remembered} allows, and input is "
                "paused: raise it, or start more workers"
            )
        if monotonic() - self._reached_at > REACHABLE_FOR_S:
            reasons.append("the broker does not answer")
        return reasons

    @property
    def _consumer_started(self) -> bool:
        return self._consumer._thread._consumer is not None

    def lag(self) -> dict[tuple[str, int], int]:
        """Return how many records each owned topic partition (name without prefix) has that are not applied.

        A partition is left out until the first fetch has told where it ends.
        """
        owned = self.qualify.owned.values()
        lags = {(topic, one.number): self.qualify.lag(topic, one) for one in owned for topic in TOPICS}
        lags |= {(PARTIALS, number): self.rollup.lag(number) for number in self.rollup.owned}
        return {place: lag for place, lag in lags.items() if lag is not None}

    def quiet_ms(self) -> int:
        """Return for how long no figure has changed while there is nothing to read; 0 while there is."""
        return 0 if any(self.lag().values()) else int((monotonic() - self.rollup.advanced_at) * 1000)

    def up_to_date(self) -> bool:
        """Say whether every owned input partition was read to its end lately."""
        limit = monotonic() - CURRENT_FOR_S
        return self.ready and all(at > limit for owned in self.qualify.owned.values() for at in owned.ended_at.values())
