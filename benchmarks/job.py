"""The whole job: the real worker process on a load that lies ready in Kafka, and beside it the floor.

The floor is what nobody who uses aiokafka can pass: fetch and decode, without counting anything.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import Load, Truth, produce
from benchmarks.pace import Pace, pace
from benchmarks.processes import create_topics, started, worker
from benchmarks.report import column, exact_line, median, spread
from streams.kafka.broker import EmbeddedBroker


class Floor(NamedTuple):
    """One run of the floor."""

    events_per_s: float
    cpu_s_per_million: float
    peak_mib: int


class Result(NamedTuple):
    """Both on one load, each run a pair."""

    load: Load
    workers: list[Pace]
    floors: list[Floor]

    @property
    def ratios(self) -> list[float]:
        """The worker's rate as a share of the floor's."""
        return [own.events_per_s / floor.events_per_s for own, floor in zip(self.workers, self.floors, strict=True)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--renders", type=int, default=1_000_000, help="impressions in the load (default %(default)s)")


def measure(options: argparse.Namespace) -> Result:
    """Measure the worker and the floor on the same load, as often as asked for."""
    load = Load.until_now(options.renders)
    result = Result(load, [], [])
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        for number in range(options.runs):
            prefix = f"run{number}-"
            asyncio.run(create_topics(broker.bootstrap, prefix, options.partitions))
            truth = produce(broker.bootstrap, prefix, load)
            with worker(broker, prefix) as one:
                result.workers.append(pace(broker, [one], truth))
            result.floors.append(_floor(broker, prefix, truth))
    return result


def _floor(broker: EmbeddedBroker, prefix: str, truth: Truth) -> Floor:
    with started("-m", "benchmarks.floor", str(truth.events), broker=broker, prefix=prefix) as process:
        line = process.stdout.readline().split() if process.stdout else []
        events, seconds, cpu = int(line[0]), float(line[1]), float(line[2])
    if events != truth.events:
        raise RuntimeError(f"the floor read {events:,} of {truth.events:,} events")
    return Floor(events / seconds, cpu / events * 1e6, int(line[3]))


def summary(result: Result) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    workers, floors = result.workers, result.floors
    return {
        "load": str(result.load),
        "runs": len(workers),
        "events_per_s": median(column(workers, "events_per_s")),
        "cpu_s_per_million": median(column(workers, "cpu_s_per_million")),
        "broker_cpu_s_per_million": median(column(workers, "broker_cpu_s_per_million")),
        "peak_mib": max(column(workers, "peak_mib")),
        "floor_events_per_s": median(column(floors, "events_per_s")),
        "ratio_to_floor": median(result.ratios),
        "exact": all(column(workers, "exact")),
    }


def show(result: Result) -> None:
    """Print the result."""
    print(result.load)
    for name, runs in (("worker", result.workers), ("floor", result.floors)):
        print(
            f"{name:7} {spread(column(runs, 'events_per_s'))} events/s,"
            f" {spread(column(runs, 'cpu_s_per_million'), '.2f')} CPU-s a million, peak"
            f" {max(column(runs, 'peak_mib'))} MiB"
        )
    broker = spread(column(result.workers, "broker_cpu_s_per_million"), ".2f")
    print(f"broker  {broker} CPU-s a million beside the worker")
    print(f"ratio to floor {spread(result.ratios, '.2f')}, {len(result.workers)} runs")
    print(exact_line(column(result.workers, "exact")))
