"""A broker that is gone, slow, or comes back: counting pauses, says so, and goes on; the numbers stay the truth."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from streams.kafka.broker import EmbeddedBroker
from tests.conftest import create_topics
from tests.proxy import Proxy
from tests.recount import assert_as_recounted
from tests.test_crashes import assert_settles, consumed
from tests.test_worker import PARTITIONS
from tests.worker import WorkerProcess, wait_until

EVENTS = 400_000
GOES_ON_S = 15.0
SILENCE = "the broker does not answer"


def loaded(broker: EmbeddedBroker, folder: Path, events: int = EVENTS) -> dict[str, Any]:
    """Put events on the topics and return their truth."""
    asyncio.run(create_topics(broker.bootstrap, "", PARTITIONS))
    truth = folder / "truth.json"
    flags = ["--events", str(events), "--rate", str(events), "--seed", "3", "--truth", str(truth)]
    command = [sys.executable, "-m", "streams.cli", "generate", "--broker", broker.bootstrap, *flags]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    told: dict[str, Any] = json.loads(truth.read_text())
    return told


def sent(truth: dict[str, Any]) -> int:
    return sum(one["sent"] for one in truth["events"].values())


def is_ready(worker: WorkerProcess) -> bool:
    return worker.get("/readyz")[0] == 200


def says_why(worker: WorkerProcess, reason: str) -> bool:
    code, text = worker.get("/readyz")
    return code == 503 and reason in text


def assert_goes_on(worker: WorkerProcess, since: float, before: int) -> None:
    wait_until(lambda: is_ready(worker) and consumed(worker) > before, "it counts again")
    assert time.monotonic() - since < GOES_ON_S


def test_a_worker_waits_for_a_broker_that_is_absent_and_says_so(tmp_path: Path) -> None:
    broker = EmbeddedBroker(0, tmp_path)
    with broker:
        asyncio.run(create_topics(broker.bootstrap, "", PARTITIONS))
    with WorkerProcess(broker.bootstrap, "") as told_to_stop:
        assert told_to_stop.get("/healthz") == (200, "alive\n")
        assert told_to_stop.terminate()[0] == 0
    with WorkerProcess(broker.bootstrap, "") as worker:
        time.sleep(3)
        assert worker.get("/healthz") == (200, "alive\n")
        assert says_why(worker, "the broker has not answered yet")
        assert worker.metric("streams_partitions_assigned") == 0
        assert len([line for line in worker.log if "trying again" in line]) < 5, "ever more seldom"
        with broker:
            since = time.monotonic()
            worker.ready()
            assert time.monotonic() - since < GOES_ON_S
            assert worker.terminate()[0] == 0


@pytest.mark.parametrize("away_s", [5, 65])
def test_a_broker_that_stops_and_comes_back_costs_nothing_but_time(tmp_path: Path, away_s: int) -> None:
    broker = EmbeddedBroker(0, tmp_path)
    with broker:
        truth = loaded(broker, tmp_path)
        worker = WorkerProcess(broker.bootstrap, "").__enter__()
        wait_until(lambda: consumed(worker) > 0, "it is at work")
        began, first = time.monotonic(), consumed(worker)
        wait_until(lambda: consumed(worker) > first + EVENTS // 10, "it is at work")
        rate = (consumed(worker) - first) / (time.monotonic() - began)
    with worker:
        since = time.monotonic()
        wait_until(lambda: says_why(worker, SILENCE), "it says that the broker is gone")
        time.sleep(max(0.0, away_s - (time.monotonic() - since)))
        assert worker.get("/healthz")[0] == 200
        before = consumed(worker)
        assert before < EVENTS, "work was left when the broker stopped"
        with broker:
            back = time.monotonic()
            assert_goes_on(worker, back, before)
            wait_until(lambda: consumed(worker) == sent(truth), "all is counted")
            seconds, at_that_rate = time.monotonic() - back, (sent(truth) - before) / rate
            assert seconds < GOES_ON_S + 3 * at_that_rate, "it does not come back to its rate"
            assert_settles(truth, worker)
            assert len(worker.log) < 30 * away_s, "it does not flood the log"
            assert worker.terminate()[0] == 0
            assert_as_recounted(broker.bootstrap, "", PARTITIONS, truth)


def test_a_worker_that_is_told_to_stop_while_the_broker_is_gone_ends_in_10_s_and_loses_nothing(tmp_path: Path) -> None:
    broker = EmbeddedBroker(0, tmp_path)
    with broker:
        truth = loaded(broker, tmp_path)
        worker = WorkerProcess(broker.bootstrap, "").__enter__()
        wait_until(lambda: consumed(worker) > EVENTS // 10, "it is at work")
    with worker:
        code, seconds = worker.terminate()
        assert (code, seconds < 10) == (1, True)
        assert "stopped without a last commit" in worker.log[-1]
    with broker, WorkerProcess(broker.bootstrap, "") as heir:
        heir.ready()
        assert_settles(truth, heir)
        assert heir.terminate()[0] == 0
        assert_as_recounted(broker.bootstrap, "", PARTITIONS, truth)


def test_connections_that_are_slow_cut_and_refused_for_a_while_lose_and_double_nothing(tmp_path: Path) -> None:
    with Proxy() as proxy, EmbeddedBroker(0, tmp_path, advertised=proxy.port) as broker:
        proxy.target = broker.port
        truth = loaded(broker, tmp_path)
        # Slow from the start: at its full speed the worker is done before it has been cut three times.
        proxy.delay_s = 0.2
        with WorkerProcess(f"127.0.0.1:{proxy.port}", "", session_timeout="30s") as worker:
            wait_until(lambda: consumed(worker) > EVENTS // 10, "it is at work")
            for _ in range(3):
                proxy.cut()
                time.sleep(1)
            proxy.is_away = True
            proxy.cut()
            time.sleep(3)
            before, since = consumed(worker), time.monotonic()
            assert before < EVENTS, "work was left when the connections were cut"
            proxy.is_away = False
            assert_goes_on(worker, since, before)
            time.sleep(3)
            assert is_ready(worker), "it stays so, slow as the connections are"
            proxy.delay_s = 0
            assert_settles(truth, worker)
            assert worker.terminate()[0] == 0
        assert_as_recounted(f"127.0.0.1:{proxy.port}", "", PARTITIONS, truth)


def test_a_worker_that_is_cut_off_for_longer_than_its_session_ends_with_one_line_and_another_one_goes_on(
    tmp_path: Path,
) -> None:
    with Proxy() as proxy, EmbeddedBroker(0, tmp_path, advertised=proxy.port) as broker:
        proxy.target = broker.port
        truth = loaded(broker, tmp_path)
        with WorkerProcess(f"127.0.0.1:{proxy.port}", "", session_timeout="2s") as worker:
            wait_until(lambda: consumed(worker) > EVENTS // 10, "it is at work")
            proxy.is_away = True
            proxy.cut()
            time.sleep(5)
            proxy.is_away = False
            assert worker.wait() == 1
            told = [line for line in worker.log if line.startswith("streams: this worker was paused or cut off")]
            assert len(told) == 1, worker.log[-9:]
        with WorkerProcess(f"127.0.0.1:{proxy.port}", "") as heir:
            heir.ready()
            assert_settles(truth, heir)
            assert heir.terminate()[0] == 0
        assert_as_recounted(f"127.0.0.1:{proxy.port}", "", PARTITIONS, truth)
