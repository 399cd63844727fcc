"""How fast real workers count a load that lies ready in Kafka: their steady rate, between two scrapes."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from benchmarks.load import Truth
from benchmarks.page import Page, exact
from benchmarks.processes import Worker, cpu_s, peak_mib
from streams.kafka.broker import EmbeddedBroker

SCRAPE_S: Final = 1.0
PATIENCE_S: Final = 60.0


class Rate(NamedTuple):
    """What one process did."""

    events_per_s: float
    cpu_s_per_million: float
    peak_mib: int


class Pace(NamedTuple):
    """What the workers did together, each of them, and the broker beside them."""

    events_per_s: float
    cpu_s_per_million: float
    broker_cpu_s_per_million: float
    peak_mib: int
    exact: bool
    each: list[Rate]


class Moment(NamedTuple):
    """How far each worker was at a scrape, and the CPU seconds that it and the broker had used."""

    at: float
    assigned: list[int]
    consumed: list[int]
    lag: list[int]
    cpu_s: list[float]
    broker_cpu_s: float


def pace(broker: EmbeddedBroker, workers: Sequence[Worker], truth: Truth, scrape_s: float = SCRAPE_S) -> Pace:
    """Follow workers until all of a load is counted."""
    moments = _follow(broker, workers, truth.events, scrape_s)
    first, last = _steady(moments)
    seconds, done = last.at - first.at, sum(last.consumed) - sum(first.consumed)
    each = []
    for number, one in enumerate(workers):
        own = last.consumed[number] - first.consumed[number]
        used = last.cpu_s[number] - first.cpu_s[number]
        each.append(Rate(own / seconds, used / own * 1e6, peak_mib(one.pid)))
    return Pace(
        done / seconds,
        (sum(last.cpu_s) - sum(first.cpu_s)) / done * 1e6,
        (last.broker_cpu_s - first.broker_cpu_s) / done * 1e6,
        max(one.peak_mib for one in each),
        settles(workers, truth),
        each,
    )


def settles(
    workers: Sequence[Worker],
    truth: Truth,
    *,
    in_hour: bool = True,
    scrape_s: float = 0.5,
    patience_s: float = PATIENCE_S,
) -> bool:
    """Say whether the pages of workers tell the truth before patience ends."""
    deadline = time.monotonic() + patience_s
    while not exact(Page.of([one.url for one in workers]), truth, in_hour=in_hour):
        if time.monotonic() > deadline:
            return False
        time.sleep(scrape_s)
    return True


def _follow(broker: EmbeddedBroker, workers: Sequence[Worker], events: int, scrape_s: float) -> list[Moment]:
    moments = [_moment(broker, workers)]
    moved_at = time.monotonic()
    while sum(moments[-1].consumed) < events:
        time.sleep(scrape_s)
        moments.append(_moment(broker, workers))
        if moments[-1].consumed != moments[-2].consumed:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > PATIENCE_S:
            raise RuntimeError(f"nothing is counted any more, at {sum(moments[-1].consumed):,} of {events:,} events")
    return moments


def _moment(broker: EmbeddedBroker, workers: Sequence[Worker]) -> Moment:
    pages = [one.page() for one in workers]
    return Moment(
        time.monotonic(),
        [int(page.total("streams_partitions_assigned")) for page in pages],
        [int(page.total("streams_events_consumed_total")) for page in pages],
        [int(page.total("streams_consumer_lag")) for page in pages],
        [cpu_s(one.pid) for one in workers],
        cpu_s(broker.pid),
    )


def _steady(moments: Sequence[Moment]) -> tuple[Moment, Moment]:
    """Return the first and last scrape before which, and after which, every worker was at work.

    Its partitions were those of the end before that: when a worker joins, what it takes over moves from page to page.
    """
    final = moments[-1].assigned
    found = [
        now
        for before, now in pairwise(moments)
        if before.assigned == now.assigned == final
        and all(now.lag)
        and all(more > less for less, more in zip(before.consumed, now.consumed, strict=True))
    ]
    if len(found) < 2:
        raise RuntimeError(
            f"no steady rate: {sum(moments[-1].consumed):,} events were counted before the workers were seen at work"
            " three times; it takes a load of more events"
        )
    return found[0], found[-1]
