"""The real worker as a process, and what a test wants to know of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import put

PATIENCE_S = 60.0


def wait_until(is_so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.1)


def sockets(pid: int) -> set[str]:
    """Return the names of the sockets that a process has open, each as "socket:[1234]". It may close some meanwhile."""
    names = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.add(os.readlink(descriptor))
    return {name for name in names if name.startswith("socket:")}


def listening(pid: int) -> set[str]:
    """Return the addresses that a process listens on."""
    ours = sockets(pid)
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    local = [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in ours]
    return {socket.inet_ntoa(bytes.fromhex(address[-8:])[::-1]) for address in local}


class WorkerProcess:
    """`streams worker` on a free HTTP port. `log` are the lines that it wrote so far."""

    def __init__(self, bootstrap: str, prefix: str, *flags: str, **settings: str) -> None:
        environment = {f"STREAMS_{name.upper()}": value for name, value in settings.items()}
        environment |= {"STREAMS_BROKER": bootstrap, "STREAMS_TOPIC_PREFIX": prefix, "STREAMS_HTTP_PORT": "0"}
        self.log: list[str] = []
        self.url = ""
        self.token = settings.get("http_token", "")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "worker", *flags],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line.rstrip())
            if '"url"' in line:
                self.url = json.loads(line)["url"]

    def __enter__(self) -> Self:
        try:
            wait_until(lambda: bool(self.url) or self._process.poll() is not None, "the worker serves or ends")
        except AssertionError:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.kill()
        if kind is not None:  # pytest shows it beside what failed
            print(f"the log of a worker ({self._process.returncode}) ends with:", *self.log[-30:], sep="\n")

    def ready(self) -> Self:
        wait_until(lambda: self.get("/readyz")[0] == 200, "the worker is ready")
        return self

    def get(self, path: str) -> tuple[int, str]:
        try:
            request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError as error:
            raise AssertionError("no answer, and the log ends with:\n" + "\n".join(self.log[-12:])) from error

    def head(self, path: str) -> Any:
        """The headers of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.headers

    def metric(self, name: str, **labels: str) -> float | None:
        """The sum of all samples of a name that carry these labels; None if there is none."""
        samples = [s.value for s in self.samples() if s.name == name and labels.items() <= s.labels.items()]
        return sum(samples) if samples else None

    def samples(self) -> list[Any]:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return [sample for family in families for sample in family.samples]

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """Campaign -> (served, measurable, viewable)."""
        found: dict[str, dict[str, int]] = {}
        for sample in self.samples():
            if sample.name.startswith("ads_") and sample.name.endswith("_impressions_total"):
                figures = found.setdefault(sample.labels["campaign"], {})
                figures[sample.name.split("_")[1]] = int(sample.value)
        return {name: (f["served"], f["measurable"], f["viewable"]) for name, f in found.items()}

    def consumed(self, topic: str) -> int:
        return int(self.metric("streams_events_consumed_total", topic=topic) or 0)

    def wait_consumed(self, **events: int) -> None:
        wait_until(lambda: all(self.consumed(topic) >= count for topic, count in events.items()), f"consumed {events}")

    def terminate(self) -> tuple[int, float]:
        """SIGTERM; return the exit code and how many seconds it took."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(30)
        return code, time.monotonic() - began

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def code(self) -> int | None:
        """Return the exit code, None before the end."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as late:
            raise AssertionError("it goes on, and the log ends with:\n" + "\n".join(self.log[-12:])) from late
        self._reader.join()
        return code

    def wait_asleep(self) -> None:
        """Wait until it was stopped by a signal."""
        how = os.WSTOPPED | os.WNOWAIT | os.WNOHANG
        wait_until(lambda: os.waitid(os.P_PID, self._process.pid, how) is not None, "the worker falls asleep")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def send(bootstrap: str, topic: str, records: Iterable[tuple[str, bytes | dict[str, Any] | None]]) -> None:
    """Send (key, value) records; a dict goes as JSON. Returns when all of them are in Kafka."""
    settings = {"partitioner": "murmur2_random", "message.max.bytes": 8_000_000, "linger.ms": 5}
    producer = Producer({"bootstrap.servers": bootstrap, **settings})
    failed: list[Any] = []
    for key, value in records:
        body = orjson.dumps(value) if isinstance(value, dict) else value
        put(producer, topic, key, body, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(60) == 0
    assert not failed


def read_topic(bootstrap: str, topic: str, partitions: int) -> list[Any]:
    """All records of a topic, as they are now."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "none", "enable.auto.commit": False})
    ends = {
        number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
        for number in range(partitions)
    }
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    records = []
    deadline = time.monotonic() + PATIENCE_S
    left = sum(ends.values())
    while left > 0:  # more may come while we read
        assert time.monotonic() < deadline, f"{left} records of {topic} cannot be read"
        for record in consumer.consume(1_000, timeout=0.5):
            assert record.error() is None, record.error()
            records.append(record)
            left -= 1
    consumer.close()
    return records


def produced(bootstrap: str, topic: str, key: bytes, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
    """Send one record with headers, where Kafka's default partitioner wants it."""
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    producer.produce(topic, value, key, headers=headers)
    assert producer.flush(60) == 0
