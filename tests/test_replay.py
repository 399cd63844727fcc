"""`streams replay` on real Kafka: what live workers counted, counted again beside them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from streams.kafka.broker import EmbeddedBroker
from streams.kafka.topics import WINDOWS
from streams.replay.document import read
from tests.conftest import GROUP, create_topics
from tests.test_crashes import SESSION, load
from tests.worker import WorkerProcess, read_topic, wait_until

PARTITIONS = 3
SHORT = {
    "lateness": "5s", "dedup_horizon": "5s", "viewability_horizon": "5s", "refresh_interval": "5s",
    "refresh_slack": "5s", "idle": "2s",
}  # fmt: skip
"""Horizons so short that windows become final while a test runs."""


class Live(NamedTuple):
    """What live workers counted, with kills and a rebalance, from a load that has ended."""

    bootstrap: str
    prefix: str
    worker: WorkerProcess
    start: int
    stop: int

    def replay(self, *flags: str, cache: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "streams.cli", "replay", *flags], env=self.environment(cache, settings),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def environment(self, cache: Path, settings: dict[str, str]) -> dict[str, str]:
        told = {f"STREAMS_{name.upper()}": value for name, value in (SHORT | settings).items()}
        places = {"STREAMS_BROKER": self.bootstrap, "STREAMS_TOPIC_PREFIX": self.prefix, "STREAMS_CACHE": str(cache)}
        return os.environ | told | places

    @property
    def range(self) -> tuple[str, ...]:
        times = (time.strftime("%Y-%m-%dT%H:%M", time.gmtime(at / 1000)) for at in (self.start, self.stop))
        return tuple(part for pair in zip(("--from", "--to"), times, strict=True) for part in pair)

    def windows(self, topic: str = WINDOWS) -> dict[tuple[str, str, int], dict[str, Any]]:
        """The last record of each window of a topic."""
        found = {}
        for record in sorted(read_topic(self.bootstrap, self.prefix + topic, PARTITIONS), key=lambda one: one.offset()):
            row = orjson.loads(record.value())
            found[row["campaign_id"], row["currency"], row["start"]] = row
        return found

    def final(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        return {place: row for place, row in self.windows().items() if row["final"] and self.start <= place[2] < self.stop}

    def committed(self) -> dict[Any, int]:
        async def ask() -> dict[Any, int]:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(self.prefix + GROUP)
            await admin.close()
            return {place: one.offset for place, one in offsets.items()}

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def live(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Workers count a load of two minutes and more; two are killed, one joins and leaves; one is at work still."""
    prefix = f"replay-{os.getpid()}-"
    asyncio.run(create_topics(broker.bootstrap, prefix, PARTITIONS))
    settings = SESSION | SHORT
    with load(broker, prefix, tmp_path_factory.mktemp("load"), rate=300) as running:
        began = int(time.time() * 1000)
        start = began - began % 60_000 + 60_000
        for _ in range(2):
            with WorkerProcess(broker.bootstrap, prefix, **settings) as doomed:
                doomed.ready()
                wait_until(lambda w=doomed: w.consumed("renders") > 500, "it counts")  # type: ignore[misc]
                doomed.signal(signal.SIGKILL)
        with WorkerProcess(broker.bootstrap, prefix, **settings) as heir:
            heir.ready()
            with WorkerProcess(broker.bootstrap, prefix, **settings) as guest:
                wait_until(lambda: (guest.metric("streams_partitions_assigned") or 0) > 0, "another one joins")
                assert guest.terminate()[0] == 0
            stop = start + 60_000
            wait_until(lambda: time.time() * 1000 > stop + 15_000, "the range has passed", 130)
            running.stop()
            found = Live(broker.bootstrap, prefix, heir.ready(), start, stop)
            wait_until(lambda: len(found.final()) >= 20, "its windows are final")
            yield found


def test_a_replay_beside_a_live_worker_gives_its_final_windows_and_touches_nothing(live: Live, tmp_path: Path) -> None:
    def settled() -> tuple[str, dict[Any, int]]:
        page = live.worker.get("/metrics")[1].splitlines()
        return "\n".join(line for line in page if line.startswith(("ads_", "streams_events"))), live.committed()

    before: list[Any] = [None]

    def is_settled() -> bool:
        last, before[0] = before[0], settled()
        return bool(last == before[0])

    wait_until(is_settled, "the worker is at rest")
    windows = live.windows()
    done = live.replay(*live.range, "--report", str(tmp_path / "a.json"), "--publish", "--run", "again", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert settled() == before[0]
    assert live.windows() == windows
    final = live.final()
    assert len(final) >= 20
    assert {place: row for place, row in live.windows(f"{WINDOWS}-again").items()} == final
    assert read(tmp_path / "a.json").windows == final
    again = live.replay(*live.range, "--report", str(tmp_path / "b.json"), cache=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    told = live.replay("diff", str(tmp_path / "a.json"), "live", "--json", cache=tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    assert json.loads(told.stdout) == {"compared": len(final), "not_final": 0, "windows": []}
    other = live.replay(*live.range, "--publish", "--run", "again", cache=tmp_path)
    assert other.returncode == 1
    assert "another run wrote it" in other.stderr
    assert other.stderr.count("\n") == 1
