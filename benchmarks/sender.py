"""The open loop: sends a load's events at their times, however slow the broker is, and tells how far behind it fell.

Event time is wall time. A view is sent a second after its render. Beside the load go probes: renders of one campaign
for each partition, each by a viewer of its own, so that no refresh rule applies.
"""

import argparse
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from heapq import merge
from itertools import count, takewhile
from operator import itemgetter
from typing import Any, Final, NamedTuple

from confluent_kafka import Producer

from benchmarks.load import EVENTS_A_RENDER, VIEW_AFTER_MS, Load, Truth, send

PROBES_A_SECOND: Final = 20
BEHIND_S: Final = 0.1
"""Whoever sends later than this is behind."""
_REST_S: Final = 0.002
_LINGER_MS: Final = 20
"""Batches of a few records cost the broker more than all else; what is waited for is part of each latency."""
_LEAD_S: Final = 3.0
"""From the announcement of the start to the start."""


class Due(NamedTuple):
    """A record and when it is to be sent, in seconds after the start. Without a partition its key decides."""

    at_s: float
    topic: str
    key: bytes
    value: bytes
    partition: int | None = None


class Sent(NamedTuple):
    """How it went."""

    behind_max_ms: float
    behind_s: float
    """How long it was more than BEHIND_S behind, in all."""
    undelivered: int
    cpu_s: float


def load_of(rate: int, seconds: int, start_ms: int) -> Load:
    """Return the load that makes so many events a second, from its second second on: views come later."""
    renders_a_second = rate // EVENTS_A_RENDER
    return Load(renders_a_second * seconds, start_ms, renders_a_second=renders_a_second)


def probe_campaign(partition: int) -> str:
    """Return the campaign whose renders all lie in one partition."""
    return f"probe-{partition}"


def probe_times(seconds: int, partition: int, partitions: int) -> Iterator[float]:
    """Yield when the probes of a partition are sent, in seconds after the start; no two partitions' at once."""
    shift = partition / partitions
    return takewhile(lambda at_s: at_s < seconds, ((number + shift) / PROBES_A_SECOND for number in count()))


def truth_of(rate: int, seconds: int, start_ms: int, partitions: int) -> Truth:
    """Return what has to come out of a run: of its load and its probes."""
    times = (probe_times(seconds, number, partitions) for number in range(partitions))
    probes = Counter({probe_campaign(number): len([*some]) for number, some in enumerate(times)})
    return load_of(rate, seconds, start_ms).truth().plus(Truth(probes.total(), 0, probes, Counter(), Counter()))


def schedule(load: Load, seconds: int, partitions: int) -> Iterator[Due]:
    """Yield all records in the order of their times."""
    each = [_probes(load.start_ms, seconds, number, partitions) for number in range(partitions)]
    probes, views = deque(merge(*each, key=itemgetter(0))), deque[Due]()
    for number, made in enumerate(load.made()):
        at_s = number / load.renders_a_second
        while views and views[0].at_s <= at_s:
            yield views.popleft()
        while probes and probes[0].at_s <= at_s:
            yield probes.popleft()
        for _ in range(made.copies):
            yield Due(at_s, "renders", made.viewer, made.render)
        if made.view is not None:
            views.append(Due(at_s + VIEW_AFTER_MS / 1000, "viewability", made.viewer, made.view))
    yield from merge(views, probes, key=itemgetter(0))


def _probes(start_ms: int, seconds: int, partition: int, partitions: int) -> Iterator[Due]:
    for number, at_s in enumerate(probe_times(seconds, partition, partitions)):
        name = f"probe-{partition}-{number}"
        render = {
            "impression_id": name,
            "campaign_id": probe_campaign(partition),
            "ts": start_ms + int(at_s * 1000),
            "viewer_id": name,
            "slot_id": "slot-0",
            "price": "2.5",
        }
        yield Due(at_s, "renders", name.encode(), json.dumps(render).encode(), partition)


def _send(rate: int, seconds: int, partitions: int) -> Sent:
    failures: list[Any] = []
    producer = Producer(
        {
            "bootstrap.servers": os.environ["STREAMS_BROKER"],
            "linger.ms": _LINGER_MS,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 1_000_000,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failures.append(error),
        }
    )
    prefix = os.environ["STREAMS_TOPIC_PREFIX"]
    producer.list_topics(prefix + "renders", timeout=10)
    start_s, start_ms = time.monotonic() + _LEAD_S, int((time.time() + _LEAD_S) * 1000)
    print(json.dumps([start_s, start_ms]), flush=True)
    records = schedule(load_of(rate, seconds, start_ms), seconds, partitions)
    behind_max_s, behind_s = _send_in_time(producer, prefix, records, start_s)
    undelivered = producer.flush(60) + len(failures)
    return Sent(behind_max_s * 1000, behind_s, undelivered, time.process_time())


def _send_in_time(producer: Producer, prefix: str, records: Iterator[Due], start_s: float) -> tuple[float, float]:
    """Send each record at its time, or else as soon as can be.

    Return how far behind that fell at most, and how long it was more than BEHIND_S behind, both in seconds.
    """
    behind_max_s = behind_s = 0.0
    now = time.monotonic()
    for at_s, topic, key, value, partition in records:
        due = start_s + at_s
        if due > now:  # of what was due by then all is sent
            producer.poll(0)
            before, now = now, time.monotonic()
            while due > now:
                time.sleep(max(due - now, _REST_S))
                now = time.monotonic()
            behind_max_s = max(behind_max_s, now - due)
            if now - due > BEHIND_S:
                behind_s += now - before
        send(producer, prefix + topic, key, value, **({} if partition is None else {"partition": partition}))
    return behind_max_s, behind_s


def main() -> None:
    """Send, and print first when that starts (monotonic seconds, event time in ms), at the end how it went."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sender", description=__doc__)
    for name in ("rate", "seconds", "partitions"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(_send(options.rate, options.seconds, options.partitions)._asdict()))


if __name__ == "__main__":
    main()
