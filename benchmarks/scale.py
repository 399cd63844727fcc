"""How the work grows: with events, campaigns, remembered impressions, one campaign that has half of all, and workers.

Each row is a load that lies ready in Kafka, counted by real workers at the steady rate that `job` measures, too.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.journal import preload
from benchmarks.load import EVENTS_A_RENDER, Load, produce
from benchmarks.pace import Pace, pace, settles
from benchmarks.processes import create_topics, worker
from benchmarks.report import column, exact_line, median, spread
from streams.kafka.broker import EmbeddedBroker

EVENTS: Final = 1_000_000
"""As many as a fast worker needs two seconds for: fewer are counted before a steady rate can be seen."""
GROWTH: Final = (1, 4, 16)
CAMPAIGNS: Final = (10, 100, 1_000, 10_000)
REMEMBERED: Final = (0, 1_000_000, 10_000_000)
WORKERS: Final = (1, 2)
LONG: Final = 2
"""Times EVENTS, where a worker joins, or where it shows after how long a scrape is due."""
RENDERS_A_SECOND: Final = 10_000
"""20,000 events a second of event time."""
NAMED: Final = 20
"""Campaigns that /metrics shows by name while the work of counting them is measured: to show 5,000 takes seconds."""
_SCRAPE_S: Final = 0.25
_MANY_SCRAPE_S: Final = 1.0
"""As often as in `job`: to look at many campaigns four times a second would be a fifth of the work."""
_NAMES_S: Final = 5.0


class Case(NamedTuple):
    """What one row measures."""

    part: str
    name: str
    load: Load
    remembered: int = 0
    workers: int = 1


class Row(NamedTuple):
    """One row, as often as it was run."""

    case: Case
    runs: list[Pace]

    @property
    def us_an_event(self) -> float:
        """Median time for an event, in microseconds."""
        return 1e6 / median(column(self.runs, "events_per_s"))


def _events(events: int) -> Iterator[Case]:
    for times in GROWTH:
        load = Load.until_now(times * events // EVENTS_A_RENDER, RENDERS_A_SECOND)
        yield Case("events", f"{times * events:,} events", load)


def _campaigns(events: int) -> Iterator[Case]:
    for number in CAMPAIGNS:
        load = Load.until_now(LONG * events // EVENTS_A_RENDER, RENDERS_A_SECOND, campaigns=number)
        yield Case("campaigns", f"{number:,} campaigns", load)


def _remembered(events: int) -> Iterator[Case]:
    for number in REMEMBERED:
        load = Load.until_now(events // EVENTS_A_RENDER, RENDERS_A_SECOND)
        yield Case("remembered", f"{number:,} remembered", load, remembered=number)


def _skew(events: int) -> Iterator[Case]:
    for skewed, name in ((False, "even"), (True, "half in one")):
        load = Load.until_now(events // EVENTS_A_RENDER, RENDERS_A_SECOND, skewed=skewed)
        yield Case("skew", name, load)


def _workers(events: int) -> Iterator[Case]:
    for number in WORKERS:
        load = Load.until_now(LONG * events // EVENTS_A_RENDER, RENDERS_A_SECOND)
        yield Case("workers", f"{number} worker{'s' if number > 1 else ''}", load, workers=number)


PARTS: Final[dict[str, Callable[[int], Iterator[Case]]]] = {
    "events": _events,
    "campaigns": _campaigns,
    "remembered": _remembered,
    "skew": _skew,
    "workers": _workers,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--events", type=int, default=EVENTS, help="of the smallest load (default %(default)s)")


def measure(options: argparse.Namespace) -> list[Row]:
    """Measure every row as often as asked for, those of a part in turns: a shared machine is not always as fast."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        for part in [options.only] if options.only else PARTS:
            turns = [_turn(broker, part, run, options) for run in range(options.runs)]
            cases = list(PARTS[part](options.events))
            rows += [Row(case, runs) for case, *runs in zip(cases, *turns, strict=True)]
    return rows


def _turn(broker: EmbeddedBroker, part: str, run: int, options: argparse.Namespace) -> list[Pace]:
    return [
        _run(broker, f"{part}{number}-run{run}-", case, options.partitions)
        for number, case in enumerate(PARTS[part](options.events))
    ]


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    return {
        "rows": [
            {"part": row.case.part, "name": row.case.name, "load": str(row.case.load), "us_an_event": row.us_an_event}
            | {"runs": [run._asdict() | {"each": [one._asdict() for one in run.each]} for run in row.runs]}
            for row in rows
        ]
    }


def show(rows: list[Row]) -> None:
    """Print the result; time for an event is compared with the first row of each part."""
    first: dict[str, Row] = {}
    for row in rows:
        runs, part = row.runs, row.case.part
        if part not in first:
            print(f"{part}: {row.case.load}, {len(runs)} runs")
        against = row.us_an_event / first.setdefault(part, row).us_an_event
        print(
            f"  {row.case.name:21} {spread(column(runs, 'events_per_s'))} events/s, {row.us_an_event:.1f} us an event"
            f" (x {against:.2f}); CPU-s a million {spread(column(runs, 'cpu_s_per_million'), '.2f')},"
            f" broker {spread(column(runs, 'broker_cpu_s_per_million'), '.2f')};"
            f" peak {max(column(runs, 'peak_mib'))} MiB"
        )
        if row.case.workers > 1:
            _show_each(row)
    print(exact_line(run.exact for row in rows for run in row.runs))


def _show_each(row: Row) -> None:
    for number, each in enumerate(zip(*column(row.runs, "each"), strict=True), 1):
        print(
            f"    worker {number}: {spread(column(each, 'events_per_s'))} events/s,"
            f" CPU-s a million {spread(column(each, 'cpu_s_per_million'), '.2f')}"
        )


def _run(broker: EmbeddedBroker, prefix: str, case: Case, partitions: int) -> Pace:
    asyncio.run(create_topics(broker.bootstrap, prefix, partitions))
    truth = produce(broker.bootstrap, prefix, case.load)
    if case.remembered:
        truth = truth.plus(preload(broker.bootstrap, prefix, case.remembered, partitions, case.load.start_ms))
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(broker, prefix, max_campaigns=str(NAMED))) for _ in range(case.workers)]
        found = pace(broker, workers, truth, _SCRAPE_S if case.load.campaigns <= NAMED else _MANY_SCRAPE_S)
    if case.load.campaigns <= NAMED:
        return found
    with worker(broker, prefix, max_campaigns=str(case.load.campaigns)) as one:  # which now shows all of them by name
        return found._replace(exact=found.exact and settles([one], truth, scrape_s=_NAMES_S))
