"""A made load that lies on topics as if it had come live: its records bear the times of their events."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.load import put
from streams.core.rules import MINUTE, Rules
from streams.kafka.topics import PARTIALS, WINDOWS
from tests.conftest import GROUP, create_topics
from tests.logs import TOPICS
from tests.worker import read_topic

PARTITIONS = 3
LENGTH_MIN = 50
RULES = Rules(lateness_ms=MINUTE, dedup_horizon_ms=MINUTE, viewability_horizon_ms=2 * MINUTE)
SETTINGS = {"lateness": "1m", "dedup_horizon": "1m", "viewability_horizon": "2m", "idle": "0s"}
"""Short horizons: most windows are final, and a range reaches not back to the beginning. No lifts by the clock."""

Place = tuple[str, str, int]
Windows = dict[Place, dict[str, Any]]


class Sent(NamedTuple):
    topic: str
    key: str
    value: bytes
    appended: int


def made(folder: Path, start: int, *flags: str, rate: int = 15, minutes: int = LENGTH_MIN) -> dict[str, Path]:
    """The files of `streams generate` by topic."""
    began = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(start // 1000))
    done = run("generate", "--out", str(folder), "--start", began, "--for", f"{minutes}m", "--rate", str(rate), *flags)
    assert done.returncode == 0, done.stderr
    return {topic: folder / f"{topic}.jsonl" for topic in TOPICS}


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {f"STREAMS_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "streams.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def clock(ts_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M", time.gmtime(ts_ms / 1000))


def records_of(files: dict[str, Path], start: int) -> list[Sent]:
    """What lies in files, in the order in which it came."""
    records = [record for topic, path in files.items() for record in _sent(topic, path, start)]
    return sorted(records, key=lambda record: record.appended)


def _sent(topic: str, path: Path, start: int) -> Iterator[Sent]:
    now = start
    for number, line in enumerate(path.read_bytes().splitlines()):
        key = f"{topic}-{number}"
        try:
            event = json.loads(line)
            key = event.get("viewer_id") or event.get("impression_id") or key
            now = max(now, min(event["ts"], start + 24 * 60 * MINUTE)) if event["ts"] > start else now
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        yield Sent(topic, str(key), line, now)


class Loaded:
    """Topics of a prefix, and how they are looked at."""

    def __init__(self, bootstrap: str, prefix: str, start: int) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.start = start
        # Records bear the times of their events: as if they had come then.
        admin = AdminClient({"bootstrap.servers": bootstrap})
        config = {"message.timestamp.type": "CreateTime"}
        topics = [NewTopic(prefix + topic, PARTITIONS, 1, config=config) for topic in TOPICS]
        for future in admin.create_topics(topics).values():
            future.result(30)
        asyncio.run(create_topics(bootstrap, prefix, PARTITIONS))

    def send(self, records: Iterable[Sent]) -> None:
        producer = Producer({"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random", "linger.ms": 5})
        for one in records:
            put(producer, self.prefix + one.topic, one.key, one.value, timestamp=one.appended)
        assert producer.flush(60) == 0

    def at(self, minute: int) -> int:
        return self.start + minute * MINUTE

    def range(self, first: int, last: int) -> tuple[str, ...]:
        return "--from", clock(self.at(first)), "--to", clock(self.at(last))

    def replay(self, *flags: str, cache: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
        return run("replay", *flags, **self.settings(cache, **settings))

    def settings(self, cache: Path, **more: str) -> dict[str, str]:
        places = {"broker": self.bootstrap, "topic_prefix": self.prefix, "cache": str(cache)}
        return SETTINGS | places | more

    def windows(self, topic: str = WINDOWS) -> Windows:
        """The last record of each window of a topic."""
        found = {}
        for record in sorted(read_topic(self.bootstrap, self.prefix + topic, PARTITIONS), key=lambda one: one.offset()):
            row = orjson.loads(record.value())
            found[row["campaign_id"], row["currency"], row["start"]] = row
        return found

    def committed(self) -> dict[Any, int]:
        """The offsets of the workers' group on the topics that it reads."""

        async def ask() -> dict[Any, int]:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(self.prefix + GROUP)
            await admin.close()
            read = {self.prefix + topic for topic in (*TOPICS, PARTIALS)}
            return {place: one.offset for place, one in offsets.items() if place.topic in read}

        return asyncio.run(ask())


def a_start() -> int:
    """A whole minute, some hours ago: retention keeps it."""
    now = int(time.time() * 1000)
    return now - now % MINUTE - 3 * 60 * MINUTE
