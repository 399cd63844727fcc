"""What a scrape of many campaigns costs, and how long it keeps the worker from all else; then very many campaign ids.

The longest hold is what one callback of the worker's event loop took while scrapes ran one after another: the worker
itself notes it (held.py).
"""

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import overflow
from benchmarks.held import FILE
from benchmarks.load import Load, produce
from benchmarks.overflow import Overflow
from benchmarks.pace import settles
from benchmarks.processes import Worker, cpu_s, create_topics, peak_mib, worker
from benchmarks.report import column, exact_line, median, spread
from streams.kafka.broker import EmbeddedBroker

CAMPAIGNS: Final = 5_000
RENDERS_EACH: Final = 20
"""5,000 campaigns with 20 renders each take 20 s of event time, so that they are in every window."""
SCRAPES: Final = 20
_LOOK_S: Final = 2.0
"""Between two looks at whether all is counted: each costs a scrape."""
_IDLE_S: Final = 2.0
_TOLD_S: Final = 0.01


class Scrapes(NamedTuple):
    """Scrapes one after another, of a worker that has nothing else to do."""

    cpu_ms: float
    """Of the worker for each, less what it uses when it is left alone."""
    wall_ms: list[float]
    bytes: int
    lines: int


class Named(NamedTuple):
    """A worker with many campaigns."""

    load: str
    scrapes: Scrapes
    longest_hold_ms: float
    """How long a scrape held the event loop at most."""
    peak_mib: int
    cpu_s_per_million: float
    """Of the worker until all was counted, with its start and the scrapes of who waited for that."""
    broker_cpu_s_per_million: float
    exact: bool


class Result(NamedTuple):
    """As many runs as were asked for, and one with random ids if that was."""

    named: list[Named]
    overflow: Overflow | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--campaigns", type=int, default=CAMPAIGNS, help="campaigns (default %(default)s)")
    parser.add_argument("--scrapes", type=int, default=SCRAPES, help="scrapes one after another (default %(default)s)")
    parser.add_argument("--random", type=int, default=0, metavar="IDS", help="then send so many random campaign ids")


def measure(options: argparse.Namespace) -> Result:
    """Measure scrapes as often as asked for, and once what random ids do."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        named = [_run(broker, f"run{number}-", options) for number in range(options.runs)]
        return Result(named, overflow.run(broker, options.random, options.partitions) if options.random else None)


def summary(result: Result) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    runs = [run._asdict() | {"scrapes": run.scrapes._asdict()} for run in result.named]
    return {"runs": runs, "random": result.overflow and overflow.summary(result.overflow)}


def show(result: Result) -> None:
    """Print the result."""
    if result.named:
        _show(result.named)
    if result.overflow:
        overflow.show(result.overflow)


def _show(runs: list[Named]) -> None:
    scrapes = column(runs, "scrapes")
    print(runs[0].load)
    print(f"a page has {scrapes[0].lines:,} lines, {scrapes[0].bytes:,} bytes; {len(runs)} runs")
    print(
        f"a scrape of an idle worker takes {spread(column(scrapes, 'cpu_ms'))} ms of CPU,"
        f" {spread(median(one.wall_ms) for one in scrapes)} ms until it is read, mean and median of"
        f" {len(scrapes[0].wall_ms)}"
    )
    print(f"the event loop was held for {spread(column(runs, 'longest_hold_ms'), '.1f')} ms at most meanwhile")
    print(
        f"CPU-s a million events, start and scrapes included: {spread(column(runs, 'cpu_s_per_million'), '.1f')},"
        f" broker {spread(column(runs, 'broker_cpu_s_per_million'), '.1f')}; peak {max(column(runs, 'peak_mib'))} MiB"
    )
    print(exact_line(column(runs, "exact")))


def _run(broker: EmbeddedBroker, prefix: str, options: argparse.Namespace) -> Named:
    load = Load.until_now(options.campaigns * RENDERS_EACH, campaigns=options.campaigns)
    asyncio.run(create_topics(broker.bootstrap, prefix, options.partitions))
    truth = produce(broker.bootstrap, prefix, load)
    broker_cpu = cpu_s(broker.pid)
    with tempfile.TemporaryDirectory() as folder, worker_that_notes(Path(folder), broker, prefix) as (one, held_ms):
        is_exact = settles([one], truth, scrape_s=_LOOK_S)
        million = truth.events / 1e6
        used, broker_used = cpu_s(one.pid), cpu_s(broker.pid) - broker_cpu
        held_ms()
        found = scrapes_of(one, options.scrapes)
        return Named(
            str(load),
            found,
            held_ms(),
            peak_mib(one.pid),
            used / million,
            broker_used / million,
            is_exact,
        )


def scrapes_of(one: Worker, number: int) -> Scrapes:
    """Scrape a worker that is idle so many times."""
    idle, began = cpu_s(one.pid), time.monotonic()
    time.sleep(_IDLE_S)
    idle_share = (cpu_s(one.pid) - idle) / (time.monotonic() - began)
    cpu, began = cpu_s(one.pid), time.monotonic()
    text, wall_ms = b"", []
    for _ in range(number):
        asked = time.monotonic()
        text = one.page().text
        wall_ms.append((time.monotonic() - asked) * 1000)
    used = cpu_s(one.pid) - cpu - idle_share * (time.monotonic() - began)
    return Scrapes(used / number * 1000, wall_ms, len(text), text.count(b"\n"))


@contextmanager
def worker_that_notes(
    folder: Path, broker: EmbeddedBroker, prefix: str, **settings: str
) -> Iterator[tuple[Worker, Callable[[], float]]]:
    """Start a worker; yield it and what says for how many ms its event loop was held at most since it last did."""
    told = folder / "held"
    os.environ[FILE] = str(told)

    def held_ms() -> float:
        told.unlink(missing_ok=True)
        os.kill(one.pid, signal.SIGUSR1)
        while not told.exists():
            time.sleep(_TOLD_S)
        return float(told.read_text())

    with worker(broker, prefix, module="benchmarks.held", **settings) as one:
        yield one, held_ms
