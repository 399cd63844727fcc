"""A worker for as long as one likes, in an open loop: are memory and descriptors flat, and are the counts exact?

Horizons and windows are of seconds, so that after SETTLED_S as much is forgotten as comes (nobody clicks, and that
topic is lifted to half a minute behind the others). Memory is flat if in the second half of the time, or from SETTLED_S
on, the line through all samples rises by no more than GROWTH_MIB. It takes three minutes until caches are full, too.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.pace import settles
from benchmarks.processes import Worker, create_topics, descriptors, line_of, peak_mib, resident_mib, started, worker
from benchmarks.report import exact_line
from benchmarks.sender import Sent, truth_of
from streams.kafka.broker import EmbeddedBroker
from streams.settings import duration_ms

RATE: Final = 5_000
FOR: Final = "2h"
SETTLED_S: Final = 60
GROWTH_MIB: Final = 16.0
_SETTINGS: Final = {
    "lateness": "10s",
    "dedup_horizon": "10s",
    "viewability_horizon": "10s",
    "refresh_slack": "10s",
    "windows": "10s",
    "idle": "1s",
}
_SAMPLES: Final = 60
_SHOWN: Final = 12
_PREFIX: Final = "soak-"


class Sample(NamedTuple):
    """What a worker held at a moment."""

    at_s: float
    resident_mib: float
    descriptors: int
    impressions: int
    lag: int


class Soak(NamedTuple):
    """One run."""

    rate: int
    seconds: int
    samples: list[Sample]
    peak_mib: int
    behind_max_ms: float
    undelivered: int
    exact: bool

    @property
    def settled_s(self) -> float:
        """When as much is forgotten as comes."""
        return max(self.seconds / 2, SETTLED_S)

    @property
    def steady(self) -> list[Sample]:
        """The samples from then on."""
        return [sample for sample in self.samples if sample.at_s >= self.settled_s]

    @property
    def growth_mib(self) -> float:
        """By how much the line through their memory rises."""
        at, mib = ([getattr(sample, name) for sample in self.steady] for name in ("at_s", "resident_mib"))
        return float(np.polyfit(at, mib, 1)[0]) * (self.seconds - self.settled_s)

    @property
    def new_descriptors(self) -> int:
        """By how much their second half has more than the first: its median, as one may be open for a moment only."""
        numbers = [sample.descriptors for sample in self.steady]
        return int(median(numbers[len(numbers) // 2 :]) - median(numbers[: len(numbers) // 2]))

    @property
    def flat(self) -> bool:
        """Whether neither memory nor descriptors grow."""
        return self.growth_mib <= GROWTH_MIB and self.new_descriptors <= 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.set_defaults(runs=1)
    parser.add_argument("--rate", type=int, default=RATE, help="events a second (default %(default)s)")
    parser.add_argument("--for", dest="length", default=FOR, help="how long (default %(default)s)")


def measure(options: argparse.Namespace) -> Soak:
    """Run it once."""
    seconds = duration_ms(options.length) // 1000
    if seconds < SETTLED_S + 20:
        raise SystemExit(f"--for {options.length}: nothing is steady before {SETTLED_S} s, take 90s or more")
    flags = {"rate": options.rate, "seconds": seconds, "partitions": options.partitions}
    sender = ("-m", "benchmarks.sender", *(text for name, value in flags.items() for text in (f"--{name}", str(value))))
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        asyncio.run(create_topics(broker.bootstrap, _PREFIX, options.partitions))
        with worker(broker, _PREFIX, **_SETTINGS) as one:
            one.recovered()
            with started(*sender, broker=broker, prefix=_PREFIX) as process:
                start_s, start_ms = json.loads(line_of(process))
                samples = _samples(one, start_s, seconds)
                sent = Sent(**json.loads(line_of(process)))
            truth = truth_of(options.rate, seconds, start_ms, options.partitions)
            is_exact = settles([one], truth, in_hour=False)
            peak = peak_mib(one.pid)
            return Soak(options.rate, seconds, samples, peak, sent.behind_max_ms, sent.undelivered, is_exact)


def _samples(one: Worker, start_s: float, seconds: int) -> list[Sample]:
    samples = []
    while (at_s := time.monotonic() - start_s) < seconds:
        held = descriptors(one.pid)  # before a page is read, whose connection may be open for a moment longer
        page = one.page()
        if at_s > 0:
            remembered = int(page.total("streams_remembered_impressions"))
            lag = int(page.total("streams_consumer_lag"))
            samples.append(Sample(at_s, resident_mib(one.pid), held, remembered, lag))
        time.sleep(max(0.2, seconds / _SAMPLES))
    return samples


def summary(soak: Soak) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    figures = {name: getattr(soak, name) for name in ("growth_mib", "new_descriptors", "flat")}
    return soak._asdict() | figures | {"samples": [sample._asdict() for sample in soak.samples]}


def show(soak: Soak) -> None:
    """Print the result."""
    print(f"{soak.rate:,} events/s for {soak.seconds:,} s; horizons, windows and slack of 10 s")
    for sample in _some(soak.samples):
        print(
            f"  after {sample.at_s:,.0f} s: {sample.resident_mib:,.0f} MiB resident, {sample.descriptors} descriptors,"
            f" {sample.impressions:,} impressions, lag {sample.lag:,}"
        )
    print(
        f"from {soak.settled_s:.0f} s on memory grew by {soak.growth_mib:+.1f} MiB, descriptors by"
        f" {soak.new_descriptors:+}: {'flat' if soak.flat else 'NOT FLAT'}; peak {soak.peak_mib} MiB"
    )
    print(f"the sender was at most {soak.behind_max_ms:.0f} ms behind, {soak.undelivered} records were not delivered")
    print(exact_line([soak.exact]))


def _some(samples: Sequence[Sample]) -> Sequence[Sample]:
    return samples[:: max(1, len(samples) // _SHOWN)]
