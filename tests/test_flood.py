"""Very many campaigns that come at once: long commits, in turns with all else."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from streams.core.campaigns import Campaigns
from streams.core.panes import Cell, Series, Touched
from streams.core.rollup import Head, Partial
from streams.core.rules import DAY
from streams.kafka import rollup, turns
from streams.kafka.fetch import Batches
from streams.kafka.qualify import Qualify
from streams.kafka.topics import PARTIALS
from streams.kafka.transport import RecordBatch
from streams.wire.records import encode_partial


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that others move."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(turns, "monotonic", lambda: clock.now)
    return clock


async def test_between_two_chunks_what_waits_for_one_thing_after_the_other_has_many_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hops = 0
    at_chunk: list[int] = []

    async def hop() -> None:
        nonlocal hops
        while True:
            hops += 1
            await asyncio.sleep(0)

    qualify: Any = object.__new__(Qualify)
    progress = {"renders": SimpleNamespace(stream_time=0)}
    left = [SimpleNamespace(topic="renders") for _ in range(3)]
    backlog = SimpleNamespace(next=lambda *_: left.pop() if left else None, is_full=lambda _: True)
    owned: Any = SimpleNamespace(number=0, advancing=False, backlog=backlog, state=SimpleNamespace(progress=progress))
    qualify.owned = {0: owned}
    monkeypatch.setattr(qualify, "is_full", lambda: False)
    monkeypatch.setattr(qualify, "_apply", lambda *_: at_chunk.append(hops))
    hopping = asyncio.create_task(hop())
    await qualify._advance(owned)
    hopping.cancel()
    first, second, third = at_chunk
    assert second - first >= 4
    assert third - second >= 4


async def test_long_work_has_as_long_a_turn_as_all_others_had(clock: SimpleNamespace) -> None:
    done: list[int] = []
    at_turn: list[int] = []

    async def work() -> None:
        async for value in turns.half_the_time(range(200)):
            clock.now += 0.0011
            done.append(value)

    working = asyncio.create_task(work())
    for others_s in (0.0, 0.010, 0.0001, 9.0, 0.0):
        await asyncio.sleep(0)
        at_turn.append(len(done))
        clock.now += others_s
    await working
    assert [after - before for before, after in zip([0, *at_turn], at_turn, strict=False)] == [2, 2, 10, 2, 46]
    assert done == list(range(200))


class Table(dict[bytes, bytes]):
    """A table whose outbox delivers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_deliver = asyncio.Event()
        self.outbox: Any = self

    def __delitem__(self, key: bytes) -> None:
        self.pop(key, None)

    def take(self) -> dict[bytes, bytes]:
        return {}

    def send(self, *_: Any, **__: Any) -> None:
        pass

    async def flush(self) -> None:
        await self.may_deliver.wait()


def partials(campaigns: int, seq: int) -> RecordBatch:
    """A record of one partial that brings so many campaigns."""
    cells = [Touched(Series(f"{seq}-{number}", "USD", "adserver"), 0, Cell(served=1)) for number in range(campaigns)]
    value = encode_partial(Partial(0, Head(0, seq, 1, 0, False, 0), cells))
    return RecordBatch(PARTIALS, 0, Batches([[SimpleNamespace(offset=seq, value=value)]], seq, seq + 1))


async def events(*batches: RecordBatch) -> AsyncIterator[Any]:
    for batch in batches:
        yield SimpleNamespace(value=batch, ack=lambda: None)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def stage(table: Any, monkeypatch: pytest.MonkeyPatch) -> rollup.RollupStage:
    """A stage that owns a partition, and to which more than 100 rows and windows are a flood."""
    monkeypatch.setattr(rollup, "FLOOD", 100)
    flow: Any = SimpleNamespace(done=lambda *_: None)
    stage = rollup.RollupStage((60_000,), Campaigns(), DAY, "", table, flow)
    stage.take_over(0, 1)
    return stage


async def begun(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    task = asyncio.create_task(work)
    for _ in range(10):
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize(("first", "applied"), [(10, 11), (200, 200)])
async def test_in_a_flood_partials_wait_until_a_commit_has_written_what_there_is(
    first: int, applied: int, stage: rollup.RollupStage, table: Table
) -> None:
    accounts = stage.owned[0].accounts
    await stage.run(events(partials(first, 0)))
    committing = await begun(stage.commit())
    running = await begun(stage.run(events(partials(1, 1))))
    assert len(accounts.by_series) == applied
    table.may_deliver.set()
    await asyncio.gather(committing, running)
    assert len(accounts.by_series) == first + 1


async def test_what_waited_is_not_taken_when_its_partition_went_meanwhile(
    stage: rollup.RollupStage, table: Table
) -> None:
    await stage.run(events(partials(200, 0)))
    committing = await begun(stage.commit())
    running = await begun(stage.run(events(partials(1, 1))))
    stage.release()
    stage.take_over(0, 2)
    table.may_deliver.set()
    await asyncio.gather(committing, running)
    assert (stage.positions, len(stage.owned[0].accounts.by_series)) == ({}, 0)
