"""The processes that are measured, and what the system and their own pages say of them."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from streams.kafka.broker import EmbeddedBroker
from streams.kafka.topics import TopicAdmin, all_topics

_CLOCK = os.sysconf("SC_CLK_TCK")


async def create_topics(bootstrap: str, prefix: str, partitions: int) -> None:
    """Create every topic of a prefix."""
    async with TopicAdmin(bootstrap) as admin:
        await admin.create(all_topics(prefix, prefix + "impression-streams"), partitions)


@contextmanager
def started(*arguments: str, broker: EmbeddedBroker, prefix: str) -> Iterator["subprocess.Popen[str]"]:
    """Start Python with these arguments, and end it after the block."""
    environment = os.environ | {"STREAMS_BROKER": broker.bootstrap, "STREAMS_TOPIC_PREFIX": prefix}
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def url_of(process: "subprocess.Popen[str]") -> str:
    """Return where a worker serves, once it says so."""
    for line in process.stdout or ():
        if '"url"' in line:
            return line.split('"url": "')[1].split('"')[0]
    raise RuntimeError("the worker did not start")


def samples(url: str) -> list[Any]:
    """Return what /metrics says."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        return [sample for family in text_string_to_metric_families(page.read().decode()) for sample in family.samples]


def cpu_s(pid: int) -> float:
    """Return how many CPU seconds a process has used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK


def peak_mib(pid: int) -> int:
    """Return how much memory a process has had resident at most."""
    return _status_kib(pid, "VmHWM") // 1024


def resident_mib(pid: int) -> float:
    """Return how much memory of a process is resident now."""
    return _status_kib(pid, "VmRSS") / 1024


def _status_kib(pid: int, name: str) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
