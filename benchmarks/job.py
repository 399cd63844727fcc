"""The whole job: the real worker process on a load that lies ready in Kafka, and beside it the floor.

The floor is what nobody who uses aiokafka can pass: fetch and decode, without counting anything. Stock Faust counts a
sample. With `--peers`, other stream processors do the job on the same load in the same run.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import peers
from benchmarks.load import Load, Truth, produce
from benchmarks.pace import Pace, pace
from benchmarks.processes import create_topics, room_for, started, worker
from benchmarks.report import column, exact_line, median, spread
from streams.kafka.broker import EmbeddedBroker

SAMPLE: Final = 10_000
"""Renders that stock Faust does."""


class Floor(NamedTuple):
    """One run of the floor."""

    events_per_s: float
    cpu_s_per_million: float
    peak_mib: int


class Stock(NamedTuple):
    """One run of stock Faust, on a sample of its own."""

    events_per_s: float
    cpu_s_per_million: float
    peak_mib: int
    exact: bool


class Result(NamedTuple):
    """All on one load, each run a pair, and where asked for with the peers by their names."""

    load: Load
    workers: list[Pace]
    floors: list[Floor]
    stocks: list[Stock]
    peers: list[dict[str, peers.PeerRun]]

    @property
    def ratios(self) -> list[float]:
        """The worker's rate as a share of the floor's."""
        return [own.events_per_s / floor.events_per_s for own, floor in zip(self.workers, self.floors, strict=True)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--renders", type=int, default=1_500_000, help="impressions in the load (default %(default)s)")
    parser.add_argument("--peers", action="store_true", help="let peers do the job too (needs a JDK and Maven)")


def measure(options: argparse.Namespace) -> Result:
    """Measure the worker and the floor on the same load, as often as asked for."""
    load = Load.until_now(options.renders)
    result = Result(load, [], [], [], [])
    try:
        _measure(options, result)
    except peers.PeerError as error:
        raise SystemExit(str(error)) from None
    return result


def _measure(options: argparse.Namespace, result: Result) -> None:
    load = result.load
    if options.peers:
        peers.prepare()
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        for number in range(options.runs):
            prefix = f"run{number}-"
            asyncio.run(create_topics(broker.bootstrap, prefix, options.partitions))
            truth = produce(broker.bootstrap, prefix, load)
            with worker(broker, prefix, max_remembered=room_for(load.renders)) as one:
                result.workers.append(pace(broker, [one], truth))
            result.floors.append(_floor(broker, prefix, truth))
            result.stocks.append(_stock(broker, f"sample{number}-", options.partitions))
            if options.peers:
                result.peers.append(peers.run(broker, prefix, truth, options.partitions))


def _floor(broker: EmbeddedBroker, prefix: str, truth: Truth) -> Floor:
    with started("-m", "benchmarks.floor", str(truth.events), broker=broker, prefix=prefix) as process:
        line = process.stdout.readline().split() if process.stdout else []
        events, seconds, cpu = int(line[0]), float(line[1]), float(line[2])
    if events != truth.events:
        raise RuntimeError(f"the floor read {events:,} of {truth.events:,} events")
    return Floor(events / seconds, cpu / events * 1e6, int(line[3]))


def _stock(broker: EmbeddedBroker, prefix: str, partitions: int) -> Stock:
    asyncio.run(create_topics(broker.bootstrap, prefix, partitions))
    truth = produce(broker.bootstrap, prefix, Load.until_now(SAMPLE))
    arguments = ("-m", "benchmarks.stock_job", str(truth.events), str(partitions))
    with started(*arguments, broker=broker, prefix=prefix) as process:
        line = next((line for line in process.stdout or () if line.startswith("{")), None)
    if line is None:
        raise RuntimeError("stock Faust ended before it had counted its sample")
    told = json.loads(line)
    counted = [Counter(told[figure]) for figure in ("served", "measurable", "viewable")]
    return Stock(
        told["events"] / told["seconds"],
        told["cpu_s"] / told["events"] * 1e6,
        told["peak_mib"],
        counted == [truth.served, truth.measurable, truth.viewable],
    )


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
        "stock_faust_events_per_s": median(column(result.stocks, "events_per_s")),
        "exact": all(column(workers, "exact")),
    } | ({"peers": {name: _peer_summary(runs) for name, runs in _by_peer(result)}} if result.peers else {})


def _by_peer(result: Result) -> list[tuple[str, list[peers.PeerRun]]]:
    return [(name, [each[name] for each in result.peers]) for name in (result.peers[0] if result.peers else ())]


def _peer_summary(runs: list[peers.PeerRun]) -> dict[str, Any]:
    figures = ("warm_events_per_s", "cold_events_per_s", "cpu_s_per_million", "broker_cpu_s_per_million")
    return {figure: median(column(runs, figure)) for figure in figures} | {
        "peak_mib": max(column(runs, "peak_mib")),
        "exact": all(column(runs, "exact")),
    }


def show(result: Result) -> None:
    """Print the result."""
    print(result.load)
    print(f"stock Faust does a sample of {SAMPLE:,} renders")
    for name, runs in (("worker", result.workers), ("floor", result.floors), ("stock", result.stocks)):
        print(
            f"{name:7} {spread(column(runs, 'events_per_s'))} events/s,"
            f" {spread(column(runs, 'cpu_s_per_million'), '.2f')} CPU-s a million, peak"
            f" {max(column(runs, 'peak_mib'))} MiB"
        )
    broker = spread(column(result.workers, "broker_cpu_s_per_million"), ".2f")
    print(f"broker  {broker} CPU-s a million beside the worker")
    print(f"ratio to floor {spread(result.ratios, '.2f')}, {len(result.workers)} runs")
    print(exact_line(column(result.workers, "exact")))
    print(f"stock Faust: exact in {sum(column(result.stocks, 'exact'))} of {len(result.stocks)} runs")
    for name, peer_runs in _by_peer(result):
        print(
            f"{name}: {spread(column(peer_runs, 'warm_events_per_s'))} events/s warm,"
            f" {spread(column(peer_runs, 'cold_events_per_s'))} from its start,"
            f" {spread(column(peer_runs, 'cpu_s_per_million'), '.2f')} CPU-s a million,"
            f" the broker's {spread(column(peer_runs, 'broker_cpu_s_per_million'), '.2f')},"
            f" peak {max(column(peer_runs, 'peak_mib'))} MiB; {exact_line(column(peer_runs, 'exact'))}"
        )
