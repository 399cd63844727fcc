"""The processes that are measured, and what the system says of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.page import Page
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.topics import TopicAdmin, all_topics
from streams.settings import Settings

_CLOCK = os.sysconf("SC_CLK_TCK")
_START_S = 300.0
_LOG_LINES = 12


async def create_topics(bootstrap: str, prefix: str, partitions: int) -> None:
    """Create every topic of a prefix."""
    async with TopicAdmin(bootstrap) as admin:
        await admin.create(all_topics(prefix, prefix + "impression-streams"), partitions)


@contextmanager
def started(*arguments: str, broker: EmbeddedBroker, prefix: str, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    """Start Python with these arguments, and end it after the block."""
    own = {"broker": broker.bootstrap, "topic_prefix": prefix} | settings
    environment = os.environ | {f"STREAMS_{name.upper()}": value for name, value in own.items()}
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Worker:
    """A real worker process: where it serves, and the lines that it logged so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.pid = process.pid
        self.log: list[str] = []
        self._process = process
        self.url = url_of(process)
        threading.Thread(target=self._read_log, daemon=True).start()

    def _read_log(self) -> None:
        for line in self._process.stdout or ():
            self.log.append(line.rstrip())

    def page(self) -> Page:
        """Read /metrics. Raises RuntimeError if the worker has ended."""
        if self._process.poll() is not None:
            raise RuntimeError("the worker has ended: " + "\n".join(self.log[-_LOG_LINES:]))
        return Page.of([self.url])

    def wait_until(self, is_so: Callable[[Page], bool], what: str, patience_s: float = _START_S) -> Page:
        """Return the first page of which something holds. Raises RuntimeError if that takes too long."""
        deadline = time.monotonic() + patience_s
        while not is_so(page := self.page()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"never happened: {what}")
            time.sleep(0.1)
        return page

    def recovered(self) -> Page:
        """Wait until partitions are assigned and their state is there."""
        return self.wait_until(lambda page: page.has("streams_recovery_duration_seconds"), "the worker recovers")


@contextmanager
def worker(broker: EmbeddedBroker, prefix: str, *, module: str = "streams.cli", **settings: str) -> Iterator[Worker]:
    """Start a real worker, and end it after the block."""
    command = ("-m", module, "worker", "--http-port", "0")
    with started(*command, broker=broker, prefix=prefix, **settings) as process:
        yield Worker(process)


def room_for(impressions: int) -> str:
    """Return a STREAMS_MAX_REMEMBERED that a load stays below: a worker that is full pauses its input."""
    return str(max(Settings().max_remembered, impressions * 6 // 5))


def url_of(process: "subprocess.Popen[str]") -> str:
    """Return where a worker serves, once it says so."""
    for line in process.stdout or ():
        if '"url"' in line:
            return line.split('"url": "')[1].split('"')[0]
    raise RuntimeError("the worker did not start")


def line_of(process: "subprocess.Popen[str]") -> str:
    """Return the next line of JSON that a sender says. Raises RuntimeError with what it says else."""
    line = process.stdout.readline() if process.stdout else ""
    if not line.startswith(("[", "{")):
        raise RuntimeError(f"the sender failed: {line}{process.stdout.read() if process.stdout else ''}")
    return line


def hold_to_one_core(pid: int) -> None:
    """Let a process with all its threads run on one of the cores only: the last one, as all that are held so."""
    core = {max(os.sched_getaffinity(0))}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), core)


def cpu_s(pid: int) -> float:
    """Return how many CPU seconds a process has used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK


def peak_mib(pid: int) -> int:
    """Return how much memory a process has had resident at most."""
    return _status_kib(pid, "VmHWM") // 1024


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_mib(pid: int) -> float:
    """Return how much memory of a process is resident now."""
    return _status_kib(pid, "VmRSS") / 1024


def descriptors(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def _status_kib(pid: int, name: str) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
