"""`streams tap`: every event with what becomes of it, as the worker decides, wherever the tap begins."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from streams.cli import app
from streams.kafka.broker import EmbeddedBroker
from streams.replay.tap import BEFORE, Tap
from streams.wire.campaigns import parse_campaigns
from tests import oracle
from tests.conftest import create_topics
from tests.logs import COUNTINGS, T0, TOPICS, Counting, S, batch, encoded, logs, outcomes, render, toml_of, view
from tests.oracle import Logs
from tests.worker import WorkerProcess, send, wait_until

PARTITIONS = 2


def tap_of(counting: Counting) -> Tap:
    return Tap(0, counting.rules, parse_campaigns(toml_of(counting.agreed), counting.rules.billing_source))


def fed(tap: Tap, given_logs: Logs) -> dict[Any, str]:
    """What becomes of each event of logs, each topic whole and one after another; the last word on each counts."""
    told = {}
    for topic in TOPICS:
        if given_logs[topic]:
            tap.watch(batch(topic, given_logs[topic]), [encoded(event) for _, event, _ in given_logs[topic]])
            told |= {(one.place.topic, one.place.offset): one.outcome for one in tap.told()}
    return told


def by_topic(told: dict[Any, str]) -> dict[str, Counter[str]]:
    return {topic: Counter(outcome for (of, _), outcome in told.items() if of == topic) for topic in TOPICS}


@given(logs(), st.sampled_from(COUNTINGS))
def test_every_event_is_told_and_the_last_word_on_each_is_the_oracles(some_logs: Logs, counting: Counting) -> None:
    told = by_topic(fed(tap_of(counting), some_logs))
    truth = oracle.answer(some_logs, counting.contract())
    for topic in TOPICS:
        assert told[topic] == Counter(truth.counts(topic)), topic


@given(logs(), logs(), st.sampled_from(COUNTINGS))
def test_a_tap_that_begins_with_a_journal_tells_what_one_that_saw_all_of_it_tells(
    earlier: Logs, later: Logs, counting: Counting
) -> None:
    later = {topic: [(offset + 1_000, *rest) for offset, *rest in log] for topic, log in later.items()}
    saw_all = tap_of(counting)
    fed(saw_all, earlier)
    worker = counting.partition()
    for topic in TOPICS:
        if earlier[topic]:
            worker.apply(batch(topic, earlier[topic]))
    began_later = tap_of(counting)
    began_later.fold([worker.take()])
    assert fed(began_later, later) == fed(saw_all, later)
    assert outcomes(began_later, "renders") == outcomes(saw_all, "renders")


def test_what_came_before_the_tap_is_referred_to_by_its_time() -> None:
    worker = Counting(COUNTINGS[0].rules).partition()
    worker.apply(batch("renders", [(0, render(viewer_id="v", slot_id="s"), None)]))
    tap = tap_of(Counting(COUNTINGS[0].rules))
    tap.fold([worker.take()])
    again = render(ts=T0 + S, viewer_id="v", slot_id="s")
    refreshed = again | {"impression_id": "y", "ts": T0 + 2 * S}
    tap.watch(batch("renders", [(1, again, None), (2, refreshed, None)]), [encoded(again), encoded(refreshed)])
    duplicate, refresh = tap.told()
    assert [one.outcome for one in (duplicate, refresh)] == ["duplicate", "refresh"]
    for one in (duplicate, refresh):
        assert one.refers_to is not None
        assert (one.refers_to.ts, one.refers_to.place.offset) == (T0, BEFORE)
    assert duplicate.reason == "this impression was rendered 1 s before"


# --- on Kafka ---------------------------------------------------------------------------------------------------------


def test_a_tap_knows_what_the_workers_knew_when_it_began(broker: EmbeddedBroker, topic_prefix: str) -> None:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    ts = time.time_ns() // 1_000_000

    def give(topic: str, *events: Any) -> None:
        send(broker.bootstrap, topic_prefix + topic, [("v", event) for event in events])

    with WorkerProcess(broker.bootstrap, topic_prefix) as worker:
        give("renders", render("a", ts))
        give("viewability", view("waits", ts))
        wait_until(lambda: worker.metric("streams_events_pending", topic="viewability") == 1, "a view waits")
        worker.wait_consumed(renders=1)
        assert worker.terminate()[0] == 0, "all is in the journal"
    with Process(broker.bootstrap, topic_prefix, "--json") as tap:
        give("renders", render("a", ts), b"{", render("waits", ts))
        told = {(one["topic"], one["impression_id"]): one for one in tap.lines(4)}
        assert {place: one["outcome"] for place, one in told.items()} == {
            ("renders", "a"): "duplicate",
            ("renders", None): "malformed",
            ("renders", "waits"): "counted",
            ("viewability", None): "counted",
        }
        assert told["renders", "a"]["refers_to"]["offset"] is None, "where it lay is not in the journal"
        give("viewability", view("later", ts))
        assert [one["outcome"] for one in tap.lines(1)] == ["pending"]
        assert tap.interrupted() == 0
    few = CliRunner().invoke(
        app, ["tap", "--from-beginning", "--outcome", "counted", "--limit", "2", "--campaign", "c",
              "--broker", broker.bootstrap, "--topic-prefix", topic_prefix]
    )  # fmt: skip
    assert few.exit_code == 0, few.output
    assert few.stdout.count(": campaign c spend +0.0025 USD;") == 2


class Process:
    """`streams tap` as a process, which follows once it is entered."""

    def __init__(self, bootstrap: str, prefix: str, *flags: str) -> None:
        where = ("--broker", bootstrap, "--topic-prefix", prefix)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "tap", *where, *flags],
            env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        assert self._process.stderr is not None
        assert self._process.stderr.readline().startswith("following ")
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            process.kill()

    def lines(self, number: int) -> list[Any]:
        assert self._process.stdout is not None
        return [json.loads(self._process.stdout.readline()) for _ in range(number)]

    def interrupted(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(10)


def test_a_tap_with_other_settings_than_the_workers_says_so(broker: EmbeddedBroker, topic_prefix: str) -> None:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    with WorkerProcess(broker.bootstrap, topic_prefix) as worker:
        send(broker.bootstrap, topic_prefix + "renders", [("v", render("a", time.time_ns() // 1_000_000))])
        worker.wait_consumed(renders=1)
        assert worker.terminate()[0] == 0
    where = ["--broker", broker.bootstrap, "--topic-prefix", topic_prefix]
    refused = CliRunner().invoke(app, ["tap", *where], env={"STREAMS_LATENESS": "2h"})
    assert refused.exit_code == 1
    assert "with other settings (lateness_ms)" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [["--outcome", "lost"], ["--limit", "0"]])
def test_what_cannot_be_asked_is_a_usage_error(flags: list[str]) -> None:
    assert CliRunner().invoke(app, ["tap", *flags]).exit_code == 2
