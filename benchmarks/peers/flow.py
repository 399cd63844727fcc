"""The job by Bytewax, in a process of its own. Arguments: bootstrap, prefix, events, partitions.

Whole batches go through the dataflow, and the state is in memory only. One process counts, as one worker does.
Bytewax's own Kafka source makes an object of eight fields of every message: with it the whole costs 1.7 times the CPU.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
from bytewax import operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from rules import Counting, Render, View

_BATCH = 5_000
_TELL_S = 0.5


class Topics(FixedPartitionedSource[Message, None]):
    """Both topics: what has the same partition number belongs together, and is read together."""

    def __init__(self, bootstrap: str, topics: list[str], partitions: int, progress: "Progress") -> None:
        self._bootstrap = bootstrap
        self._topics = topics
        self._partitions = partitions
        self._progress = progress

    def list_parts(self) -> list[str]:
        """Return the partition numbers."""
        return [str(number) for number in range(self._partitions)]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "Partition":
        """Read a partition number of both topics from the beginning."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "bytewax",
                "enable.auto.commit": False,
                "queued.max.messages.kbytes": 32 << 10,
            }
        )
        consumer.assign([TopicPartition(topic, int(for_part), OFFSET_BEGINNING) for topic in self._topics])
        return Partition(consumer, self._progress)


class Partition(StatefulSourcePartition[Message, None]):
    """A partition number, until all that is expected was counted."""

    def __init__(self, consumer: Consumer, progress: "Progress") -> None:
        self._consumer = consumer
        self._progress = progress

    def next_batch(self) -> list[Message]:
        """Return what is there."""
        if self._progress.complete:
            raise StopIteration
        return self._consumer.consume(_BATCH, 0.001)

    def snapshot(self) -> None:
        """Nothing is kept."""


class Nowhere(DynamicSink[None], StatelessSinkPartition[None]):
    """The end that every dataflow must have."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "Nowhere":
        """Return itself."""
        return self

    def write_batch(self, items: list[None]) -> None:
        """Nothing comes."""


class Progress:
    """How many events were counted, in what time; tells standard output of it as the driver expects."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._events = 0
        self._began = self._told = self._ended = 0.0
        self._cpu_before = self._cpu_after = 0.0

    @property
    def complete(self) -> bool:
        """Whether all that was expected is counted."""
        return self._events >= self._expected

    def begin(self) -> None:
        """Start the clock, if these are the first events."""
        if not self._events:
            self._began = self._told = time.monotonic()
            self._cpu_before = time.process_time()

    def add(self, events: int) -> None:
        """Count, stop the clock at the last event, and tell of it now and then before that."""
        self._events += events
        now, cpu = time.monotonic(), time.process_time()
        if self.complete:
            self._ended, self._cpu_after = now, cpu
        elif now - self._told >= _TELL_S:
            self._told = now
            print("progress", self._events, now, cpu, flush=True)

    def end(self, counting: Counting) -> None:
        """Tell what was counted."""
        totals = {figure: Counter[str]() for figure in ("served", "measurable", "viewable")}
        for (campaign, _, _), cell in counting.cells.items():
            for counter, value in zip(totals.values(), cell, strict=False):
                counter[campaign] += value
        seconds, cpu_s = self._ended - self._began, self._cpu_after - self._cpu_before
        spent = {"seconds": seconds, "cpu_s": cpu_s, "peak_mib": _peak_mib()}
        print(json.dumps({"events": self._events, **spent, **totals}), flush=True)


def _peak_mib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main(bootstrap: str, prefix: str, expected: int, partitions: int) -> None:
    """Run the dataflow until everything is counted."""
    counting, progress = Counting(), Progress(expected)
    renders, views = prefix + "renders", prefix + "viewability"
    apply = {
        renders: (msgspec.json.Decoder(Render).decode, counting.render),
        views: (msgspec.json.Decoder(View).decode, counting.view),
    }

    def count(messages: list[Message]) -> list[None]:
        progress.begin()
        for message in messages:
            if message.error():
                raise RuntimeError(message.error().str())
            decode, counted = apply[message.topic()]
            try:
                event = decode(message.value())
            except msgspec.MsgspecError:
                continue  # malformed
            counted(event)
        progress.add(len(messages))
        return []

    flow = Dataflow("job")
    events = op.input("events", flow, Topics(bootstrap, [renders, views], partitions, progress))
    op.output("nowhere", op.flat_map_batch("count", events, count), Nowhere())
    cli_main(flow)
    progress.end(counting)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
