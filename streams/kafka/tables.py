"""Faust tables that are written by whole records of bytes, and recovered by whole batches.

What is overridden here, and why:

- `PartitionTable` takes the partition from the key, so that it can be written outside of an agent. It keeps no copy.
- `Tables` reads the changelogs by itself, in no group, whenever partitions are assigned. Stock Faust's recovery applies
  an event at a time; and where a rebalance begins while it is under way, it can end without having read, go on with
  keys of which Kafka never heard, or never end.

Law: what a recovery gives is what Kafka holds of the partitions that are assigned, and nothing else.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from time import monotonic
from typing import Any, Final

import faust
from aiokafka.errors import KafkaError
from faust.tables.manager import TableManager
from faust.types import TP

from streams.kafka.connection import Broker
from streams.kafka.memory import give_back_memory
from streams.kafka.reader import Reader
from streams.kafka.topics import TopicsError
from streams.kafka.transport import Consumer, Extent, Keyed, Producer
from streams.wire.records import Headers

PARTITION_BYTES: Final = 4
"""Length of the partition number, big-endian, that opens every key of a `PartitionTable`."""

_AGAIN_S: Final = 1.0


class Outbox:
    """Records that one stage has to send: gathered without waiting, delivered by `flush`."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._placed: dict[tuple[str, int], list[Keyed]] = {}
        """Topic and partition -> its records."""
        self._others: list[tuple[str, bytes, bytes | None, Headers | None]] = []
        """Those that Kafka's default partitioner places by the key."""

    def send(self, topic: str, key: bytes, value: bytes | None, *, partition: int) -> None:
        """Put a record of a partition in the box."""
        self._placed.setdefault((topic, partition), []).append((key, value))

    def send_by_key(self, topic: str, key: bytes, value: bytes | None, headers: Headers | None) -> None:
        """Put a record in the box, for the partition that Kafka's default partitioner chooses by its key."""
        self._others.append((topic, key, value, headers))

    def clear(self) -> None:
        """Forget what is in the box."""
        self._placed, self._others = {}, []

    async def flush(self) -> None:
        """Send what is in the box and wait until it is delivered. Raises if anything was not."""
        placed, others = self._placed, self._others
        self.clear()
        producer: Producer = self._app.producer
        for (topic, partition), records in placed.items():
            await producer.send_all(topic, partition, records)
        for topic, key, value, headers in others:
            await producer.send(topic, key, value, None, None, headers)
        await producer.flush()


class PartitionTable(faust.Table):
    """A Faust table of bytes whose keys open with the number of the partition that they belong to.

    It holds its content from a recovery until that is taken, and no copy of what is written: its stage does that.
    """

    outbox: Outbox

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Put the record of a change into the outbox."""
        self._send(key, value)

    def __delitem__(self, key: bytes) -> None:
        """Put a tombstone into the outbox."""
        self._send(key, None)

    def _send(self, key: bytes, value: bytes | None) -> None:
        partition = int.from_bytes(key[:PARTITION_BYTES], "big")
        self.outbox.send(self.changelog_topic_name, key, value, partition=partition)

    def recovered(self, content: dict[bytes, bytes]) -> None:
        """Hold what was recovered, and nothing else."""
        self.data.data = content

    def take(self) -> dict[bytes, bytes]:
        """Return, once, what was recovered."""
        content: dict[bytes, bytes] = self.data.data
        self.data.data = {}
        return content


class Tables(TableManager):
    """The tables of a worker.

    An assignment starts a recovery, and the end of that starts the flow. `give_up` ends one that is under way; what it
    wrote of a claim by then is as harmless as what a worker wrote that died then.
    """

    broker: Broker
    """Where the changelogs lie."""

    begin: Callable[[set[TP]], None]
    """Called with what is assigned; raises why that cannot be taken over."""

    take_over: Callable[[int], None]
    """Called with each partition number when the tables hold what Kafka holds of it."""

    claim: Callable[[Mapping[TP, Extent]], Awaitable[None]]
    """Called when all are taken over, with the extents of what is assigned."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recovering: asyncio.Future[Any] | None = None
        self.recovery_seconds: float | None = None
        """How long the last recovery took, from the assignment to the claim; None before the first."""

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Start a recovery of all that is assigned. It goes on when this rebalance has long ended."""
        self.give_up()
        self._recovering = self.add_future(self._recover(assigned, monotonic()))

    def give_up(self) -> None:
        """End a recovery that is under way, if there is one: its partitions are going."""
        self.actives_ready = False
        if self._recovering is not None:
            self._recovering.cancel()
            self._recovering = None

    async def wait_until_recovery_completed(self) -> bool:
        """Wait for nothing: a worker that recovers is up, and says that it is not ready."""
        return False

    async def _update_channels(self) -> None:
        """Let nobody read the changelogs but a recovery: they are no part of the subscription."""
        self._tables_finalized.set()
        for table in self.values():
            await table.maybe_start()
        self._tables_registered.set()

    async def _recover(self, assigned: set[TP], since: float) -> None:
        app: Any = self.app
        consumer: Consumer = app.consumer
        consumer.stop_flow()
        self.begin(assigned)
        await app.producer.flush()  # what this worker itself has sent is to be read too
        # Asked for before any journal is read, so that none can be behind what is committed, not even that of a worker
        # that is no longer the owner.
        extents = await self._extents(assigned)
        async with aclosing(self._contents({tp.partition for tp in assigned})) as found:
            async for number, contents in found:
                _end_if_given_up()
                for topic, content in contents.items():
                    self._changelogs[topic].recovered(content)
                del content, contents  # as large as the state that it gives: it goes when that is there
                self.take_over(number)
        _end_if_given_up()
        give_back_memory()
        await self.claim(extents)
        self.recovery_seconds = monotonic() - since
        consumer.resume_partitions(assigned)
        if assigned:
            await consumer.perform_seek()
        await app._fetcher.maybe_start()
        _end_if_given_up()
        # Nothing is awaited from here on: a rebalance finds either a recovery to give up or a flow to stop.
        app.flow_control.resume()
        consumer.resume_flow()
        self.on_actives_ready()
        self.on_standbys_ready()
        app.on_rebalance_end()

    async def _extents(self, assigned: set[TP]) -> Mapping[TP, Extent]:
        while True:
            try:
                return await self.app.consumer.extents(assigned)
            except KafkaError as error:
                await self._wait(error)

    async def _contents(self, numbers: Iterable[int]) -> AsyncGenerator[tuple[int, dict[str, dict[bytes, bytes]]]]:
        """Yield each number with what its partition of each changelog holds, however long the broker is away."""
        left = sorted(numbers, reverse=True)
        while left:
            try:
                async with Reader(self.broker, "", tuple(self._changelogs)) as reader:
                    while left:
                        yield left[-1], await _content(reader, left[-1], self._changelogs)
                        left.pop()
            except (KafkaError, TopicsError) as error:
                await self._wait(error)

    async def _wait(self, error: Exception) -> None:
        self.log.warning("State cannot be recovered yet: %r", error)
        await asyncio.sleep(_AGAIN_S)


def _end_if_given_up() -> None:
    """Raise CancelledError if this task was cancelled: a client of aiokafka that is being closed swallows that.

    What went on would claim, beside the next recovery, partitions that others own by then.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _content(reader: Reader, number: int, topics: Iterable[str]) -> dict[str, dict[bytes, bytes]]:
    contents: dict[str, dict[bytes, bytes]] = {topic: {} for topic in topics}
    async for topic, _, records in reader.records({number}):
        _apply(records, contents[topic])
    return contents


def _apply(records: Iterable[Any], content: dict[bytes, bytes]) -> None:
    for record in records:
        if record.value is None:
            content.pop(record.key, None)
        else:
            content[record.key] = record.value
