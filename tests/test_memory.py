"""Free memory of a worker: it goes back to the system, and Python's allocator gives it in order."""

import asyncio
import random
import resource
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from streams.kafka import app
from streams.kafka.memory import SIZES, give_back_memory, put_in_order
from tests.test_transport import worker


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_freed_memory_goes_back_to_the_system_also_from_between_what_is_held() -> None:
    pieces = [b"x" * 100_000 for _ in range(1_000)]
    held = pieces[::100] + pieces[-1:]
    del pieces
    before = resident()
    give_back_memory()
    assert before - resident() > 50_000_000
    assert len(held) == 11


def blocks_of(size: int, number: int) -> list[bytes]:
    return [bytes(size - sys.getsizeof(b"")) for _ in range(number)]


def steps_back(size: int) -> int:
    """Return after how many of 10,000 new blocks of a size comes one with a lower address."""
    blocks = blocks_of(size, 10_000)
    return sum(later < earlier for earlier, later in pairwise(map(id, blocks)))


@pytest.mark.parametrize("size", sorted(set(SIZES)))
def test_free_blocks_are_given_in_the_order_of_their_addresses(size: int) -> None:
    blocks = blocks_of(size, 20_000)
    random.Random(size).shuffle(blocks)
    held = [blocks.pop() for _ in range(1_000)]  # what lives on lies among the others
    blocks.clear()
    assert steps_back(size) > 1_000
    put_in_order(size)
    assert steps_back(size) < 500
    assert len(held) == 1_000


async def test_while_events_are_counted_all_sizes_are_put_in_order_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made, done = worker(), list[int]()
    monkeypatch.setattr(app, "put_in_order", done.append)
    monkeypatch.setattr(app, "ORDER_S", 0.001)
    task = asyncio.create_task(made._keep_in_order())
    try:
        await asyncio.sleep(0.05)
        assert done == []  # nothing is counted
        for turn, size in enumerate([*SIZES, *SIZES], 1):
            made.qualify.applied += app.MANY
            async with asyncio.timeout(10):
                while len(done) < turn:
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            assert (len(done), done[-1]) == (turn, size)
    finally:
        task.cancel()
