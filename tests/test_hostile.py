"""What a stranger or a wrong clock can do to a worker: nothing that changes a number, or that a page cannot show."""

import asyncio
import glob
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from streams.kafka.broker import EmbeddedBroker
from tests.conftest import create_topics
from tests.logs import MIN, H, render, view
from tests.worker import WorkerProcess, send, wait_until

PARTITIONS = 2
CAP, IDS = 100, 20_000


@pytest.fixture
def topics(broker: EmbeddedBroker, topic_prefix: str) -> str:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    return topic_prefix


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def give(broker: EmbeddedBroker, topic: str, events: Iterator[Any] | list[Any]) -> None:
    send(broker.bootstrap, topic, ((f"viewer-{number % 97}", event) for number, event in enumerate(events)))


# --- campaign ids -----------------------------------------------------------------------------------------------------

STRANGE = [
    '"', "\\", "\n", "\\n", "\r", "\t", "\x00", "\x1b[31m", "\u2028", "\U0001f600", "é" * 128, "x" * 256, " ", "'",
    "a,b", "a|b", 'a\nb{x="1"} 2', "<script>alert(1)</script>", "%s", "{}", "NaN", "null", "0",
]  # fmt: skip


def test_any_campaign_id_is_one_label_and_very_many_of_them_are_capped_with_totals_right(
    broker: EmbeddedBroker, topics: str
) -> None:
    ts, made = now_ms(), random.Random(5)
    ids = [f"{made.getrandbits(64):x}" for _ in range(IDS)]
    long = ["x" * 257, "x" * 10_000, "\n" * 10_000]
    with WorkerProcess(broker.bootstrap, topics, max_campaigns=str(CAP)) as worker:
        # These serve most, so they are shown by name: three renders each, the others one.
        names = (*STRANGE, "_other")
        strange = [render(f"{copy}-{name}"[:99], ts, campaign_id=name) for name in names for copy in range(3)]
        many = (render(f"r-{name}"[:99], ts, campaign_id=name) for name in (*ids, *long))
        give(broker, topics + "renders", strange)
        give(broker, topics + "renders", many)
        served = IDS + len(strange)
        wait_until(
            lambda: worker.metric("streams_events_total", topic="renders", outcome="counted") == served, "all count"
        )
        assert worker.metric("streams_dead_letters_total", reason="out_of_range") == len(long)
        wait_until(lambda: window_served(worker) == served, "all are in the window")
        named = {sample.labels["campaign"]: sample.value for sample in worker.samples()
                 if sample.name == "ads_served_impressions_total"}  # fmt: skip
        assert len(named) == CAP
        assert named.items() >= dict.fromkeys(STRANGE, 3.0).items(), "each came back as it was sent"
        assert worker.metric("streams_overflow_campaigns") == IDS + len(names) - CAP
        assert worker.metric("ads_window_served", campaign="_other", window="1h") == served - sum(named.values())
        page = worker.get("/metrics")[1]
        shown = json.loads(worker.get("/api/campaigns")[1])
        assert worker.get("/")[0] == 200
    assert set(STRANGE) <= set(texts_in(shown))
    promtool = subprocess.run(
        [shutil.which("promtool") or "promtool", "check", "metrics"], input=page, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (promtool.returncode, promtool.stderr) == (0, "")


def window_served(worker: WorkerProcess) -> float:
    return sum(sample.value for sample in worker.samples()
               if sample.name == "ads_window_served" and sample.labels["window"] == "1h")  # fmt: skip


def texts_in(shown: Any) -> Iterator[str]:
    """Every string in what the page is given."""
    if isinstance(shown, str):
        yield shown
    elif isinstance(shown, list | dict):
        for part in shown.values() if isinstance(shown, dict) else shown:
            yield from texts_in(part)


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_a_wrong_clock_of_a_sender_closes_nothing(broker: EmbeddedBroker, topics: str) -> None:
    ts = now_ms()
    with WorkerProcess(broker.bootstrap, topics) as worker:
        ahead = [render("far", ts + 365 * 24 * H), render("near", ts + 11 * MIN)]
        give(broker, topics + "renders", [render("a", ts), *ahead])
        give(broker, topics + "viewability", [view("a", ts + 48 * H)])
        wait_until(lambda: worker.metric("streams_dead_letters_total", reason="future") == 3, "three are refused")
        give(broker, topics + "renders", [render("slow", ts - 59 * MIN)])
        give(broker, topics + "viewability", [view("a", ts), view("slow", ts - 59 * MIN)])
        wait_until(lambda: worker.totals().get("c") == (2, 2, 2), "what is in time counts")
        assert worker.metric("streams_events_total", outcome="late") == 0
        assert (worker.metric("streams_stream_time_seconds", topic="renders") or 0) / PARTITIONS * 1000 < ts + MIN


@pytest.fixture
def stepped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that says by how much the wall clock of processes that start now is wrong.

    libfaketime 0.9.10 mistakes the time until which a condition is waited for by the monotonic clock for one of the
    wall clock, so each such wait is over at once. Python's threads wait for each other like this, and hold a lock
    meanwhile that is needed to give way: on a busy machine an answer took 1 to 3 s instead of 0.06.
    FAKETIME_WAIT_MS says how long all of these waits last: 5 ms, as Python has it.
    """
    [library] = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1") or [None]
    assert library, "libfaketime is needed: apt-get install faketime"
    clock = tmp_path / "clock"
    clock.write_text("+0")
    for name, value in {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_WAIT_MS": "5"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return clock


def test_a_clock_that_is_stepped_by_an_hour_changes_no_number_and_misses_no_session(
    broker: EmbeddedBroker, topics: str, stepped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ts, steps = now_ms(), ("+3600", "-3600", "+0")
    wait_for_coordinator(broker, topics)
    with WorkerProcess(broker.bootstrap, topics) as worker:
        monkeypatch.delenv("LD_PRELOAD")
        worker.ready()
        recovered = worker.metric("streams_recovery_duration_seconds")
        for number, step in enumerate(steps, 1):
            stepped.write_text(step)
            wait_until(lambda step=step: clock_of(worker, step), "its clock is stepped", 10)  # type: ignore[misc]
            give(broker, topics + "renders", [render(f"{step}{n}", ts) for n in range(500)])
            give(broker, topics + "viewability", [view(f"{step}{n}", ts) for n in range(500)])
            counted = 500 * number
            wait_until(lambda counted=counted: worker.totals().get("c") == (counted,) * 3, "all count")  # type: ignore[misc]
            assert worker.metric("ads_window_served", campaign="c", window="1h") == counted
        assert worker.metric("streams_recovery_duration_seconds") == recovered, "no rebalance: no heartbeat was missed"
        assert worker.get("/readyz")[0] == 200
        assert worker.terminate()[0] == 0
    assert [line for line in worker.log if '"level": "error"' in line] == []


def wait_for_coordinator(broker: EmbeddedBroker, prefix: str) -> None:
    """Wait until a brand-new broker has one for groups: before that a worker tells of an error, whatever the clock."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": prefix})
    consumer.committed([TopicPartition(prefix + "renders", 0)], timeout=60)
    consumer.close()


def clock_of(worker: WorkerProcess, step: str) -> bool:
    """Whether a worker's answers carry its stepped time."""
    answered = worker.head("/healthz")["Date"]
    told = time.mktime(time.strptime(answered, "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
    return abs(told - time.time() - int(step)) < 60
