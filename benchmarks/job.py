"""The whole job: the real worker process on a load that lies ready in Kafka, and beside it the floor.

The floor is what nobody who uses aiokafka can pass: fetch and decode, without counting anything.
"""

import asyncio
import time
from collections import Counter
from typing import Any, NamedTuple

from benchmarks.load import Truth, produce
from benchmarks.processes import cpu_s, create_topics, peak_mib, samples, started, url_of
from streams.kafka.broker import EmbeddedBroker

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
    asyncio.run(create_topics(broker.bootstrap, prefix, partitions))
    truth = produce(broker.bootstrap, prefix, renders)
    return _worker(broker, prefix, truth), _floor(broker, prefix, truth)


class _Moment(NamedTuple):
    """How far the worker was at a scrape, and the CPU seconds that it and the broker had used."""

    at: float
    consumed: int
    cpu_s: float
    broker_cpu_s: float


def _worker(broker: EmbeddedBroker, prefix: str, truth: Truth) -> Run:
    with started("-m", "streams.cli", "worker", "--http-port", "0", broker=broker, prefix=prefix) as process:
        url = url_of(process)
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
            peak_mib(process.pid),
            _settles(url, truth),
        )


def _moment(url: str, worker: int, broker: int) -> _Moment:
    consumed = sum(sample.value for sample in samples(url) if sample.name == "streams_events_consumed_total")
    return _Moment(time.monotonic(), int(consumed), cpu_s(worker), cpu_s(broker))


def _floor(broker: EmbeddedBroker, prefix: str, truth: Truth) -> Run:
    with started("-m", "benchmarks.floor", str(truth.events), broker=broker, prefix=prefix) as process:
        broker_cpu = cpu_s(broker.pid)
        line = process.stdout.readline().split() if process.stdout else []
        events, seconds, cpu = int(line[0]), float(line[1]), float(line[2])
        broker_used = cpu_s(broker.pid) - broker_cpu
        exact = events == truth.events
        return Run(events / seconds, cpu / events * 1e6, broker_used / events * 1e6, int(line[3]), exact)


def _settles(url: str, truth: Truth) -> bool:
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        if _totals(samples(url)) == [truth.served, truth.measurable, truth.viewable]:
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
