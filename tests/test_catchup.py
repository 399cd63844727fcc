"""A worker that has hours to catch up with, on partitions hours apart: same numbers, and memory stays bounded."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
from confluent_kafka import Producer

from streams.core.events import CLICKS, RENDERS, TOPICS, VIEWABILITY
from streams.core.rules import HOUR, MINUTE, SECOND
from streams.kafka.backlog import CHUNK
from streams.kafka.broker import EmbeddedBroker
from tests import oracle
from tests.conftest import create_topics
from tests.recount import recounted
from tests.worker import WorkerProcess, wait_until

Event = dict[str, Any]

NOW = int(time.time() * 1000)
RENDERS_EACH = 60_000
KINDS = ("viewable", "not_viewable", "measurable", "undetermined")

UP_TO_DATE, AN_HOUR_BEHIND, SIX_HOURS_BEHIND, EMPTY, SILENT = range(5)
SPANS = {
    UP_TO_DATE: (NOW - 3 * HOUR, NOW),
    AN_HOUR_BEHIND: (NOW - 4 * HOUR, NOW - HOUR),
    SIX_HOURS_BEHIND: (NOW - 9 * HOUR, NOW - 6 * HOUR),
    SILENT: (NOW - 5 * HOUR, NOW),
}
"""Partition -> event time of its first and last render."""
REMEMBERED_MS = 2 * HOUR
"""Lateness and the larger horizon."""


def renders(partition: int) -> Iterator[Event]:
    start, end = SPANS[partition]
    for number in range(RENDERS_EACH):
        ts = start + (end - start) * number // RENDERS_EACH
        yield {
            "impression_id": f"{partition}-{number}", "campaign_id": f"c{number % 3}", "ts": ts,
            "price": "2", "currency": "USD",
        }  # fmt: skip


def views(partition: int) -> Iterator[Event]:
    for number, render in enumerate(renders(partition)):
        if partition != SILENT and number % 5:
            kind = KINDS[number % len(KINDS)]
            yield {"impression_id": render["impression_id"], "ts": render["ts"] + SECOND, "kind": kind}


def clicks(partition: int) -> Iterator[Event]:
    for number, render in enumerate(renders(partition)):
        if partition != SILENT and number % 50 == 0:
            yield {"impression_id": render["impression_id"], "ts": render["ts"] + MINUTE}


def produce(bootstrap: str, prefix: str) -> None:
    """Views and clicks first: they lie there for hours before their renders do."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for topic, events in ((VIEWABILITY, views), (CLICKS, clicks), (RENDERS, renders)):
        for partition in SPANS:
            for event in events(partition):
                producer.produce(prefix + topic, orjson.dumps(event), partition=partition)
            producer.poll(0)
        assert producer.flush(60) == 0


def totals(cells: dict[tuple[Any, ...], dict[str, int]]) -> dict[str, tuple[int, int, int]]:
    sums: dict[str, Counter[str]] = {}
    for (campaign, *_), figures in cells.items():
        sums.setdefault(campaign, Counter()).update(figures)
    return {name: (one["served"], one["measurable"], one["viewable"]) for name, one in sums.items()}


def shown_outcomes(worker: WorkerProcess, topic: str) -> dict[str, int]:
    samples = [s for s in worker.samples() if s.name == "streams_events_total" and s.labels["topic"] == topic]
    return {s.labels["outcome"]: int(s.value) for s in samples if s.value}


def test_partitions_that_are_hours_apart_empty_or_silent_give_the_oracles_numbers_and_bounded_memory(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, len(SPANS) + 1))
    produce(broker.bootstrap, topic_prefix)
    cells, outcomes = recounted(broker.bootstrap, topic_prefix, len(SPANS) + 1)
    assert outcomes[VIEWABILITY][oracle.PENDING] == 0
    sent = {topic: sum(outcomes[topic].values()) for topic in TOPICS}
    most_waiting = 0.0
    with WorkerProcess(broker.bootstrap, topic_prefix, idle="3s") as worker:

        def is_through() -> bool:
            nonlocal most_waiting
            waiting = worker.metric("streams_events_pending")
            most_waiting = max(most_waiting, waiting or 0)
            return all(worker.consumed(topic) == count for topic, count in sent.items())

        wait_until(is_through, "all of it is read", 120)
        wait_until(lambda: worker.totals() == totals(cells), "the numbers are the oracle's")
        for topic in TOPICS:
            assert shown_outcomes(worker, topic) == dict(outcomes[topic]), topic
        assert most_waiting <= len(SPANS) * 2 * CHUNK, "views are read far ahead of their renders"
        recent = sum(render["ts"] >= NOW - REMEMBERED_MS - 5 * MINUTE for one in SPANS for render in renders(one))
        wait_until(
            lambda: (worker.metric("streams_remembered_impressions") or 0) <= recent,
            f"what nothing can refer to is forgotten, also where a topic is silent: {recent} are left",
        )
        assert worker.totals() == totals(cells)
        assert worker.terminate()[0] == 0
