"""Peers: the same job, on the same load, done by other stream processors, each as its own good engineer would tune it.

What they do less than the worker: one source, no clicks, no late or future events, no invalid traffic, no windows and
no outcome of every event; a refresh is compared only with the last counted render. What survives a crash differs too:
Kafka Streams has changelogs, Flink a checkpoint every 10 s, Bytewax nothing.
"""

import json
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.load import Truth
from benchmarks.peers.build import SOURCES, PeerError, jars, python
from benchmarks.processes import cpu_s
from streams.kafka.broker import EmbeddedBroker

_PATIENCE_S: Final = 600.0


class PeerRun(NamedTuple):
    """One measured run. Warm is from the moment that half of the events were done, when Java has compiled them."""

    name: str
    warm_events_per_s: float
    cold_events_per_s: float
    """From the first event to the last."""
    cpu_s_per_million: float
    """Warm, as is the broker's."""
    broker_cpu_s_per_million: float
    peak_mib: int
    exact: bool


class _Peer(NamedTuple):
    program: Callable[[str], list[str]]
    """What starts it, given a folder for its files."""
    flags: tuple[str, ...] = ()


class _Moment(NamedTuple):
    """How far a peer was, and the CPU seconds that it and the broker had used."""

    events: int
    at: float
    cpu_s: float
    broker_cpu_s: float


def _java(project: str, main: str, *options: str) -> Callable[[str], list[str]]:
    def program(folder: str) -> list[str]:
        logging = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
        return ["java", *options, logging, f"-Djava.io.tmpdir={folder}", "-cp", f"{jars(project)}/*", main]

    return program


def _bytewax(_folder: str) -> list[str]:
    return [str(python()), str(SOURCES / "flow.py")]


_HEAP: Final = ("-Xmx2g", "-XX:+UseParallelGC")
_STREAMS: Final = _java("kafka-streams", "peers.KafkaStreamsPeer", *_HEAP)
_PEERS: Final = {
    "kafka-streams": _Peer(_STREAMS),
    "kafka-streams-rocksdb": _Peer(_STREAMS, ("--rocksdb",)),
    "flink": _Peer(_java("flink", "peers.FlinkPeer", *_HEAP)),
    "bytewax": _Peer(_bytewax),
}


def prepare() -> None:
    """Build what is not built yet. Raises PeerError if it cannot be."""
    for peer in _PEERS.values():
        peer.program("")


def run(broker: EmbeddedBroker, prefix: str, truth: Truth, partitions: int) -> dict[str, PeerRun]:
    """Measure every peer, one after the other, on the load of a prefix. Raises PeerError."""
    return {name: _measure(name, peer, broker, prefix, truth, partitions) for name, peer in _PEERS.items()}


def _measure(name: str, peer: _Peer, broker: EmbeddedBroker, prefix: str, truth: Truth, partitions: int) -> PeerRun:
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        command = [*peer.program(folder), broker.bootstrap, prefix, str(truth.events), str(partitions), *peer.flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            patience = threading.Timer(_PATIENCE_S, process.kill)
            patience.start()
            try:
                moments, end = _follow(process, broker)
            finally:
                patience.cancel()
                process.kill()
        if end is None:
            log.seek(0)
            said = " | ".join(line.strip() for line in log if not line.startswith("\tat "))[-500:]
            raise PeerError(f"{name} did not count everything: {said}")
    return _judged(name, moments, end, truth)


def _follow(process: "subprocess.Popen[str]", broker: EmbeddedBroker) -> tuple[list[_Moment], dict[str, Any] | None]:
    """Read what a peer tells, up to the line of JSON that is its last."""
    moments = []
    for line in process.stdout or ():
        if line.startswith("progress "):
            _, events, at, cpu = line.split()
            moments.append(_Moment(int(events), float(at), float(cpu), cpu_s(broker.pid)))
        elif line.startswith("{"):
            return moments, json.loads(line)
    return moments, None


def _judged(name: str, moments: list[_Moment], end: dict[str, Any], truth: Truth) -> PeerRun:
    warm = [moment for moment in moments if moment.events * 2 >= truth.events]
    if len(warm) < 2:
        raise PeerError(f"{name} was done before it could be measured: give it more --renders")
    first, last = warm[0], warm[-1]
    done = last.events - first.events
    counted = [Counter(end[figure]) for figure in ("served", "measurable", "viewable")]
    return PeerRun(
        name,
        done / (last.at - first.at),
        end["events"] / end["seconds"],
        (last.cpu_s - first.cpu_s) / done * 1e6,
        (last.broker_cpu_s - first.broker_cpu_s) / done * 1e6,
        end["peak_mib"],
        end["events"] == truth.events and counted == [truth.served, truth.measurable, truth.viewable],
    )
