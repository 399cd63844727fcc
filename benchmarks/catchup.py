"""Catching up: ten minutes of events lie ready; how long until all are counted and the gauges show it, exactly.

Meanwhile /metrics is read once a second, as if by Prometheus: the slowest answer counts. Whether heartbeats were kept
is seen there too: a worker that lost its partitions, even for a moment, would have recovered them again, and
streams_recovery_duration_seconds says how long the last recovery took.
"""

import argparse
import asyncio
import tempfile
import time
from itertools import dropwhile
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.load import EVENTS_A_RENDER, Load, Truth, produce
from benchmarks.page import exact
from benchmarks.processes import Worker, cpu_s, create_topics, peak_mib, worker
from benchmarks.report import column, exact_line, spread
from streams.kafka.broker import EmbeddedBroker

EVENTS: Final = 12_000_000
RENDERS_A_SECOND: Final = 10_000
"""20,000 events a second of event time."""
_SCRAPE_S: Final = 1.0
_PATIENCE_S: Final = 600.0


class Catchup(NamedTuple):
    """One measured catch-up."""

    load: str
    events: int
    seconds: float
    """From the start of the worker process until its gauges showed all of it."""
    counting_s: float
    """The same from the first scrape at which its partitions were recovered."""
    slowest_ms: float
    """The slowest of the scrapes."""
    scrapes: int
    kept: bool
    """Whether the worker had all partitions from its first recovery to the end."""
    cpu_s_per_million: float
    """Of the worker, its start and all scrapes included."""
    broker_cpu_s_per_million: float
    peak_mib: int
    exact: bool

    @property
    def events_per_s(self) -> float:
        """Events a second of the whole time, the start of the process included."""
        return self.events / self.seconds


class Look(NamedTuple):
    """What a scrape showed."""

    at: float
    answer_ms: float
    assigned: int
    recovery_s: float
    exact: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--events", type=int, default=EVENTS, help="events that lie ready (default %(default)s)")


def measure(options: argparse.Namespace) -> list[Catchup]:
    """Measure as many catch-ups as asked for."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        return [_run(broker, f"run{n}-", options.events, options.partitions) for n in range(options.runs)]


def summary(runs: list[Catchup]) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    return {"runs": [run._asdict() for run in runs]}


def show(runs: list[Catchup]) -> None:
    """Print the result."""
    print(f"{runs[0].load}, {len(runs)} runs")
    print(
        f"{runs[0].events:,} events counted and shown {spread(column(runs, 'seconds'), '.1f')} s after its"
        f" start, {spread(column(runs, 'events_per_s'))} events/s; {spread(column(runs, 'counting_s'), '.1f')} s after"
        " the first scrape that showed its partitions"
    )
    slowest = spread(column(runs, "slowest_ms"))
    print(f"slowest answer to /metrics {slowest} ms, of {sum(column(runs, 'scrapes')):,}")
    lost = column(runs, "kept").count(False)
    print(f"heartbeats: partitions LOST in {lost} runs" if lost else "heartbeats: no partition was lost for a moment")
    print(
        f"CPU-s a million {spread(column(runs, 'cpu_s_per_million'), '.2f')}, broker"
        f" {spread(column(runs, 'broker_cpu_s_per_million'), '.2f')}; peak {max(column(runs, 'peak_mib'))} MiB"
    )
    print(exact_line(column(runs, "exact")))


def _run(broker: EmbeddedBroker, prefix: str, events: int, partitions: int) -> Catchup:
    load = Load.until_now(events // EVENTS_A_RENDER, RENDERS_A_SECOND)
    asyncio.run(create_topics(broker.bootstrap, prefix, partitions))
    truth = produce(broker.bootstrap, prefix, load)
    began, broker_cpu, million = time.monotonic(), cpu_s(broker.pid), truth.events / 1e6
    with worker(broker, prefix) as one:
        looks = _looks(one, truth, began + _PATIENCE_S)
        owning = list(dropwhile(lambda look: not look.recovery_s, looks))
        return Catchup(
            str(load),
            truth.events,
            looks[-1].at - began,
            looks[-1].at - owning[0].at,
            max(look.answer_ms for look in looks),
            len(looks),
            all((look.assigned, look.recovery_s) == (partitions, owning[0].recovery_s) for look in owning),
            cpu_s(one.pid) / million,
            (cpu_s(broker.pid) - broker_cpu) / million,
            peak_mib(one.pid),
            looks[-1].exact,
        )


def _looks(one: Worker, truth: Truth, deadline: float) -> list[Look]:
    """Scrape once a second until the page tells the truth, or patience ends."""
    looks: list[Look] = []
    due = time.monotonic()
    while not (looks and looks[-1].exact) and due < deadline:
        time.sleep(max(0.0, due - time.monotonic()))
        asked = time.monotonic()
        page = one.page()
        now = time.monotonic()
        looks.append(
            Look(
                now,
                (now - asked) * 1000,
                int(page.total("streams_partitions_assigned")),
                page.total("streams_recovery_duration_seconds"),
                exact(page, truth),
            )
        )
        due = max(due + _SCRAPE_S, now)
    return looks
