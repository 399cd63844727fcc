"""The open loop: sends a load's events at their times, however slow the broker is, and tells how far behind it fell.

Event time is wall time. A view is sent a second after its render. Beside the load go probes: renders of one campaign
for each partition, each by a viewer of its own, so that no refresh rule applies.

Every 50 ms of it is a batch for each partition, as the broker takes them, and one request carries them. Whoever sends
shares two cores with what is measured: a client that sends each record alone takes as much as the worker, and to make
an event takes half as much. So all can be made before it starts.
"""

import argparse
import asyncio
import ctypes
import json
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from heapq import merge
from itertools import count, islice, takewhile
from operator import itemgetter
from typing import Any, Final, NamedTuple
from zlib import crc32

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from cramjam import lz4

from benchmarks.load import EVENTS_A_RENDER, VIEW_AFTER_MS, Load, Made, Truth

PROBES_A_SECOND: Final = 20
BEHIND_S: Final = 0.1
"""Whoever sends later than this is behind."""
_TICK_S: Final = 0.05
"""Batches of a few records cost the broker more than all else; what is waited for is part of each latency."""
_BATCH_BYTES: Final = 8 << 20
_LEAD_S: Final = 5.0
"""From the announcement of the start, when all is made, to the start at least."""
_SLACK: Final = 1.5
"""To make a part of a load may take so many times as long as its first second did."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Of glibc's mallopt."""


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


class _Probe(NamedTuple):
    at_s: float
    partition: int
    key: bytes
    render: bytes


def _probes(start_ms: int, seconds: int, partitions: int) -> Iterator[_Probe]:
    """Yield the probes of all partitions in the order of their times."""
    each = [_probes_of(start_ms, seconds, number, partitions) for number in range(partitions)]
    return merge(*each, key=itemgetter(0))


def _probes_of(start_ms: int, seconds: int, partition: int, partitions: int) -> Iterator[_Probe]:
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
        yield _Probe(at_s, partition, name.encode(), json.dumps(render).encode())


class _Schedule:
    """Gives the records of a load when they are due: (topic, key, value, partition), in the order of their times."""

    def __init__(self, load: Load, seconds: int, partitions: int) -> None:
        self.ends_s = seconds + VIEW_AFTER_MS / 1000
        self._rate = load.renders_a_second
        self._partitions = partitions
        self._made = load.made()
        self._unseen = deque[Made]()
        """Whose views are still to come, if they have one,"""
        self._rendered = self._viewed = 0
        """and how many impressions were rendered, and seen."""
        self._probes = deque(_probes(load.start_ms, seconds, partitions))

    def due(self, until_s: float) -> Iterator[tuple[str, bytes, bytes, int]]:
        """Yield what is due until a time, in seconds after the start, and was not given yet."""
        partitions = self._partitions
        while self._probes and self._probes[0].at_s <= until_s:
            probe = self._probes.popleft()
            yield "renders", probe.key, probe.render, probe.partition
        rendered = int(until_s * self._rate)
        for made in islice(self._made, rendered - self._rendered):
            for _ in range(made.copies):
                yield "renders", made.viewer, made.render, crc32(made.viewer) % partitions
            self._unseen.append(made)
        self._rendered = rendered
        viewed = max(0, int((until_s - VIEW_AFTER_MS / 1000) * self._rate))
        for _ in range(min(viewed - self._viewed, len(self._unseen))):
            made = self._unseen.popleft()
            if made.view is not None:
                yield "viewability", made.viewer, made.view, crc32(made.viewer) % partitions
        self._viewed = viewed


_Tick = dict[tuple[str, int], BatchBuilder]
"""A batch for each topic (without prefix) and partition of which something is due."""


def _made(schedule: _Schedule, start_ms: int) -> Iterator[_Tick]:
    """Yield what is due at each tick. Raises RuntimeError if that is too much."""
    for number in count(1):
        until_s = number * _TICK_S
        batches: _Tick = {}
        for topic, key, value, partition in schedule.due(until_s):
            batch = batches.setdefault((topic, partition), BatchBuilder(_BATCH_BYTES, 0))
            if batch.append(timestamp=start_ms, key=key, value=value) is None:
                raise RuntimeError(f"more than {_BATCH_BYTES} bytes are due at once")
        yield batches
        if until_s >= schedule.ends_s:
            break


def _packed(tick: _Tick) -> bytes:
    for batch in tick.values():
        batch._build()  # noqa: SLF001  # as the producer does in the end; before it nobody can pickle one
    return bytes(lz4.compress_block(pickle.dumps(tick)))


def _unpacked(packed: bytes) -> _Tick:
    tick: _Tick = pickle.loads(lz4.decompress_block(packed))
    return tick


def _planned(rate: int, seconds: int, partitions: int, *, ahead: bool) -> tuple[float, int, Iterator[_Tick]]:
    """Return when the load starts (monotonic seconds, event time in ms), and its ticks, all made `ahead` or not."""

    def made(seconds: int, start_ms: int) -> Iterator[_Tick]:
        return _made(_Schedule(load_of(rate, seconds, start_ms), seconds, partitions), start_ms)

    lead_s, began = _LEAD_S, time.monotonic()
    if ahead:
        deque(map(_packed, made(1, 0)), maxlen=0)
        lead_s += (time.monotonic() - began) * seconds * _SLACK
    start_s, start_ms = time.monotonic() + lead_s, int((time.time() + lead_s) * 1000)
    ticks = made(seconds, start_ms)
    if not ahead:
        return start_s, start_ms, ticks
    packed = [*map(_packed, ticks)]
    if time.monotonic() > start_s - _LEAD_S / 2:
        raise RuntimeError(f"to make {rate * seconds:,} events took longer than their first second gave to expect")
    return start_s, start_ms, map(_unpacked, packed)


class _Sending:
    """Sends ticks as soon as those before them are on their way."""

    def __init__(self, producer: AIOKafkaProducer, prefix: str) -> None:
        self.undelivered = 0
        self._producer = producer
        self._prefix = prefix

    async def send(self, tick: _Tick) -> None:
        for (topic, partition), batch in tick.items():
            sent = await self._producer.send_batch(batch, self._prefix + topic, partition=partition)
            sent.add_done_callback(partial(self._note, batch.record_count()))

    def _note(self, number: int, sent: "asyncio.Future[Any]") -> None:
        if sent.cancelled() or sent.exception() is not None:
            self.undelivered += number


async def _send(rate: int, seconds: int, partitions: int, *, ahead: bool) -> Sent:
    start_s, start_ms, ticks = _planned(rate, seconds, partitions, ahead=ahead)
    producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["STREAMS_BROKER"],
        acks="all",
        max_batch_size=_BATCH_BYTES,
        max_request_size=32 << 20,
    )
    async with producer:
        prefix = os.environ["STREAMS_TOPIC_PREFIX"]
        for topic in ("renders", "viewability"):
            await producer.partitions_for(prefix + topic)
        print(json.dumps([start_s, start_ms]), flush=True)
        cpu_s, sending = time.process_time(), _Sending(producer, prefix)
        behind_max_s, behind_s = await _send_in_time(ticks, sending, start_s)
        await producer.flush()
        return Sent(behind_max_s * 1000, behind_s, sending.undelivered, time.process_time() - cpu_s)


async def _send_in_time(ticks: Iterator[_Tick], sending: _Sending, start_s: float) -> tuple[float, float]:
    """Send each tick at its time, or else as soon as can be.

    Return how far behind that fell at most, and how long it was more than BEHIND_S behind, both in seconds.
    """
    behind_max_s = behind_s = 0.0
    for number, tick in enumerate(ticks, 1):
        due_s = start_s + number * _TICK_S
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        await sending.send(tick)
        behind_s_now = time.monotonic() - due_s
        behind_max_s = max(behind_max_s, behind_s_now)
        if behind_s_now > BEHIND_S:
            behind_s += _TICK_S
    return behind_max_s, behind_s


def _keep_memory() -> None:
    """Use memory that was freed again: to touch what the system gives anew takes a fourth of the time of sending."""
    glibc = ctypes.CDLL(None)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        glibc.mallopt(option, 1 << 30)


def main() -> None:
    """Send, and print first when that starts (monotonic seconds, event time in ms), at the end how it went."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sender", description=__doc__)
    for name in ("rate", "seconds", "partitions"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--ahead", action="store_true", help="make all of it before it starts")
    options = parser.parse_args()
    _keep_memory()
    sent = asyncio.run(_send(options.rate, options.seconds, options.partitions, ahead=options.ahead))
    print(json.dumps(sent._asdict()))


if __name__ == "__main__":
    main()
