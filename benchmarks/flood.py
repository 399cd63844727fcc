"""What campaign ids that come in waves, and never again, do to the memory of a worker that forgets them.

Each wave brings ids as if drawn at random that were never there before, and lies two days of event time after the one
before it; a campaign is forgotten after one (STREAMS_CAMPAIGN_TTL). The next wave is sent as soon as the last one is
shown, so ids come as fast as a worker counts them, and those of some waves wait to be written and forgotten. Memory is
bounded if a worker never holds those of more than HELD waves; what is resident rises until that has been there.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.load import MANY, Load, Truth, produce
from benchmarks.pace import PATIENCE_S
from benchmarks.page import FIGURES, Page, outcomes_are_exact
from benchmarks.processes import Worker, cpu_s, create_topics, peak_mib, resident_mib
from benchmarks.report import exact_line
from benchmarks.scrape import worker_that_notes
from streams.core.rules import DAY
from streams.kafka.broker import EmbeddedBroker

IDS: Final = 100_000
WAVES: Final = 30
HELD: Final = 5
_APART_MS: Final = 2 * DAY
_SETTINGS: Final = {"campaign_ttl": "1d", "idle": "1s"}
_LOOK_S: Final = 1.0
_PREFIX: Final = "flood-"
_NOTHING: Final = Truth(0, 0, Counter(), Counter(), Counter())


class Wave(NamedTuple):
    """What a worker held when all of a wave was counted and shown."""

    seconds: float
    """Since the first of it was sent."""
    held: int
    """Campaigns, with those of earlier waves."""
    resident_mib: float
    longest_hold_ms: float
    """How long something held the event loop at most meanwhile."""
    cpu_s_per_million: float
    """Of the worker, all looks included."""
    exact: bool


class Flood(NamedTuple):
    """All waves, one after another, through one worker."""

    load: str
    ids: int
    empty_mib: float
    waves: list[Wave]
    peak_mib: int

    @property
    def growth(self) -> float:
        """By which share of itself the line through the memory of the second half of the waves rises."""
        mib = [wave.resident_mib for wave in self.waves[len(self.waves) // 2 :]]
        slope, _ = np.polyfit(range(len(mib)), mib, 1)
        return float(slope) * (len(mib) - 1) / float(np.mean(mib))

    @property
    def bounded(self) -> bool:
        """Whether no more is held, however much comes."""
        return max(wave.held for wave in self.waves) <= HELD * self.ids


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.set_defaults(runs=1)
    parser.add_argument("--ids", type=int, default=IDS, help="campaign ids of a wave (default %(default)s)")
    parser.add_argument("--waves", type=int, default=WAVES, help=f"how many, more than {HELD} (default %(default)s)")


def measure(options: argparse.Namespace) -> Flood:
    """Send all waves through one worker."""
    if options.ids <= MANY or options.waves <= HELD:
        raise SystemExit(f"take more than {MANY:,} --ids, and more than {HELD} --waves")
    last = Load.until_now(options.ids, campaigns=options.ids)
    waves = [
        last._replace(
            start_ms=last.start_ms - (options.waves - 1 - number) * _APART_MS, first_campaign=number * options.ids
        )
        for number in range(options.waves)
    ]
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        asyncio.run(create_topics(broker.bootstrap, _PREFIX, options.partitions))
        with worker_that_notes(Path(folder), broker, _PREFIX, **_SETTINGS) as (one, held_ms):
            one.recovered()
            empty_mib, so_far, found = resident_mib(one.pid), _NOTHING, list[Wave]()
            for number, wave in enumerate(waves, 1):
                truth = wave.truth()
                so_far = so_far.plus(truth)
                print(f"wave {number} of {len(waves)} ...", file=sys.stderr, flush=True)
                held_ms()
                found.append(_wave(broker, one, wave, so_far, held_ms))
            return Flood(str(last), options.ids, empty_mib, found, peak_mib(one.pid))


def _wave(broker: EmbeddedBroker, one: Worker, load: Load, so_far: Truth, held_ms: Callable[[], float]) -> Wave:
    began, cpu = time.monotonic(), cpu_s(one.pid)
    truth = produce(broker.bootstrap, _PREFIX, load)
    while not (is_exact := _exact(page := one.page(), so_far, truth)) and time.monotonic() - began < PATIENCE_S:
        time.sleep(_LOOK_S)
    return Wave(
        time.monotonic() - began,
        len(page.by_campaign("ads_served_impressions_total")) + int(page.total("streams_overflow_campaigns")),
        resident_mib(one.pid),
        held_ms(),
        (cpu_s(one.pid) - cpu) / truth.events * 1e6,
        is_exact,
    )


def _exact(page: Page, so_far: Truth, wave: Truth) -> bool:
    """Say whether a page tells the truth of all that came, and its windows of an hour that of the last wave."""
    return outcomes_are_exact(page, so_far) and all(
        all(found == getattr(so_far, name)[campaign] for campaign, found in page.by_campaign(total).items())
        and page.by_campaign(window, window="1h").total() == getattr(wave, name).total()
        for name, total, window in ((name, f"ads_{name}_impressions_total", f"ads_window_{name}") for name in FIGURES)
    )


def summary(flood: Flood) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    figures = {name: getattr(flood, name) for name in ("growth", "bounded")}
    return flood._asdict() | figures | {"waves": [wave._asdict() for wave in flood.waves]}


def show(flood: Flood) -> None:
    """Print the result, a line a wave."""
    print(f"{len(flood.waves)} waves, two days apart, each with ids of its own: {flood.load}")
    print(f"  before: {flood.empty_mib:,.0f} MiB resident")
    for number, wave in enumerate(flood.waves, 1):
        print(
            f"  wave {number}: shown after {wave.seconds:.0f} s, {wave.held:,} campaigns held,"
            f" {wave.resident_mib:,.0f} MiB resident; the event loop was held for {wave.longest_hold_ms:,.0f} ms at"
            f" most; CPU-s a million {wave.cpu_s_per_million:.1f}"
        )
    print(
        f"of {len(flood.waves) * flood.ids:,} campaigns {max(wave.held for wave in flood.waves):,} were held at most:"
        f" {'bounded' if flood.bounded else 'NOT BOUNDED'}; peak {flood.peak_mib:,} MiB, the second half of the waves"
        f" {flood.growth * 100:+.0f} % from the first to the last of it"
    )
    print(exact_line(wave.exact for wave in flood.waves))
