"""Memory over hours: the resident memory of a real worker while as many impressions are forgotten as remembered.

The hours are of event time: some horizons of steady load lie ready and are counted as fast as it goes. What is older
than lateness and the larger horizon is forgotten, so over the last horizon memory has to be flat.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.load import Load, Truth, produce
from benchmarks.pace import PATIENCE_S, settles
from benchmarks.processes import Worker, cpu_s, create_topics, peak_mib, resident_mib, worker
from benchmarks.report import column, exact_line, spread
from streams.kafka.broker import EmbeddedBroker
from streams.settings import duration_ms

HORIZON: Final = "1h"
HORIZONS: Final = 3
SETTLING_S: Final = 120
"""The load is so much longer: a silent topic is lifted to half a minute behind the others, then finality is told."""
RENDERS_A_SECOND: Final = 1_000
IDLE: Final = "1s"
"""Nobody clicks in the load, and nothing is forgotten before a silent topic is lifted: hours pass in minutes here."""
_SAMPLE_S: Final = 1.0
_SHOWN: Final = 12
"""Samples that are printed."""


class Sample(NamedTuple):
    """What was resident when event time had come so far."""

    horizons: float
    """Event time since the start of the load."""
    resident_mib: float
    impressions: int
    reported_mib: float
    """What the worker says that the impressions take."""
    consumed: int


class Memory(NamedTuple):
    """One run."""

    load: str
    horizon: str
    empty_mib: float
    """Resident memory of a worker that has counted nothing."""
    samples: list[Sample]
    peak_mib: int
    cpu_s_per_million: float
    """Of the worker, its start and all scrapes included."""
    broker_cpu_s_per_million: float
    exact: bool

    @property
    def steady(self) -> list[Sample]:
        """The samples of the last horizon."""
        return [sample for sample in self.samples if sample.horizons >= self.samples[-1].horizons - 1]

    @property
    def slope_mib(self) -> float:
        """By how much resident memory grew in the last horizon, by a straight line through its samples."""
        return float(np.polyfit(column(self.steady, "horizons"), column(self.steady, "resident_mib"), 1)[0])

    @property
    def resident_mib(self) -> float:
        """Mean of the last horizon."""
        return float(np.mean(column(self.steady, "resident_mib")))

    @property
    def bytes_an_impression(self) -> float:
        """What is resident beyond the empty worker, for each that is remembered; means of the last horizon."""
        return (self.resident_mib - self.empty_mib) * (1 << 20) / float(np.mean(column(self.steady, "impressions")))

    @property
    def reported_an_impression(self) -> float:
        """The same by the worker's own account."""
        reported, impressions = (column(self.steady, name) for name in ("reported_mib", "impressions"))
        return float(np.sum(reported) * (1 << 20) / np.sum(impressions))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.set_defaults(runs=1)
    parser.add_argument("--horizon", default=HORIZON, help="of lateness, dedup and viewability (default %(default)s)")
    parser.add_argument(
        "--horizons", type=int, default=HORIZONS, help="how long the load is (default %(default)s of them)"
    )
    parser.add_argument(
        "--rate", type=int, default=RENDERS_A_SECOND, help="renders a second of event time (default %(default)s)"
    )


def measure(options: argparse.Namespace) -> list[Memory]:
    """Measure as often as asked for."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        return [_run(broker, f"run{number}-", options) for number in range(options.runs)]


def summary(runs: list[Memory]) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    figures = ("slope_mib", "resident_mib", "bytes_an_impression", "reported_an_impression")
    return {
        "runs": [
            run._asdict()
            | {name: getattr(run, name) for name in figures}
            | {"samples": [sample._asdict() for sample in run.samples]}
            for run in runs
        ]
    }


def show(runs: list[Memory]) -> None:
    """Print the result: of the first run also the way there."""
    first = runs[0]
    print(f"{first.load}; lateness and horizons {first.horizon}, {len(runs)} runs")
    for sample in first.samples[:: max(1, len(first.samples) // _SHOWN)]:
        print(
            f"  after {sample.horizons:.2f} x {first.horizon}: {sample.resident_mib:,.0f} MiB resident,"
            f" {sample.impressions:,} impressions, {sample.reported_mib:,.0f} MiB by the worker's account"
        )
    least, most = (find(column(first.steady, "resident_mib")) for find in (min, max))
    print(
        f"over the last {first.horizon}: {spread(column(runs, 'resident_mib'))} MiB ({least:,.0f} to {most:,.0f} in the"
        f" first run), growing by {spread(column(runs, 'slope_mib'), '+.1f')} MiB"
    )
    print(
        f"bytes resident an impression, less the {first.empty_mib:,.0f} MiB of an empty worker:"
        f" {spread(column(runs, 'bytes_an_impression'), '.1f')}; by its own account"
        f" {spread(column(runs, 'reported_an_impression'), '.1f')}; peak {max(column(runs, 'peak_mib'))} MiB"
    )
    print(
        f"CPU-s a million {spread(column(runs, 'cpu_s_per_million'), '.2f')}, broker"
        f" {spread(column(runs, 'broker_cpu_s_per_million'), '.2f')}"
    )
    print(exact_line(column(runs, "exact")))


def _run(broker: EmbeddedBroker, prefix: str, options: argparse.Namespace) -> Memory:
    horizon_ms = duration_ms(options.horizon)
    load = Load.until_now((options.horizons * horizon_ms // 1000 + SETTLING_S) * options.rate, options.rate)
    settings = dict.fromkeys(("lateness", "dedup_horizon", "viewability_horizon"), options.horizon) | {"idle": IDLE}
    empty, full = prefix + "empty-", prefix + "full-"
    for topics in (empty, full):
        asyncio.run(create_topics(broker.bootstrap, topics, options.partitions))
    with worker(broker, empty, **settings) as one:
        one.recovered()
        empty_mib = resident_mib(one.pid)
    truth = produce(broker.bootstrap, full, load)
    broker_cpu, million = cpu_s(broker.pid), truth.events / 1e6
    with worker(broker, full, **settings) as one:
        samples = _samples(one, truth, load.start_ms, horizon_ms, options.partitions)
        return Memory(
            str(load),
            options.horizon,
            empty_mib,
            samples,
            peak_mib(one.pid),
            cpu_s(one.pid) / million,
            (cpu_s(broker.pid) - broker_cpu) / million,
            settles([one], truth, in_hour=False),
        )


def _samples(one: Worker, truth: Truth, start_ms: int, horizon_ms: int, partitions: int) -> list[Sample]:
    """Look once a second until all is counted. Raises RuntimeError if nothing is any more."""
    samples: list[Sample] = []
    consumed, moved_at = 0, time.monotonic()
    while consumed < truth.events:
        time.sleep(_SAMPLE_S)
        page = one.page()
        now = page.total("streams_stream_time_seconds", topic="renders") / partitions * 1000
        samples.append(
            Sample(
                (now - start_ms) / horizon_ms,
                resident_mib(one.pid),
                int(page.total("streams_remembered_impressions")),
                page.total("streams_remembered_bytes") / (1 << 20),
                int(page.total("streams_events_consumed_total")),
            )
        )
        if samples[-1].consumed > consumed:
            consumed, moved_at = samples[-1].consumed, time.monotonic()
        elif time.monotonic() - moved_at > PATIENCE_S:
            raise RuntimeError(f"nothing is counted any more, at {consumed:,} of {truth.events:,} events")
    return [sample for sample in samples if sample.horizons >= 0]
