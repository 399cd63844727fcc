"""Workers that are killed, paused and replaced under load, on real Kafka: the numbers are the generator's truth.

`STREAMS_TEST_KILLS=300` kills as often.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.journal import preload
from streams.cli.demo import observed
from streams.core.events import TOPICS
from streams.core.money import nano_of
from streams.kafka.app import ROLLUP_COMMIT_S
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.crash import POINTS
from streams.kafka.topics import PARTIALS
from streams.sources.truth import FIGURES
from streams.wire.records import decode_partial
from tests.conftest import create_topics
from tests.recount import assert_as_recounted
from tests.test_worker import PARTITIONS, now_ms, render, topics  # noqa: F401 - a fixture is named, not called
from tests.worker import WorkerProcess, read_topic, send, wait_until

KILLS = int(os.environ.get("STREAMS_TEST_KILLS", "20"))
GOES_ON_S = 10.0
SESSION = {"session_timeout": "2s"}


class Load:
    """`streams generate` as a process, until it is stopped; then its truth is known."""

    def __init__(self, broker: EmbeddedBroker, prefix: str, truth: Path, rate: int) -> None:
        self.truth = truth
        flags = ["--rate", str(rate), "--truth", str(truth), "--seed", "7"]
        places = ["--broker", broker.bootstrap, "--topic-prefix", prefix]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "generate", *flags, *places],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def stop(self) -> dict[str, Any]:
        """End it in order and return what has to come out."""
        self._process.send_signal(signal.SIGINT)
        _, errors = self._process.communicate(timeout=60)
        assert self._process.returncode in (0, 130), errors
        told: dict[str, Any] = json.loads(self.truth.read_text())
        return told

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def load(broker: EmbeddedBroker, prefix: str, folder: Path, rate: int) -> Iterator[Load]:
    running = Load(broker, prefix, folder / "truth.json", rate)
    try:
        yield running
    finally:
        running.kill()


def differences(truth: dict[str, Any], *workers: WorkerProcess) -> list[str]:
    """How what the workers show together differs from the truth, in outcomes and in each figure of each campaign."""
    pages = [observed(worker.get("/metrics")[1]) for worker in workers]
    wrong = []
    for topic, expected in truth["events"].items():
        consumed = sum(page["events"].get(topic, {}).get("sent", 0) for page in pages)
        outcomes: dict[str, int] = {}
        for page in pages:
            for outcome, count in page["events"].get(topic, {}).get("outcomes", {}).items():
                outcomes[outcome] = outcomes.get(outcome, 0) + count
        counted = {outcome: count for outcome, count in outcomes.items() if count}
        if consumed != expected["sent"] or counted != {o: c for o, c in expected["outcomes"].items() if c}:
            wrong.append(f"{topic}: {consumed} {counted}, not {expected}")
    seen = {(row["campaign_id"], row["currency"]): row for page in pages for row in page["campaigns"]}
    wanted = {(row["campaign_id"], row["currency"]): row for row in truth["campaigns"]}
    if seen.keys() != wanted.keys():
        wrong.append(f"campaigns {seen.keys() ^ wanted.keys()}")
    for name in seen.keys() & wanted.keys():
        for figure in (*FIGURES, "gross"):
            is_money = figure == "spend"
            found, expected = seen[name][figure], wanted[name][figure]
            if (nano_of(str(found)) != nano_of(expected)) if is_money else found != expected:
                wrong.append(f"{name}: {figure} is {found}, not {expected}")
    return wrong


def assert_settles(truth: dict[str, Any], *workers: WorkerProcess) -> None:
    wrong: list[str] = ["not looked at"]

    def is_right() -> bool:
        wrong[:] = differences(truth, *workers)
        return not wrong

    try:
        wait_until(is_right, "the numbers are the truth", 120)
    except AssertionError:
        raise AssertionError("\n".join(wrong[:20])) from None


def consumed(worker: WorkerProcess) -> int:
    return sum(worker.consumed(topic) for topic in TOPICS)


def left(worker: WorkerProcess) -> float:
    return sum(sample.value for sample in worker.samples() if sample.name == "streams_consumer_lag")


def test_a_worker_that_dies_at_any_step_three_times_each_loses_and_doubles_nothing(
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    random = Random(5)
    deaths = [f"{point}:{1 if point.startswith('claim') else random.randint(1, 3)}" for point in POINTS * 3]
    random.shuffle(deaths)
    with load(broker, topics, tmp_path, rate=1_000) as running:
        for death in deaths:
            with WorkerProcess(broker.bootstrap, topics, crash_at=death, **SESSION) as doomed:
                assert doomed.wait() == -signal.SIGKILL, (death, doomed.log)
        with WorkerProcess(broker.bootstrap, topics, **SESSION) as heir:
            heir.ready()
            truth = running.stop()
            assert_settles(truth, heir)
            assert heir.terminate()[0] == 0
    assert_as_recounted(broker.bootstrap, topics, PARTITIONS, truth)


def test_a_worker_killed_again_and_again_under_full_load_goes_on_within_10_s_each_time(
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    random = Random(11)
    pauses = []
    with load(broker, topics, tmp_path, rate=10_000) as running:  # 20,000 events/s and more: views and duplicates
        before = 0
        for _ in range(KILLS):
            began = time.monotonic()
            with WorkerProcess(broker.bootstrap, topics, **SESSION) as doomed:
                wait_until(lambda w=doomed, b=before: consumed(w) > b, "counting goes on")  # type: ignore[misc]
                pauses.append(time.monotonic() - began)
                time.sleep(random.uniform(0, 2))
                before = consumed(doomed)
                wait_until(lambda w=doomed: left(w) > 0, "work is left when the kill comes")  # type: ignore[misc]
                doomed.kill()
        print(f"{KILLS} kills: counting went on after {min(pauses):.1f} to {max(pauses):.1f} s")
        truth = running.stop()
    with WorkerProcess(broker.bootstrap, topics, **SESSION) as heir:
        heir.ready()
        assert_settles(truth, heir)
        assert heir.terminate()[0] == 0
    assert max(pauses) < GOES_ON_S, pauses
    assert_as_recounted(broker.bootstrap, topics, PARTITIONS, truth)


def test_sigterm_and_sigint_under_full_load_end_a_worker_in_order_within_10_s(
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    with load(broker, topics, tmp_path, rate=10_000) as running:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            with WorkerProcess(broker.bootstrap, topics, **SESSION) as worker:
                worker.ready()
                before = consumed(worker)
                wait_until(lambda w=worker, b=before: consumed(w) > b and left(w) > 0, "it has work")  # type: ignore[misc]
                began = time.monotonic()
                worker.signal(number)
                assert worker.wait() == 0, worker.log[-9:]
                assert time.monotonic() - began < GOES_ON_S
        truth = running.stop()
    with WorkerProcess(broker.bootstrap, topics, **SESSION) as heir:
        heir.ready()
        assert_settles(truth, heir)
        assert heir.terminate()[0] == 0
    assert_as_recounted(broker.bootstrap, topics, PARTITIONS, truth)


PRELOADED = 5_000_000
REMEMBERS_S = 20.0


def test_a_worker_that_is_killed_with_5_million_remembered_impressions_counts_again_within_20_s(
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
) -> None:
    truth = preload(broker.bootstrap, topics, PRELOADED, PARTITIONS, now_ms())
    totals = {name: (truth.served[name], truth.measurable[name], truth.viewable[name]) for name in truth.served}
    sent, stop = [0], threading.Event()

    def a_thousand_a_second() -> Iterator[tuple[str, dict[str, Any]]]:
        while not stop.wait(0.05):
            for _ in range(50):
                yield render(sent[0], now_ms())
                sent[0] += 1

    sender = threading.Thread(target=send, args=(broker.bootstrap, topics + "renders", a_thousand_a_second()))
    sender.start()
    try:
        with WorkerProcess(broker.bootstrap, topics, **SESSION) as doomed:
            wait_until(lambda: (doomed.metric("streams_remembered_impressions") or 0) > PRELOADED, "all is remembered")
            before = consumed(doomed)
            doomed.kill()
        began = time.monotonic()
        with WorkerProcess(broker.bootstrap, topics, **SESSION) as heir:
            wait_until(lambda: consumed(heir) > before, "counting goes on")
            seconds = time.monotonic() - began
            stop.set()
            sender.join()
            totals["spring"] = (sent[0], 0, 0)
            # All at once: those of other partitions may be on their way still when the newest event has been counted.
            wait_until(lambda: heir.totals() == totals, "all of it is counted, and once")
            assert heir.terminate()[0] == 0
    finally:
        stop.set()
        sender.join()
    print(f"killed with {PRELOADED:,} remembered: counting went on after {seconds:.1f} s")
    assert seconds < REMEMBERS_S


@pytest.mark.parametrize("step", ["journal", "partials", "rows"])
def test_a_worker_that_sleeps_through_its_session_with_something_to_write_never_writes_it_and_ends(
    step: str,
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    with (
        load(broker, topics, tmp_path, rate=2_000) as running,
        WorkerProcess(broker.bootstrap, topics, crash_at=f"{step}:4:SIGSTOP", **SESSION) as old,
    ):
        old.wait_asleep()
        with WorkerProcess(broker.bootstrap, topics, **SESSION) as new:
            wait_until(lambda: new.metric("streams_partitions_assigned") == PARTITIONS, "another one has taken over")
            known = consumed(new)
            wait_until(lambda: consumed(new) > known + 5_000, "and counts")
            old.signal(signal.SIGCONT)
            assert old.wait() == 1
            assert any("others may own its partitions" in line for line in old.log), old.log[-5:]
            truth = running.stop()
            assert_settles(truth, new)
            assert new.terminate()[0] == 0
    assert_as_recounted(broker.bootstrap, topics, PARTITIONS, truth)
    assert_spoken_in_turn(broker, topics)


def test_a_worker_that_sleeps_through_its_session_with_all_written_ends_or_is_a_member_again(
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    with WorkerProcess(broker.bootstrap, topics, idle="0", **SESSION) as old:
        with load(broker, topics, tmp_path, rate=2_000) as running:
            wait_until(lambda: consumed(old) > 5_000, "it is at work")
            truth = running.stop()
        assert_settles(truth, old)
        time.sleep(3 * ROLLUP_COMMIT_S)  # what is shown is not all written yet
        old.signal(signal.SIGSTOP)
        with WorkerProcess(broker.bootstrap, topics, idle="0", **SESSION) as new:
            wait_until(lambda: new.metric("streams_partitions_assigned") == PARTITIONS, "another one has taken over")
            assert_settles(truth, new)
            old.signal(signal.SIGCONT)
            # Which comes first when it wakes up: what the group says of it, or what the new owner has told stage 2?
            half = PARTITIONS // 2
            wait_until(lambda: new.metric("streams_partitions_assigned") == half or old.code() == 1, "it was told")
            members = [new] if old.code() == 1 else [old, new]
            assert_settles(truth, *members)
            assert all(worker.terminate()[0] == 0 for worker in members)
    assert_as_recounted(broker.bootstrap, topics, PARTITIONS, truth)
    assert_spoken_in_turn(broker, topics)


def assert_spoken_in_turn(broker: EmbeddedBroker, prefix: str) -> None:
    """Of each partition, no owner has told the other stage anything after a later one did."""
    epochs: dict[tuple[int, int], int] = {}
    for record in sorted(read_topic(broker.bootstrap, prefix + PARTIALS, PARTITIONS), key=place):
        partial = decode_partial(record.value())
        source = (record.partition(), partial.partition)
        assert partial.head.epoch >= epochs.get(source, 0), "an old owner spoke after the new one"
        epochs[source] = partial.head.epoch


LEAVES_S = 5.0
LONG_SESSION = {"session_timeout": "12s"}
"""What ends sooner has not waited until Kafka held somebody for dead."""


def leaves(worker: WorkerProcess) -> None:
    code, seconds = worker.terminate()
    errors = [line for line in worker.log if '"level": "error"' in line and "Group Coordinator Request" not in line]
    assert (code, seconds < LEAVES_S, errors) == (0, True, []), f"{seconds:.1f} s\n" + "\n".join(worker.log)


def test_a_worker_that_is_told_to_stop_at_any_moment_of_its_start_leaves_the_group_to_the_others(
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
) -> None:
    with WorkerProcess(broker.bootstrap, topics, **LONG_SESSION) as stays:
        stays.ready()
        for tenths in range(15):
            with WorkerProcess(broker.bootstrap, topics, **LONG_SESSION) as comes:
                time.sleep(tenths / 10)
                leaves(comes)
            wait_until(lambda: stays.metric("streams_partitions_assigned") == PARTITIONS, "all is owned", LEAVES_S)
        leaves(stays)


def test_workers_that_are_told_to_stop_while_a_rebalance_waits_for_a_dead_one_leave_at_once(
    broker: EmbeddedBroker,
    topics: str,  # noqa: F811
) -> None:
    with WorkerProcess(broker.bootstrap, topics, **LONG_SESSION) as stays:
        with WorkerProcess(broker.bootstrap, topics, **LONG_SESSION) as dies:
            stays.ready()
            dies.ready()
            dies.kill()
        with WorkerProcess(broker.bootstrap, topics, **LONG_SESSION) as comes:
            wait_until(lambda: stays.get("/readyz")[0] == 503, "it waits for the dead one")
            leaves(comes)
        leaves(stays)


ROUNDS = 20
MOST = 4
TAKES_OVER_S = 40.0


def owners(workers: list[WorkerProcess]) -> list[tuple[str, str]]:
    """Every (topic, partition) that a worker owns; twice if two do."""
    samples = (sample for worker in workers for sample in worker.samples())
    return [(s.labels["topic"], s.labels["partition"]) for s in samples if s.name == "streams_consumer_lag"]


def exported(workers: list[WorkerProcess]) -> list[str]:
    """Every series of a campaign that a worker exports; twice if two do."""
    samples = (sample for worker in workers for sample in worker.samples())
    return [f"{s.name}{sorted(s.labels.items())}" for s in samples if s.name.startswith("ads_")]


def test_20_rounds_of_workers_that_join_leave_and_die_leave_one_owner_of_everything(
    broker: EmbeddedBroker, topic_prefix: str, tmp_path: Path
) -> None:
    partitions = 4
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, partitions))
    everything = {(topic, str(number)) for topic in (*TOPICS, PARTIALS) for number in range(partitions)}
    random, workers = Random(17), list[WorkerProcess]()

    def is_settled() -> bool:
        owned, series = owners(workers), exported(workers)
        return set(owned) == everything and len(owned) == len(everything) and len(series) == len(set(series))

    def is_shared() -> bool:
        return all(owners([worker]) for worker in workers) and is_settled()

    try:
        with load(broker, topic_prefix, tmp_path, rate=1_000) as running:
            for number in range(ROUNDS):
                if len(workers) < 2 or (len(workers) < MOST and random.random() < 0.5):
                    workers.append(WorkerProcess(broker.bootstrap, topic_prefix, **SESSION).__enter__())
                else:
                    leaving = workers.pop(random.randrange(len(workers)))
                    if number % 2:
                        assert leaving.terminate()[0] == 0, "\n".join(leaving.log[-30:])
                    leaving.kill()
                # Who has just come owns nothing for a second or two: in half of the rounds the next change meets that.
                is_so = random.choice((is_settled, is_shared))
                wait_until(is_so, f"every partition and gauge has one owner in round {number}", TAKES_OVER_S)
                before = sum(map(consumed, workers))
                wait_until(lambda b=before: sum(map(consumed, workers)) > b, "counting goes on")  # type: ignore[misc]
            truth = running.stop()
        wait_until(is_shared, "the last that came has its share", TAKES_OVER_S)
        assert_settles(truth, *workers)
        assert is_settled()
        assert all(worker.terminate()[0] == 0 for worker in workers)
        assert_as_recounted(broker.bootstrap, topic_prefix, partitions, truth)
    finally:
        for worker in workers:
            worker.kill()


def place(record: Any) -> tuple[int, int]:
    return record.partition(), record.offset()
