"""The embedded broker: real Kafka that starts, crashes, comes back, and never outlives who started it."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka import KafkaError, Producer

from streams.kafka.broker import VERSION, BrokerError, EmbeddedBroker, _free_port, cache_directory, kafka_jars
from streams.kafka.topics import Topic, TopicAdmin
from tests.worker import listening

STREAMS = Path(sys.executable).with_name("streams")
SOON_S = 60.0


async def write(bootstrap: str, topic: str, *values: bytes) -> None:
    async with TopicAdmin(bootstrap) as admin:
        await admin.create([Topic(topic, {})], 1)
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", max_request_size=16 << 20) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)


async def read(bootstrap: str, topic: str) -> list[bytes]:
    place = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        values: list[bytes] = []
        while len(values) < end:
            values += [
                record.value for records in (await consumer.getmany(timeout_ms=1000)).values() for record in records
            ]
        return values


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {SOON_S:.0f} s: {what}"
        time.sleep(0.02)


def processes_in(directory: Path) -> list[int]:
    """Return the processes that have the directory on their command line, as Kafka and its formatter do."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word.startswith(os.fsencode(directory) + b"/") for word in words):
            found.append(int(entry.name))
    return found


# --- starting and stopping -------------------------------------------------------------------------------------------


async def test_it_takes_requests_when_start_returns_and_records_as_large_as_a_journals(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    large = os.urandom(15 << 20)
    await write(broker.bootstrap, topic_prefix + "large", large)
    assert await read(broker.bootstrap, topic_prefix + "large") == [large]


def test_it_listens_on_the_loopback_address_only(broker: EmbeddedBroker) -> None:
    assert listening(broker.pid) == {"127.0.0.1"}
    assert int(broker.bootstrap.removeprefix("127.0.0.1:")) == broker.port


def test_topics_are_not_created_by_being_written_to(broker: EmbeddedBroker, topic_prefix: str) -> None:
    told: list[KafkaError | None] = []
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap, "topic.metadata.propagation.max.ms": 2000, "log_level": 0}
    )
    producer.produce(topic_prefix + "none", b"1", on_delivery=lambda error, _: told.append(error))
    assert producer.flush(SOON_S) == 0
    [error] = told
    assert error is not None
    assert error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}


def test_a_restart_on_another_port_keeps_the_records(tmp_path: Path) -> None:
    with EmbeddedBroker(0, tmp_path) as first:
        asyncio.run(write(first.bootstrap, "kept", b"1", b"2"))
    assert not first.running
    with socket.create_server(("127.0.0.1", first.port)), EmbeddedBroker(0, tmp_path) as second:
        assert second.port != first.port
        assert asyncio.run(read(second.bootstrap, "kept")) == [b"1", b"2"]


def test_after_a_kill_it_comes_back_on_its_port_with_the_records(tmp_path: Path) -> None:
    with EmbeddedBroker(0, tmp_path) as broker:
        port, pid = broker.port, broker.pid
        asyncio.run(write(broker.bootstrap, "kept", b"1", b"2"))
        broker.kill()
        assert not broker.running
        broker.start()
        assert (broker.port, broker.pid != pid) == (port, True)
        asyncio.run(write(broker.bootstrap, "kept", b"3"))
        assert asyncio.run(read(broker.bootstrap, "kept")) == [b"1", b"2", b"3"]


def test_an_id_of_the_cluster_that_looks_like_an_option_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One id in 64 begins with a dash.
    monkeypatch.setattr("streams.kafka.broker.uuid.uuid4", lambda: uuid.UUID(bytes=b"\xf8" + bytes(15)))
    with EmbeddedBroker(0, tmp_path):
        assert "cluster.id=-AAAAAAAAAAAAAAAAAAAAA" in (tmp_path / "data" / "meta.properties").read_text()


def test_stopping_twice_or_before_a_start_does_nothing(tmp_path: Path) -> None:
    broker = EmbeddedBroker(0, tmp_path)
    broker.stop()
    with pytest.raises(BrokerError, match="not started"):
        _ = broker.pid
    broker.kill()
    assert not broker.running


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_used_port_is_refused_in_one_line_before_anything_is_done(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            BrokerError, match=rf"^port {port} on 127.0.0.1 cannot be used \(Address already in use\): .*$"
        ):
            EmbeddedBroker(port, tmp_path / "broker").start()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_a_running_broker_is_refused_and_that_one_goes_on(broker: EmbeddedBroker) -> None:
    with pytest.raises(BrokerError, match=r"^another broker runs in .*: stop it, or take another one$"):
        EmbeddedBroker(0, broker.directory).start()
    with pytest.raises(BrokerError, match="runs already"):
        broker.start()
    assert broker.running


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BrokerError, match="cannot hold a broker"):
        EmbeddedBroker(0, tmp_path / "file" / "broker").start()


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with EmbeddedBroker(0, tmp_path) as broker:
        pass
    meta = tmp_path / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(BrokerError, match=r"(?s)Kafka ended while it started.*node\.?[iI]d"):
        broker.start()
    assert processes_in(tmp_path) == []


# --- whose child it is -----------------------------------------------------------------------------------------------


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    broker = EmbeddedBroker(0, tmp_path)
    starter = threading.Thread(target=broker.start)
    starter.start()
    starter.join()
    try:
        asyncio.run(write(broker.bootstrap, "here", b"1"))
        assert asyncio.run(read(broker.bootstrap, "here")) == [b"1"]
    finally:
        broker.stop()


def test_it_dies_with_its_parent_however_that_dies(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from streams.kafka.broker import EmbeddedBroker
broker = EmbeddedBroker(0, Path({str(tmp_path)!r}))
broker.start()
print("started", flush=True)
input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        assert len(processes_in(tmp_path)) == 1
        parent.kill()
    wait_until(lambda: not processes_in(tmp_path), "Kafka is gone")


# --- the command -----------------------------------------------------------------------------------------------------


def start_command(directory: Path) -> "subprocess.Popen[str]":
    command = [STREAMS, "broker", "--port", "0", "--dir", directory]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def line_of(command: "subprocess.Popen[str]") -> str:
    """Return the next line that a command prints; if it ended instead, fail with what it said."""
    assert command.stdout is not None
    line = command.stdout.readline()
    if not line:
        _, told = command.communicate(timeout=SOON_S)
        pytest.fail(f"the command ended with {command.returncode}: {told}")
    return line


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_kafka_is_and_ends_well_when_told(tmp_path: Path, how: signal.Signals) -> None:
    with start_command(tmp_path) as command:
        line = line_of(command)
        match = re.fullmatch(rf"Kafka {re.escape(VERSION)} at (127\.0\.0\.1:\d+), data in {tmp_path}\n", line)
        assert match, line
        asyncio.run(write(match[1], "here", b"1"))
        command.send_signal(how)
        assert command.communicate(timeout=SOON_S) == ("", "")
    assert command.returncode == 0
    assert processes_in(tmp_path) == []


def test_the_command_can_be_ended_while_kafka_starts(tmp_path: Path) -> None:
    with start_command(tmp_path) as command:
        wait_until((tmp_path / "kafka.log").exists, "Kafka's storage is being made")
        command.send_signal(signal.SIGTERM)
        assert command.communicate(timeout=SOON_S) == ("", "")
    assert command.returncode == 0
    wait_until(lambda: not [pid for pid in processes_in(tmp_path) if pid != command.pid], "Java is gone")
    with EmbeddedBroker(0, tmp_path) as broker:  # what was begun does no harm
        assert broker.running


def test_the_command_refuses_a_used_port_in_one_line(broker: EmbeddedBroker, tmp_path: Path) -> None:
    command = [STREAMS, "broker", "--port", str(broker.port), "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"streams: port {broker.port} on 127.0.0.1 cannot be used")


def test_the_command_tells_when_kafka_is_killed(tmp_path: Path) -> None:
    with start_command(tmp_path) as command:
        assert line_of(command).startswith("Kafka ")
        [kafka] = [pid for pid in processes_in(tmp_path) if pid != command.pid]
        os.kill(kafka, signal.SIGKILL)
        _, told = command.communicate(timeout=SOON_S)
    assert command.returncode == 1
    assert told.startswith("streams: Kafka ended by itself")


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache in which a jar ends too early."""
    jars = tmp_path / "cache" / f"kafka-{VERSION}"
    shutil.copytree(kafka_jars(), jars)
    os.truncate(jars / f"kafka_2.13-{VERSION}.jar", 1000)
    monkeypatch.setenv("STREAMS_CACHE", str(tmp_path / "cache"))
    yield jars


def test_a_broken_cache_that_cannot_be_mended_is_refused_with_what_to_do(
    cut_short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(
        BrokerError, match=r"^Kafka .* cannot be downloaded into .*connect to the internet.*STREAMS_BROKER.*$"
    ):
        kafka_jars()
    assert [path.name for path in cut_short.parent.iterdir() if ".part-" in path.name] == []


def test_a_download_that_is_killed_does_no_harm_and_of_two_processes_one_mends_the_cache(cut_short: Path) -> None:
    program = "from streams.kafka.broker import kafka_jars; print(kafka_jars())"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as killed:
        wait_until(lambda: list(cut_short.parent.glob("*.part-*/maven/**/*.jar")), "a download has begun")
        killed.kill()
    names = {path.name for path in cut_short.iterdir()}
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=300)[0] for one in both] == [f"{cut_short}\n"] * 2
    assert names == {path.name for path in cut_short.iterdir()}
    assert sorted(path.name for path in cut_short.parent.iterdir()) == [cut_short.name, "lock"]
    assert kafka_jars() == cut_short


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("STREAMS_CACHE", raising=False)
    assert cache_directory() == tmp_path / "impression-streams"
    monkeypatch.setenv("STREAMS_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


def test_no_port_is_taken_that_its_own_properties_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, others = _free_port(), [_free_port(), _free_port()]
    monkeypatch.setattr("random.sample", lambda *_, **__: [named, *others])
    listeners = f"PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},MORE://{{host}}:{named}"
    protocols = ",".join(f"{name}:PLAINTEXT" for name in ("PLAINTEXT", "CONTROLLER", "MORE"))
    own = {"listeners": listeners, "listener.security.protocol.map": protocols}
    with EmbeddedBroker(0, tmp_path, properties=own) as broker:
        broker.kill()
        broker.start()
        assert broker.port == others[0]
