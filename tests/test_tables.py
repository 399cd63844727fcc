"""Tables and their recovery: what Kafka holds of what is assigned, and nothing else; and how one is given up."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from streams.core.events import RENDERS
from streams.kafka import tables as module
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.reader import Reader
from streams.kafka.tables import Tables
from streams.kafka.topics import NoBrokerError
from streams.kafka.transport import Extent
from tests.conftest import create_topics
from tests.test_transport import PARTITIONS, record, worker


def key(partition: int, name: bytes) -> bytes:
    return partition.to_bytes(4, "big") + name


async def test_a_change_of_the_table_goes_to_the_partition_that_its_key_names() -> None:
    table = worker().qualify.journal
    table[key(1, b"a")] = b"value"
    del table[key(1, b"a")]
    name = table.changelog_topic_name
    assert table.outbox._placed == {(name, 1): [(key(1, b"a"), b"value"), (key(1, b"a"), None)]}


async def test_a_recovery_reads_what_kafka_holds_of_the_partitions_that_are_assigned(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, PARTITIONS)
    made = worker(topic_prefix, broker.bootstrap)
    journal, campaigns = made.qualify.journal, made.rollup.table
    await made._app.producer.start()
    try:
        for number in range(PARTITIONS):
            for name in (b"deleted", b"kept"):
                journal[key(number, name)] = b"old"
            journal[key(number, b"kept")] = b"new"
            del journal[key(number, b"deleted")]
        campaigns[key(1, b"row")] = b"value"
        await journal.outbox.flush()
        await campaigns.outbox.flush()
        contents = {number: content async for number, content in made._tables._contents({0, 1})}
    finally:
        await made._app.producer.stop()
    assert contents == {
        0: {journal.changelog_topic_name: {key(0, b"kept"): b"new"}, campaigns.changelog_topic_name: {}},
        1: {
            journal.changelog_topic_name: {key(1, b"kept"): b"new"},
            campaigns.changelog_topic_name: {key(1, b"row"): b"value"},
        },
    }


@pytest.mark.parametrize("at", ["start", "end_offsets"])
async def test_a_reader_that_is_given_up_while_it_starts_leaves_no_client_open(
    at: str, broker: EmbeddedBroker, topic_prefix: str, monkeypatch: Any
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, PARTITIONS)
    reached = asyncio.Event()

    async def never(*_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(AIOKafkaConsumer, at, never)
    reader = Reader(broker.bootstrap, topic_prefix)
    starting = asyncio.create_task(reader.__aenter__())
    await reached.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert reader._consumer._closed


class Recovering:
    """The tables of a worker in a recovery; where Kafka answers is up to the test."""

    def __init__(self) -> None:
        self.worker = worker()
        self.tables: Tables = self.worker._tables
        self.answers = asyncio.Event()
        self.taken: list[int] = []
        self.claims: list[list[int]] = []
        self.found: dict[str, dict[bytes, bytes]] = {name: {} for name in self.tables.changelog_topics}
        self.tables._extents = self._extents  # type: ignore[method-assign]
        self.tables._contents = self._contents  # type: ignore[method-assign]
        self.tables.take_over = self.taken.append
        self.tables.claim = self._claim
        self.worker._consumer.assignment = set
        self.worker._consumer.perform_seek = self._nothing
        self.worker._app._fetcher.maybe_start = self._nothing

    async def _extents(self, assigned: set[TP]) -> Mapping[TP, Extent]:
        return {}

    async def _contents(self, numbers: Iterable[int]) -> AsyncIterator[tuple[int, dict[str, dict[bytes, bytes]]]]:
        for number in sorted(numbers):
            await self.answers.wait()
            yield number, self.found

    async def _claim(self, extents: Mapping[TP, Extent]) -> None:
        self.claims.append(list(self.taken))

    async def _nothing(self) -> None:
        pass

    async def assign(self, *numbers: int) -> None:
        await self.tables.on_rebalance({TP(RENDERS, number) for number in numbers}, set(), set())
        await asyncio.sleep(0.01)

    async def answer(self) -> None:
        self.answers.set()
        await asyncio.sleep(0.01)


async def test_a_recovery_claims_what_is_assigned_and_then_lets_records_flow() -> None:
    recovering = Recovering()
    await recovering.assign(0, 1)
    assert (recovering.worker.ready, recovering.worker._consumer.flow_active) == (False, False)
    await recovering.answer()
    assert recovering.claims == [[0, 1]]
    assert (recovering.worker.ready, recovering.worker._consumer.flow_active) == (True, True)


async def test_nothing_that_was_held_before_and_is_not_in_kafka_is_held_after_a_recovery() -> None:
    recovering = Recovering()
    journal = recovering.worker.qualify.journal
    journal.recovered({key(0, b"of a claim that was never delivered"): b"x"})
    recovering.found[journal.changelog_topic_name] = {key(0, b"a"): b"1"}
    await recovering.assign(0)
    await recovering.answer()
    assert journal.take() == {key(0, b"a"): b"1"}
    assert not journal.outbox._placed, "what is recovered is not written again"


async def test_a_recovery_that_is_given_up_claims_nothing_and_lets_nothing_flow() -> None:
    recovering = Recovering()
    await recovering.assign(0)
    recovering.tables.give_up()
    await recovering.answer()
    assert recovering.claims == []
    assert (recovering.worker.ready, recovering.worker._consumer.flow_active) == (False, False)


@pytest.mark.parametrize("assigned", [[0], [0, 1]], ids=["at the end of reading", "while reading"])
async def test_a_recovery_that_is_given_up_ends_also_where_a_library_swallows_that(assigned: list[int]) -> None:
    """So aiokafka's clients do while they are closed: what went on would claim what others own by then."""
    recovering = Recovering()

    async def closing(numbers: Iterable[int]) -> AsyncIterator[tuple[int, dict[str, dict[bytes, bytes]]]]:
        for number in sorted(numbers):
            yield number, recovering.found
            with suppress(asyncio.CancelledError):
                await recovering.answers.wait()

    recovering.tables._contents = closing  # type: ignore[method-assign]
    await recovering.assign(*assigned)
    assert recovering.taken == [0]
    recovering.tables.give_up()
    await recovering.answer()
    assert (recovering.taken, recovering.claims) == ([0], [])
    assert (recovering.worker.ready, recovering.worker._consumer.flow_active) == (False, False)


async def test_a_recovery_that_is_given_up_while_it_claims_lets_nothing_flow_also_where_that_is_swallowed() -> None:
    recovering, claiming = Recovering(), asyncio.Event()

    async def claim(extents: Mapping[TP, Extent]) -> None:
        claiming.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    recovering.tables.claim = claim
    await recovering.assign(0)
    recovering.answers.set()
    await claiming.wait()
    recovering.tables.give_up()
    await asyncio.sleep(0.01)
    assert (recovering.worker.ready, recovering.worker._consumer.flow_active) == (False, False)


async def test_an_assignment_replaces_the_recovery_of_the_one_before_it() -> None:
    recovering = Recovering()
    await recovering.assign(0)
    await recovering.assign(1)
    await recovering.answer()
    assert recovering.claims == [[1]]


async def test_partitions_that_are_revoked_give_the_recovery_up() -> None:
    recovering = Recovering()
    await recovering.assign(0)
    await recovering.worker._consumer.on_partitions_revoked({TP(RENDERS, 0)})
    await recovering.answer()
    assert (recovering.claims, recovering.worker.ready) == ([], False)


async def test_a_worker_that_stops_gives_the_recovery_up() -> None:
    recovering = Recovering()
    await recovering.assign(0)
    await recovering.worker._consumer.drain()
    await recovering.answer()
    assert (recovering.claims, recovering.worker.ready) == ([], False)


async def test_what_of_a_claim_was_not_sent_when_a_recovery_was_given_up_is_never_sent() -> None:
    recovering = Recovering()
    journal = recovering.worker.qualify.journal
    journal[key(0, b"claim of the last generation")] = b"x"
    await recovering.assign(0)
    assert not journal.outbox._placed


async def test_a_recovery_tries_again_where_it_was_until_the_broker_answers(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0)
    made, read = worker(), list[int]()

    class Broken:
        """A reader that loses its broker at every second look."""

        def __init__(self, *_: Any) -> None:
            pass

        async def __aenter__(self) -> "Broken":
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def records(self, numbers: set[int]) -> AsyncIterator[tuple[str, int, list[Any]]]:
            (number,) = numbers
            read.append(number)
            if len(read) % 2:
                raise NoBrokerError("gone")
            for name in made._tables.changelog_topics:
                yield name, number, [record(name, number, 0, key=b"k", value=b"%d" % number)]

    monkeypatch.setattr(module, "Reader", Broken)
    found = {number: content async for number, content in made._tables._contents({0, 1, 2})}
    assert found == {n: {name: {b"k": b"%d" % n} for name in made._tables.changelog_topics} for n in range(3)}
    assert read == [0, 0, 1, 1, 2, 2]


async def test_extents_are_asked_for_until_the_broker_answers(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0)
    made, asked = worker(), list[set[TP]]()

    async def extents(places: set[TP]) -> Mapping[TP, Extent]:
        asked.append(places)
        if len(asked) < 3:
            raise KafkaConnectionError("gone")
        return {TP(RENDERS, 0): Extent(5, 7)}

    made._consumer.extents = extents  # type: ignore[method-assign]
    assert await made._tables._extents({TP(RENDERS, 0)}) == {TP(RENDERS, 0): Extent(5, 7)}


async def test_an_error_in_a_claim_ends_the_worker() -> None:
    recovering = Recovering()

    async def refuse(*_: Any) -> None:
        raise RuntimeError("no")

    recovering.tables.claim = refuse
    await recovering.assign(0)
    await recovering.answer()
    assert str(recovering.tables.crash_reason) == "no"
    assert not recovering.worker.ready


async def test_partitions_that_were_added_while_a_worker_runs_end_it_before_anything_is_read() -> None:
    recovering = Recovering()
    await recovering.assign(0, PARTITIONS)
    await recovering.answer()
    assert f"{PARTITIONS} partitions, and now there are {PARTITIONS + 1}" in str(recovering.tables.crash_reason)
    assert recovering.claims == []
