"""From the time at which an event is to be sent to the first /metrics that shows it, at a fixed rate of events.

An open loop: another process sends renders, views and duplicates at their times, event time being wall time. 20 times a
second and partition it also sends a probe, a render of a campaign that has only probes and only in that partition. The
k-th of them is visible at the first scrape that shows k or more. So a latency includes the sending, the commit interval
of the worker, and the time from one scrape to the end of the next one.

Broker and sender are held to one core: elsewhere they have machines of their own, and who counts does not take turns
with them.
"""

import argparse
import asyncio
import http.client
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.load import EVENTS_A_RENDER
from benchmarks.pace import settles
from benchmarks.processes import (
    Worker,
    cpu_s,
    create_topics,
    hold_to_one_core,
    line_of,
    peak_mib,
    room_for,
    started,
    worker,
)
from benchmarks.report import column, exact_line, spread
from benchmarks.scrape import SCRAPES, scrapes_of
from benchmarks.sender import Sent, probe_campaign, probe_times, truth_of
from streams.kafka.broker import EmbeddedBroker

RATE: Final = 60_000
SECONDS: Final = 60
SCRAPE_MS: Final = 50
SHARES_OF_JOB: Final = {0.5: SCRAPE_MS, 0.8: 2 * SCRAPE_MS}
"""Of what `job` had, and how far apart scrapes are then: a tenth of what 99 % of events may take."""
_KEPT: Final = {
    "log.retention.bytes": str(128 << 20),
    "log.segment.bytes": str(32 << 20),
    "log.retention.check.interval.ms": "1000",
    "log.segment.delete.delay.ms": "1000",
}
"""What was counted a while ago is deleted. A broker has a memory of its own; here minutes of a load would fill that of
the machine, and the system takes a seventh of a core then to make room."""
LAG_S: Final = 10
"""Lag is compared over so many seconds at the start and at the end."""
GROWS_S: Final = 0.1
"""Lag that is larger at the end by what comes in so many seconds is said to grow."""
BEHIND_ALLOWED_S: Final = 1.0
_PATIENCE_S: Final = 60.0
_LAG: Final = re.compile(rb"\nstreams_consumer_lag\{[^}]*\} (\S+)")


class Phase(NamedTuple):
    """One run at one rate."""

    rate: int
    seconds: int
    probes: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    p99_ms_of_tenths: list[float]
    """Of those that were due in each tenth of the run: whether it was slow once, for a while, or more and more."""
    lag_start: float
    """Records that are not applied, mean over the first LAG_S."""
    lag_end: float
    cpu_s_per_million: float
    """Of the worker, all scrapes included."""
    broker_cpu_s_per_million: float
    sender_cpu_s_per_million: float
    peak_mib: int
    scrapes_per_s: float
    scrape_cpu_ms: float
    """What each takes of the worker's CPU, as seen when it was idle again."""
    behind_max_ms: float
    behind_s: float
    valid: bool
    """Whether the sender sent in time, and all of it arrived."""
    exact: bool
    slow_scrapes: int
    """Connections beside it that take for ever."""

    @property
    def scraping_share(self) -> float:
        """Which share of a core the measuring itself took of the worker."""
        return self.scrapes_per_s * self.scrape_cpu_ms / 1000

    @property
    def grows(self) -> bool:
        """Whether the worker falls behind."""
        return self.lag_end - self.lag_start > self.rate * GROWS_S


class Scrape(NamedTuple):
    """When a page had been read, how many probes of each partition it showed, and the lag that it told."""

    at: float
    seen: list[int]
    lag: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--rate", type=int, default=RATE, help="events a second (default %(default)s)")
    parser.add_argument("--job-rate", type=int, help="what `job` measured: go at 50 %% and at 80 %% of it")
    parser.add_argument("--scrape-ms", type=int, help=f"between scrapes (default {SCRAPE_MS}, at 80 %% twice as much)")
    parser.add_argument("--slow-scrapes", type=int, default=0, help="go again beside so many (default none)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="length of a run (default %(default)s)")


def measure(options: argparse.Namespace) -> list[Phase]:
    """Measure each rate as often as asked for."""
    whole, shares = (options.job_rate, SHARES_OF_JOB) if options.job_rate else (options.rate, {1: SCRAPE_MS})
    phases = []
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder), properties=_KEPT) as broker:
        hold_to_one_core(broker.pid)
        for share, every_ms in shares.items():
            rate = int(whole * share)
            room = room_for(rate * options.seconds // EVENTS_A_RENDER)
            for number in range(options.runs):
                for slow in dict.fromkeys((0, options.slow_scrapes)):
                    prefix = f"rate{rate}-run{number}-beside{slow}-"
                    asyncio.run(create_topics(broker.bootstrap, prefix, options.partitions))
                    with worker(broker, prefix, max_remembered=room) as one:
                        one.recovered()
                        beside = ("-m", "benchmarks.slow", one.url, str(slow))
                        with started(*beside, broker=broker, prefix=prefix) if slow else nullcontext():
                            scrape_ms = options.scrape_ms or every_ms
                            phases.append(_phase(broker, prefix, one, rate, scrape_ms, slow, options))
    return phases


def summary(phases: list[Phase]) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    return {"runs": [phase._asdict() | {"lag_grows": phase.grows} for phase in phases]}


def show(phases: list[Phase]) -> None:
    """Print the result, a block a rate."""
    for rate, slow in dict.fromkeys((phase.rate, phase.slow_scrapes) for phase in phases):
        runs = [phase for phase in phases if (phase.rate, phase.slow_scrapes) == (rate, slow)]
        print(
            f"{rate:,} events/s for {runs[0].seconds} s (renders, 95 % with a view, 5 % sent twice),"
            f" {runs[0].probes:,} probes, {len(runs)} runs{f', beside {slow} slow scrapes' if slow else ''}"
        )
        latencies = (f"{name} {spread(column(runs, f'{name}_ms'))} ms" for name in ("p50", "p99", "max"))
        print(f"  from schedule to /metrics: {', '.join(latencies)}")
        print(
            f"  lag {spread(column(runs, 'lag_start'))} records in the first {LAG_S} s,"
            f" {spread(column(runs, 'lag_end'))} in the last: {'GROWING' if any(r.grows for r in runs) else 'steady'}"
        )
        for run in runs:
            print(f"  p99 of each tenth: {', '.join(f'{ms:.0f}' for ms in run.p99_ms_of_tenths)} ms")
        cpu = (
            f"{name} {spread(column(runs, f'{figure}cpu_s_per_million'), '.2f')}"
            for name, figure in (("worker", ""), ("broker", "broker_"), ("sender", "sender_"))
        )
        print(f"  CPU-s a million: {', '.join(cpu)}; peak {max(column(runs, 'peak_mib'))} MiB")
        print(
            f"  being scraped took the worker {spread((run.scraping_share * 100 for run in runs), '.0f')} % of a core:"
            f" {spread(column(runs, 'scrapes_per_s'), '.0f')}/s, {spread(column(runs, 'scrape_cpu_ms'), '.1f')} ms each"
        )
        print(f"  {_validity(runs)}")
    print(exact_line(column(phases, "exact")))


def _validity(runs: Sequence[Phase]) -> str:
    behind = f"the sender was at most {max(column(runs, 'behind_max_ms')):.0f} ms behind"
    if all(run.valid for run in runs):
        return f"valid: {behind}"
    return f"NOT VALID: {behind}, more than 100 ms for {max(column(runs, 'behind_s')):.1f} s, or its records were lost"


def _phase(
    broker: EmbeddedBroker, prefix: str, one: Worker, rate: int, scrape_ms: int, slow: int, options: argparse.Namespace
) -> Phase:
    seconds, partitions = options.seconds, options.partitions
    arguments = {"rate": rate, "seconds": seconds, "partitions": partitions}
    flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    times = [list(probe_times(seconds, number, partitions)) for number in range(partitions)]
    print(f"making {rate * seconds:,} events to send ...", file=sys.stderr, flush=True)
    with started("-m", "benchmarks.sender", "--ahead", *flags, broker=broker, prefix=prefix) as process:
        hold_to_one_core(process.pid)
        start_s, start_ms = json.loads(line_of(process))
        cpu, broker_cpu = cpu_s(one.pid), cpu_s(broker.pid)
        probes = [len(some) for some in times]
        scrapes = _scrapes(one, probes, scrape_ms / 1000, start_s + 2 * seconds + _PATIENCE_S)
        sent = Sent(**json.loads(line_of(process)))
        used, broker_used = cpu_s(one.pid) - cpu, cpu_s(broker.pid) - broker_cpu
    truth = truth_of(rate, seconds, start_ms, partitions)
    is_exact = settles([one], truth)
    seen = _latencies(scrapes, start_s, times)
    latencies = sorted(ms for _, ms in seen)
    million = truth.events / 1e6
    return Phase(
        rate,
        seconds,
        sum(probes),
        _percentile(latencies, 0.5),
        _percentile(latencies, 0.99),
        latencies[-1],
        [_percentile(sorted(ms for due_s, ms in seen if due_s * 10 // seconds == tenth), 0.99) for tenth in range(10)],
        _lag(scrapes, start_s, start_s + LAG_S),
        _lag(scrapes, start_s + seconds - LAG_S, start_s + seconds),
        used / million,
        broker_used / million,
        sent.cpu_s / million,
        peak_mib(one.pid),
        len(scrapes) / (scrapes[-1].at - scrapes[0].at),
        scrapes_of(one, SCRAPES).cpu_ms,
        sent.behind_max_ms,
        sent.behind_s,
        sent.undelivered == 0 and sent.behind_s <= BEHIND_ALLOWED_S,
        is_exact,
        slow,
    )


def _scrapes(one: Worker, probes: Sequence[int], every_s: float, deadline: float) -> list[Scrape]:
    """Scrape until all probes are seen. Raises RuntimeError if that takes too long."""
    connection = http.client.HTTPConnection(one.url.removeprefix("http://"))
    campaigns = map(probe_campaign, range(len(probes)))
    names = [f'\nads_served_impressions_total{{campaign="{name}",'.encode() for name in campaigns]
    found: list[Scrape] = []
    due = time.monotonic()
    while not found or found[-1].seen != list(probes):
        page = _page(connection)
        now = time.monotonic()
        if now > deadline:
            raise RuntimeError("not all probes were ever seen")
        found.append(Scrape(now, [_count(page, name) for name in names], sum(map(float, _LAG.findall(page)))))
        due = max(due + every_s, now)
        time.sleep(max(0.0, due - time.monotonic()))
    return found


def _page(connection: http.client.HTTPConnection) -> bytes:
    """Scrape once; where the worker closed the connection, as it had too many, on a new one, as Prometheus does."""
    while True:
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read()
        except (ConnectionResetError, BrokenPipeError):  # of a worker that is gone it is ConnectionRefusedError
            connection.close()


def _count(page: bytes, name: bytes) -> int:
    start = page.find(name)
    if start < 0:
        return 0
    return int(float(page[page.index(b"} ", start) + 2 : page.index(b"\n", start + 1)]))


def _latencies(
    scrapes: Sequence[Scrape], start_s: float, times: Sequence[Sequence[float]]
) -> list[tuple[float, float]]:
    """Return of each probe when it was due, in seconds from the start, and after how many ms it was first seen."""
    found = []
    for partition, scheduled in enumerate(times):
        shown = 0
        for scrape in scrapes:
            seen = scrape.seen[partition]
            found += [(due_s, (scrape.at - start_s - due_s) * 1000) for due_s in scheduled[shown:seen]]
            shown = seen
    return found


def _percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of sorted values that so large a share of them does not exceed."""
    return values[math.ceil(share * len(values)) - 1]


def _lag(scrapes: Sequence[Scrape], start: float, end: float) -> float:
    lags = [scrape.lag for scrape in scrapes if start <= scrape.at < end]
    return sum(lags) / len(lags)
