"""The two stages of several workers on a broker of dicts, in one thread, with everything that can go wrong, by a seed.

Each worker is a coroutine that is stopped at every record that it delivers. A die says who goes on: so workers die
between any two writes, sleep through rebalances, wake up as owners of what is no longer theirs, and write on. The
stages, the core and all bytes are the real ones; only Kafka and the clock are not. In the end everybody's numbers must
be the oracle's.

`STREAMS_TEST_SEED=7` runs one seed, `STREAMS_TEST_SEEDS=100000` as many.
"""

import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from streams.core.campaigns import Campaigns
from streams.core.panes import Cell, Series
from streams.core.rules import DAY
from streams.kafka.fetch import Batches
from streams.kafka.qualify import Qualify
from streams.kafka.rollup import RollupStage
from streams.kafka.topics import CAMPAIGNS, JOURNAL, PARTIALS
from streams.kafka.transport import Extent, RecordBatch
from tests import oracle
from tests.logs import RULES, TOPICS, Counting, encoded, outcomes, seeded_logs
from tests.oracle import Logs

SEEDS = int(os.environ.get("STREAMS_TEST_SEEDS", "1000"))
ONLY = os.environ.get("STREAMS_TEST_SEED")
CHUNKS = 20
"""Tests that the seeds are spread over, so that one that hangs is found."""

WINDOWS_MS = (10_000, 60_000)
TROUBLE = 400
"""Steps in which things go wrong."""

Place = tuple[str, int]


class Broker:
    """Logs, compacted tables, committed offsets, and one consumer group."""

    def __init__(self, logs: list[Logs]) -> None:
        self.partitions = len(logs)
        self.logs: dict[Place, list[Any]] = defaultdict(list)
        for number, given in enumerate(logs):
            for topic in TOPICS:
                self.logs[topic, number] = [record(*one) for one in given[topic]]
        self.tables: dict[Place, dict[bytes, bytes]] = defaultdict(dict)
        self.committed: dict[Place, int] = defaultdict(int)
        self.generation = 0
        self.members: list[Worker] = []

    def append(self, topic: str, partition: int, key: bytes, value: bytes | None) -> None:
        if topic in (JOURNAL, CAMPAIGNS):
            self.tables[topic, partition].pop(key, None)
            if value is not None:
                self.tables[topic, partition][key] = value
        elif topic == PARTIALS:
            log = self.logs[topic, partition]
            log.append(record(len(log), value, None))

    def rebalance(self, members: list["Worker"]) -> None:
        self.generation += 1
        self.members = members

    def assignment(self, worker: "Worker") -> set[int]:
        mine = self.members.index(worker)
        return {number for number in range(self.partitions) if number % len(self.members) == mine}


def record(offset: int, event: Any, appended: int | None) -> Any:
    return SimpleNamespace(offset=offset, value=encoded(event), timestamp=appended, headers=(), key=b"")


def in_kafka(logs: Logs) -> Logs:
    """Kafka knows no times before 1970, and not all offsets need be records."""
    return {
        topic: [(offset + 8 * (offset // 4), event, appended and max(0, appended)) for offset, event, appended in log]
        for topic, log in logs.items()
    }


class Step:
    """An awaitable that stops a worker until the die lets it go on."""

    def __await__(self) -> Iterator[None]:
        yield


class Table:
    """A table with the outbox of its stage: both as `PartitionTable` has them."""

    def __init__(self, name: str, outbox: "Outbox") -> None:
        self.name = name
        self.outbox = outbox
        self.content: dict[bytes, bytes] = {}

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.outbox.send(self.name, key, value, partition=int.from_bytes(key[:4], "big"))

    def __delitem__(self, key: bytes) -> None:
        self.outbox.send(self.name, key, None, partition=int.from_bytes(key[:4], "big"))

    def take(self) -> dict[bytes, bytes]:
        return self.content


class Outbox:
    """Delivers record by record, each partition's in their order, and stops before each."""

    def __init__(self, broker: Broker, random: Random) -> None:
        self.broker = broker
        self.random = random
        self.waiting: dict[Place, list[tuple[bytes, bytes | None]]] = defaultdict(list)

    def clear(self) -> None:
        self.waiting.clear()

    def send(self, topic: str, key: bytes, value: bytes | None, *, partition: int) -> None:
        self.waiting[topic, partition].append((key, value))

    def send_by_key(self, topic: str, key: bytes, value: bytes | None, _: Any) -> None:
        self.send(topic, key, value, partition=0)

    async def flush(self) -> None:
        while self.waiting:
            await Step()
            place = self.random.choice(list(self.waiting))
            self.broker.append(*place, *self.waiting[place].pop(0))
            if not self.waiting[place]:
                del self.waiting[place]
        await Step()


class Revoked(Exception):
    """The partitions that a worker takes over are going already."""


class Flow:
    """What the stages ask of the consumer, and where it stands."""

    def __init__(self, broker: Broker, is_member: Callable[[], bool]) -> None:
        self.broker = broker
        self.is_member = is_member
        self.position: dict[Place, int] = {}
        self.ready: dict[Place, int] = {}
        self.paused: set[Place] = set()
        self.heard = float("-inf")

    def done(self, topic: str, partition: int, next_offset: int) -> None:
        self.ready[topic, partition] = next_offset

    def pause(self, topic: str, partition: int) -> None:
        self.paused.add((topic, partition))

    def resume(self, topic: str, partition: int) -> None:
        self.paused.discard((topic, partition))

    def committed(self, topic: str, partition: int) -> int:
        return self.broker.committed[topic, partition]

    def end_offset(self, topic: str, partition: int) -> int:
        log = self.broker.logs[topic, partition]
        return log[-1].offset + 1 if log else 0

    def heard_at(self) -> float:
        return self.heard

    async def confirm(self) -> None:
        await Step()
        if not self.is_member():
            raise Revoked

    def fetch(self, place: Place, count: int) -> Batches | None:
        """Return the next records of a topic partition, and move on behind them; none of one that is paused."""
        begin = self.position[place]
        records = [one for one in self.broker.logs[place] if one.offset >= begin][:count]
        if place in self.paused or not records:
            return None
        self.position[place] = end = records[-1].offset + 1
        return Batches([records], begin, end)

    def has_read_all(self) -> bool:
        return all(position >= self.end_offset(*place) for place, position in self.position.items())


class Worker:
    """A process with both stages. It hears of a rebalance when it asks, and that may be late."""

    def __init__(self, broker: Broker, counting: Counting, random: Random, clock: Callable[[], float]) -> None:
        self.broker = broker
        self.random = random
        self.clock = clock
        self.generation = 0
        self.is_busy = False
        self.flow = Flow(broker, lambda: self.generation == broker.generation)
        self.tables = [Table(name, Outbox(broker, random)) for name in (JOURNAL, CAMPAIGNS)]
        journal, campaigns = self.tables
        self.qualify = Qualify(counting.rules, "", 0, broker.partitions, journal, self.flow, Campaigns())
        self.rollup = RollupStage(WINDOWS_MS, Campaigns(), 30 * DAY, "", campaigns, self.flow)
        self.life = self._live()

    async def _live(self) -> None:
        while True:
            while self not in self.broker.members:
                await Step()
            self.is_busy = True
            try:
                await self._take_over()
            except Revoked:
                continue
            finally:
                self.is_busy = False
            while self._is_member():
                self.is_busy = True
                await self.random.choice(self.work)(self)
                self.is_busy = False
                await Step()
            if self.random.random() < 0.5:
                await self.qualify.drain()
                await self.rollup.commit()
            self.qualify.release()
            self.rollup.release()

    def _is_member(self) -> bool:
        """Ask now and then; what an owner does not ask, it does not know."""
        if self.random.random() < 0.2:
            if self.generation != self.broker.generation:
                return False
            self.flow.heard = self.clock()
        return True

    async def _take_over(self) -> None:
        self.generation = self.broker.generation
        mine = self.broker.assignment(self)
        self.flow.heard, self.flow.ready, self.flow.paused = self.clock(), {}, set()
        inputs = [TP(topic, number) for number in mine for topic in TOPICS]
        extents = {place: Extent(0, self.broker.committed[place]) for place in inputs}
        self.qualify.release()
        self.rollup.release()
        for number in mine:
            await Step()
            for table in self.tables:
                table.content = dict(self.broker.tables[table.name, number])
            self.rollup.take_over(number, self.generation)
            self.qualify.take_over(number, self.generation)
        await self.qualify.claim(extents)
        places = [(topic, number) for topic in (*TOPICS, PARTIALS) for number in mine]
        self.flow.position = {place: self.broker.committed[place] for place in places}

    async def read(self) -> None:
        if not self.flow.position:
            return
        topic, number = place = self.random.choice(list(self.flow.position))
        if found := self.flow.fetch(place, self.random.randint(1, 9)):
            stage = self.rollup if topic == PARTIALS else self.qualify
            await stage.run(once(RecordBatch(topic, number, found)))

    async def advance(self) -> None:
        await self.qualify.advance()

    async def commit(self) -> None:
        applied = sum(owned.applied for owned in self.qualify.owned.values())
        await self.qualify.commit()
        assert self.qualify.gathered == applied

    async def commit_rollup(self) -> None:
        await self.rollup.commit()

    def commit_offsets(self) -> None:
        """What a task of the consumer does at any time. Kafka takes offsets only of a member of this generation."""
        if self.generation == self.broker.generation:
            self.broker.committed |= self.flow.ready

    work: tuple[Callable[["Worker"], Awaitable[None]], ...] = (
        read, read, read, read, advance, commit, commit_rollup,
    )  # fmt: skip

    def has_told_all(self) -> bool:
        """Whether all that is there is read, applied, told to the second stage, and added up there."""
        return (
            not self.is_busy
            and self.generation == self.broker.generation
            and self.flow.has_read_all()
            and all(self.qualify.lag(topic, owned) == 0 for owned in self.qualify.owned.values() for topic in TOPICS)
            and not any(owned.changed or not owned.claimed for owned in self.qualify.owned.values())
        )


async def once(batch: RecordBatch) -> AsyncIterator[Any]:
    yield SimpleNamespace(value=batch, ack=lambda: None)


class World:
    """Everything there is, and the die."""

    def __init__(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.random = Random(seed)
        self.counting = Counting(self.random.choice(RULES))
        count = self.random.randint(1, 3)
        lengths = [self.random.choice((8, 30)) for _ in range(count)]
        self.logs = [in_kafka(seeded_logs(self.random.getrandbits(32), length)) for length in lengths]
        self.broker = Broker(self.logs)
        self.workers: list[Worker] = []
        self.asleep: set[Worker] = set()
        self.now = 0.0
        for module in ("qualify", "rollup", "turns"):
            monkeypatch.setattr(f"streams.kafka.{module}.monotonic", lambda: self.now)
        chunk = self.random.choice((3, 100))
        for name, records in (("CHUNK", chunk), ("FULL", 2 * chunk)):
            monkeypatch.setattr(f"streams.kafka.backlog.{name}", records)

    def start(self) -> Worker:
        worker = Worker(self.broker, self.counting, self.random, lambda: self.now)
        self.workers.append(worker)
        return worker

    def kill(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self.asleep.discard(worker)
        worker.life.close()

    def step(self, worker: Worker) -> None:
        self.now += 1
        worker.life.send(None)
        if self.random.random() < 0.2:
            worker.commit_offsets()

    def make_trouble(self) -> None:
        """A worker dies, starts, falls asleep or wakes up, or the group goes on with whom it likes."""
        fate = self.random.random()
        if fate < 0.02 and self.workers:
            self.kill(self.random.choice(self.workers))
        elif fate < 0.05 and len(self.workers) < 4:
            self.broker.rebalance([*self.broker.members, self.start()])
        elif fate < 0.08 and self.workers:
            self.broker.rebalance(self.random.sample(self.workers, self.random.randint(1, len(self.workers))))
        elif fate < 0.14 and self.workers:
            self.asleep ^= {self.random.choice(self.workers)}
        elif awake := [worker for worker in self.workers if worker not in self.asleep]:
            self.step(self.random.choice(awake))

    def settle(self) -> Worker:
        """One worker more gets all partitions, while the others work on as if they had any; then they are gone."""
        last = self.start()
        self.broker.rebalance([last])
        for _ in range(TROUBLE):
            self.step(self.random.choice(self.workers))
        for worker in self.workers[:-1]:
            self.kill(worker)
        self.broker.rebalance([last])
        for _ in range(100 * TROUBLE):
            if last.has_told_all():
                return last
            self.step(last)
        raise AssertionError("it does not come to an end")


def totals_of(worker: Worker) -> dict[Series, Cell]:
    return {
        series: account.total
        for rollup in worker.rollup.owned.values()
        for series, account in rollup.accounts.by_series.items()
        if account.total != Cell()
    }


def truth_of(logs: list[Logs], counting: Counting) -> dict[Series, Cell]:
    totals: dict[Series, Cell] = defaultdict(Cell)
    for given in logs:
        for (*whose, _), cell in oracle.answer(given, counting.contract()).cells.items():
            totals[Series(*whose)].add(Cell(**cell))
    return dict(totals)


def simulate(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(seed, monkeypatch)
    for _ in range(TROUBLE):
        world.make_trouble()
    last = world.settle()
    for number, given in enumerate(world.logs):
        truth = oracle.answer(given, world.counting.contract())
        for topic in TOPICS:
            assert outcomes(last.qualify.owned[number].state, topic) == dict(truth.counts(topic)), (number, topic)
    assert totals_of(last) == truth_of(world.logs, world.counting)


@pytest.mark.parametrize("chunk", range(1 if ONLY else CHUNKS))
def test_whatever_happens_to_the_workers_the_numbers_are_the_oracles(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in [int(ONLY)] if ONLY else range(chunk, SEEDS, CHUNKS):
        try:
            simulate(seed, monkeypatch)
        except Exception as error:
            error.add_note(f"STREAMS_TEST_SEED={seed} replays this")
            raise
