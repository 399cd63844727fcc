"""What very many campaign ids do to a worker: one render each, most with a view, of ids as if drawn at random."""

import asyncio
import time
from typing import Any, Final, NamedTuple

from benchmarks.load import Load, produce
from benchmarks.page import Page, exact
from benchmarks.processes import Worker, cpu_s, create_topics, peak_mib, resident_mib, worker
from benchmarks.report import exact_line
from streams.kafka.broker import EmbeddedBroker

_LOOK_S: Final = 5.0
_LOOKS: Final = 0.1
"""At most so large a share of the time goes into looks: with so many campaigns each takes seconds of the worker's."""
_PATIENCE_S: Final = 1_800.0
_PREFIX: Final = "random-"


class Overflow(NamedTuple):
    """A worker that has counted them."""

    load: str
    shown: int
    """Campaigns with a name of their own on the page."""
    overflow: int
    """The others, by the worker's own account."""
    lines: int
    """Of the page."""
    scrape_ms: float
    seconds: float
    """From the start of the worker until its page showed all of it, and the looks until then."""
    empty_mib: float
    resident_mib: float
    peak_mib: int
    remembered_bytes: int
    """How much of that are the impressions' own, by the worker's account."""
    cpu_s_per_million: float
    broker_cpu_s_per_million: float
    exact: bool

    @property
    def bytes_a_campaign(self) -> float:
        """Resident memory for each id, one remembered impression included."""
        return (self.resident_mib - self.empty_mib) * (1 << 20) / (self.shown + self.overflow)


def run(broker: EmbeddedBroker, ids: int, partitions: int) -> Overflow:
    """Send so many campaign ids through a real worker."""
    load = Load.until_now(ids, campaigns=ids)
    asyncio.run(create_topics(broker.bootstrap, _PREFIX, partitions))
    with worker(broker, _PREFIX) as one:
        one.recovered()
        empty_mib = resident_mib(one.pid)
    truth = produce(broker.bootstrap, _PREFIX, load)
    broker_cpu, began = cpu_s(broker.pid), time.monotonic()
    with worker(broker, _PREFIX) as one:
        page, look_s = _look(one)
        while not (is_exact := exact(page, truth)) and time.monotonic() - began < _PATIENCE_S:
            time.sleep(max(_LOOK_S, look_s / _LOOKS))
            page, look_s = _look(one)
        seconds, million = time.monotonic() - began, truth.events / 1e6
        used, broker_used = cpu_s(one.pid), cpu_s(broker.pid) - broker_cpu
        return Overflow(
            str(load),
            len(page.by_campaign("ads_served_impressions_total")),
            int(page.total("streams_overflow_campaigns")),
            page.text.count(b"\n"),
            look_s * 1000,
            seconds,
            empty_mib,
            resident_mib(one.pid),
            peak_mib(one.pid),
            int(page.total("streams_remembered_bytes")),
            used / million,
            broker_used / million,
            is_exact,
        )


def _look(one: Worker) -> tuple[Page, float]:
    asked = time.monotonic()
    page = one.page()
    return page, time.monotonic() - asked


def summary(result: Overflow) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    return result._asdict() | {"bytes_a_campaign": result.bytes_a_campaign}


def show(result: Overflow) -> None:
    """Print the result."""
    print(result.load)
    print(
        f"shown by name {result.shown:,}, streams_overflow_campaigns {result.overflow:,}; a page has {result.lines:,}"
        f" lines and takes {result.scrape_ms:,.0f} ms"
    )
    print(
        f"resident {result.empty_mib:,.0f} MiB before, {result.resident_mib:,.0f} MiB after (peak {result.peak_mib:,}):"
        f" {result.bytes_a_campaign:,.0f} bytes a campaign id, of which the impression"
        f" {result.remembered_bytes / (result.shown + result.overflow):,.0f}"
    )
    print(
        f"counted and shown after {result.seconds:.0f} s; CPU-s a million events, start and looks included:"
        f" {result.cpu_s_per_million:.1f}, broker {result.broker_cpu_s_per_million:.1f}"
    )
    print(exact_line([result.exact]))
