"""Recovery: the real worker on the journals of many impressions, and stock Faust's on a table with a key each."""

import asyncio
import time
from typing import NamedTuple

from benchmarks.journal import preload
from benchmarks.processes import cpu_s, create_topics, resident_mib, samples, started, url_of
from streams.kafka.broker import EmbeddedBroker

STOCK_KEYS = 200_000
_PATIENCE_S = 300.0


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


def run(broker: EmbeddedBroker, prefix: str, impressions: int, partitions: int) -> Recovery:
    """Measure a worker that has so much to recover, one that has nothing, and stock Faust."""
    empty, full = prefix + "empty-", prefix + "full-"
    for one in (empty, full):
        asyncio.run(create_topics(broker.bootstrap, one, partitions))
    preload(broker.bootstrap, full, impressions, partitions)
    nothing = _worker(broker, empty)
    found = _worker(broker, full)
    stock_per_s = _stock(broker)
    remembered = found["streams_remembered_impressions"]
    return Recovery(
        impressions,
        found["streams_recovery_duration_seconds"],
        found["cpu_s"] - nothing["cpu_s"],
        (found["mib"] - nothing["mib"]) * (1 << 20) / impressions,
        found["streams_remembered_bytes"] / impressions,
        stock_per_s,
        exact=remembered == impressions == found["served"],
    )


def _worker(broker: EmbeddedBroker, prefix: str) -> dict[str, float]:
    with started("-m", "streams.cli", "worker", "--http-port", "0", broker=broker, prefix=prefix) as worker:
        url, deadline = url_of(worker), time.monotonic() + _PATIENCE_S
        while True:
            found = {sample.name: sample.value for sample in samples(url) if not sample.labels}
            if "streams_recovery_duration_seconds" in found:
                break
            if time.monotonic() > deadline:
                raise RuntimeError("the worker did not recover")
            time.sleep(0.1)
        cpu = cpu_s(worker.pid)
        time.sleep(3)  # what is counted is told to stage 2, and the gauges show it
        served = sum(s.value for s in samples(url) if s.name == "ads_served_impressions_total")
        return found | {"cpu_s": cpu, "mib": resident_mib(worker.pid), "served": served}


def _stock(broker: EmbeddedBroker) -> float:
    with started("-m", "benchmarks.stock", str(STOCK_KEYS), broker=broker, prefix="") as stock:
        lines = [line for line in stock.stdout or () if line[0].isdigit()]
        keys, seconds = lines[-1].split()
    if int(keys) != STOCK_KEYS:
        raise RuntimeError(f"stock Faust recovered {keys} of {STOCK_KEYS} keys")
    return STOCK_KEYS / float(seconds)
