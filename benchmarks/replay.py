"""A replay of a load that lies in Kafka, at max speed, beside the worker on the same load.

The worker's rate is its steady one; the replay's is of the whole command: its start, its checkpoints and its report.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import Load, Truth, produce
from benchmarks.pace import Pace, pace
from benchmarks.processes import create_topics, worker
from benchmarks.report import column, exact_line, median, spread
from streams.kafka.broker import EmbeddedBroker


class Replay(NamedTuple):
    """One replay, its start and its report included."""

    events_per_s: float
    cpu_s_per_million: float
    peak_mib: int
    exact: bool


class Result(NamedTuple):
    """Both on one load, each run a pair."""

    load: Load
    workers: list[Pace]
    replays: list[Replay]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--renders", type=int, default=1_000_000, help="impressions in the load (default %(default)s)")


def measure(options: argparse.Namespace) -> Result:
    """Measure the worker and a replay on the same load, as often as asked for."""
    result = Result(Load.until_now(options.renders), [], [])
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        for number in range(options.runs):
            prefix = f"run{number}-"
            asyncio.run(create_topics(broker.bootstrap, prefix, options.partitions))
            truth = produce(broker.bootstrap, prefix, result.load)
            with worker(broker, prefix) as one:
                result.workers.append(pace(broker, [one], truth))
            result.replays.append(_replay(broker, prefix, truth))
    return result


def _replay(broker: EmbeddedBroker, prefix: str, truth: Truth) -> Replay:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        settings = {"STREAMS_BROKER": broker.bootstrap, "STREAMS_TOPIC_PREFIX": prefix, "STREAMS_CACHE": folder}
        command = [sys.executable, "-m", "streams.cli", "replay", "--report", str(report), "--json"]
        began = time.monotonic()
        output = os.open(os.devnull, os.O_WRONLY)
        pid = os.posix_spawn(
            sys.executable, command, os.environ | settings, file_actions=[(os.POSIX_SPAWN_DUP2, output, 1)]
        )
        _, status, used = os.wait4(pid, 0)
        seconds = time.monotonic() - began
        os.close(output)
        if status:
            raise RuntimeError(f"streams replay ended with {os.waitstatus_to_exitcode(status)}")
        told = json.loads(report.read_bytes())
    cpu = used.ru_utime + used.ru_stime
    return Replay(
        truth.events / seconds, cpu / truth.events * 1e6, used.ru_maxrss // 1024, _is_exact(told["campaigns"], truth)
    )


def _is_exact(campaigns: list[dict[str, Any]], truth: Truth) -> bool:
    names = ("served", "measurable", "viewable")
    found = {row["campaign_id"]: tuple(row[name] for name in names) for row in campaigns}
    expected = {name: (truth.served[name], truth.measurable[name], truth.viewable[name]) for name in truth.served}
    return found == expected


def summary(result: Result) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    figures = ("events_per_s", "cpu_s_per_million")
    told: dict[str, Any] = {"load": str(result.load), "runs": len(result.replays)}
    told["worker"] = {figure: median(column(result.workers, figure)) for figure in figures}
    told["replay"] = {figure: median(column(result.replays, figure)) for figure in figures}
    told["peak_mib"] = max(column(result.replays, "peak_mib"))
    return told | {"exact": all(column(result.workers, "exact")) and all(column(result.replays, "exact"))}


def show(result: Result) -> None:
    """Print the result."""
    print(result.load)
    for name, runs in (("worker", result.workers), ("replay", result.replays)):
        print(
            f"{name:7} {spread(column(runs, 'events_per_s'))} events/s,"
            f" {spread(column(runs, 'cpu_s_per_million'), '.2f')} CPU-s a million, peak"
            f" {max(column(runs, 'peak_mib'))} MiB"
        )
    print(exact_line([*column(result.workers, "exact"), *column(result.replays, "exact")]))
