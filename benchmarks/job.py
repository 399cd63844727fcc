"""The whole job: the real worker process on a load that lies ready in Kafka, and beside it the floor.

The floor is what nobody who uses aiokafka can pass: fetch and decode, without counting anything.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import Truth, produce
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.topics import TopicAdmin, all_topics

_CLOCK = os.sysconf("SC_CLK_TCK")
_SETTLE_S = 30.0
_SCRAPE_S = 1.0


class Run(NamedTuple):
    """One measured run."""

    events_per_s: float
    cpu_s_per_million: float
    broker_cpu_s_per_million: float
    peak_mib: int
    exact: bool


def run(broker: EmbeddedBroker, prefix: str, renders: int, partitions: int) -> tuple[Run, Run]:
    """Measure the worker and the floor on the same load."""
    asyncio.run(_create(broker.bootstrap, prefix, partitions))
    truth = produce(broker.bootstrap, prefix, renders)
    return _worker(broker, prefix, truth), _floor(broker, prefix, truth)


async def _create(bootstrap: str, prefix: str, partitions: int) -> None:
    async with TopicAdmin(bootstrap) as admin:
        await admin.create(all_topics(prefix, prefix + "impression-streams"), partitions)


class _Moment(NamedTuple):
    """How far the worker was at a scrape, and the CPU seconds that it and the broker had used."""

    at: float
    consumed: int
    cpu_s: float
    broker_cpu_s: float


def _worker(broker: EmbeddedBroker, prefix: str, truth: Truth) -> Run:
    with _process("-m", "streams.cli", "worker", "--http-port", "0", broker=broker, prefix=prefix) as process:
        url = _url(process)
        moments = [_moment(url, process.pid, broker.pid)]
        while moments[-1].consumed < truth.events:
            time.sleep(_SCRAPE_S)
            moments.append(_moment(url, process.pid, broker.pid))
        # Steady: neither the start nor the last scrape, after which there was nothing left to do.
        first, last = next(moment for moment in moments if moment.consumed), moments[-2]
        done = last.consumed - first.consumed
        return Run(
            done / (last.at - first.at),
            (last.cpu_s - first.cpu_s) / done * 1e6,
            (last.broker_cpu_s - first.broker_cpu_s) / done * 1e6,
            _peak_mib(process.pid),
            _settles(url, truth),
        )


def _moment(url: str, worker: int, broker: int) -> _Moment:
    consumed = sum(sample.value for sample in _samples(url) if sample.name == "streams_events_consumed_total")
    return _Moment(time.monotonic(), int(consumed), _cpu_s(worker), _cpu_s(broker))


def _floor(broker: EmbeddedBroker, prefix: str, truth: Truth) -> Run:
    with _process("-m", "benchmarks.floor", str(truth.events), broker=broker, prefix=prefix) as process:
        broker_cpu = _cpu_s(broker.pid)
        line = process.stdout.readline().split() if process.stdout else []
        events, seconds, cpu = int(line[0]), float(line[1]), float(line[2])
        broker_used = _cpu_s(broker.pid) - broker_cpu
        exact = events == truth.events
        return Run(events / seconds, cpu / events * 1e6, broker_used / events * 1e6, int(line[3]), exact)


@contextmanager
def _process(*arguments: str, broker: EmbeddedBroker, prefix: str) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"STREAMS_BROKER": broker.bootstrap, "STREAMS_TOPIC_PREFIX": prefix}
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _url(process: "subprocess.Popen[str]") -> str:
    for line in process.stdout or ():
        if '"url"' in line:
            return line.split('"url": "')[1].split('"')[0]
    raise RuntimeError("the worker did not start")


def _samples(url: str) -> list[Any]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        return [sample for family in text_string_to_metric_families(page.read().decode()) for sample in family.samples]


def _settles(url: str, truth: Truth) -> bool:
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        if _totals(_samples(url)) == [truth.served, truth.measurable, truth.viewable]:
            return True
        time.sleep(0.5)
    return False


def _totals(samples: list[Any]) -> list[Counter[str]]:
    found = {name: Counter[str]() for name in ("served", "measurable", "viewable")}
    for sample in samples:
        for name, totals in found.items():
            if sample.name == f"ads_{name}_impressions_total":
                totals[sample.labels["campaign"]] += int(sample.value)
    return list(found.values())


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK


def _peak_mib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))
