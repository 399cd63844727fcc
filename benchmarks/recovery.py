"""Recovery: the real worker on the journals of many impressions, and stock Faust's on a table with a key each."""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.journal import preload
from benchmarks.page import Page
from benchmarks.processes import cpu_s, create_topics, resident_mib, started, worker
from benchmarks.report import exact_line
from streams.kafka.broker import EmbeddedBroker

STOCK_KEYS = 200_000


class Recovery(NamedTuple):
    """One measured recovery."""

    impressions: int
    seconds: float
    """From the assignment of partitions to the claim."""
    cpu_s: float
    bytes_each: float
    """Resident memory of the worker less that of one without any state, for each impression."""
    reported_each: float
    """What the worker itself says of it."""
    stock_per_s: float
    """Keys a second that stock Faust recovers."""
    exact: bool

    @property
    def per_s(self) -> float:
        """Impressions a second."""
        return self.impressions / self.seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--renders", type=int, default=10_000_000, help="impressions (default %(default)s)")


def measure(options: argparse.Namespace) -> list[Recovery]:
    """Measure as many recoveries as asked for."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        return [_run(broker, f"run{n}-", options.renders, options.partitions) for n in range(options.runs)]


def summary(runs: list[Recovery]) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    return {"runs": [run._asdict() for run in runs]}


def show(runs: list[Recovery]) -> None:
    """Print the result."""
    for run in runs:
        print(
            f"{run.impressions:,} impressions recovered in {run.seconds:.2f} s, {run.cpu_s:.2f} CPU-s;"
            f" {run.per_s:,.0f}/s;"
            f" {run.bytes_each:.1f} bytes each resident, {run.reported_each:.1f} by the worker's own account;"
            f" stock Faust {run.stock_per_s:,.0f} keys/s, {run.per_s / run.stock_per_s:.0f} times slower"
        )
    print(exact_line(run.exact for run in runs))


def _run(broker: EmbeddedBroker, prefix: str, impressions: int, partitions: int) -> Recovery:
    """Measure a worker that has so much to recover, one that has nothing, and stock Faust."""
    empty, full = prefix + "empty-", prefix + "full-"
    for one in (empty, full):
        asyncio.run(create_topics(broker.bootstrap, one, partitions))
    truth = preload(broker.bootstrap, full, impressions, partitions, int(time.time() * 1000))
    nothing = _recovered(broker, empty)
    found = _recovered(broker, full)
    return Recovery(
        impressions,
        found.page.total("streams_recovery_duration_seconds"),
        found.cpu_s - nothing.cpu_s,
        (found.mib - nothing.mib) * (1 << 20) / impressions,
        found.page.total("streams_remembered_bytes") / impressions,
        _stock(broker),
        exact=found.page.total("streams_remembered_impressions") == impressions == truth.served.total()
        and found.page.by_campaign("ads_served_impressions_total") == truth.served,
    )


class _Recovered(NamedTuple):
    page: Page
    cpu_s: float
    mib: float


def _recovered(broker: EmbeddedBroker, prefix: str) -> _Recovered:
    with worker(broker, prefix) as one:
        one.recovered()
        cpu = cpu_s(one.pid)
        time.sleep(3)  # what is counted is told to stage 2, and the gauges show it
        return _Recovered(one.page(), cpu, resident_mib(one.pid))


def _stock(broker: EmbeddedBroker) -> float:
    with started("-m", "benchmarks.stock", str(STOCK_KEYS), broker=broker, prefix="") as stock:
        lines = [line for line in stock.stdout or () if line[0].isdigit()]
        keys, seconds = lines[-1].split()
    if int(keys) != STOCK_KEYS:
        raise RuntimeError(f"stock Faust recovered {keys} of {STOCK_KEYS} keys")
    return STOCK_KEYS / float(seconds)
