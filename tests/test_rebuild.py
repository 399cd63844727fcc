"""`streams replay rebuild`: the same events by other keys and in other partitions count the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.kafka.broker import EmbeddedBroker
from streams.replay.document import read
from tests.loaded import PARTITIONS, Loaded, a_start, made, records_of, run
from tests.logs import TOPICS
from tests.worker import read_topic

MORE = 5


@pytest.fixture(scope="module")
def old(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    loaded = Loaded(broker.bootstrap, f"old-{os.getpid()}-", a_start())
    files = made(tmp_path_factory.mktemp("old"), loaded.start, "--seed", "21", rate=25)
    loaded.send(records_of(files, loaded.start))
    return loaded


def rebuild(loaded: Loaded, into: str, *flags: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    return loaded.replay("rebuild", "--into", into, "--run", into, *flags, cache=cache)


def report(loaded: Loaded, prefix: str, cache: Path, *flags: str) -> Path:
    """The report of what lies under a prefix."""
    path = cache / f"{prefix}.json"
    done = run("replay", "--report", str(path), *flags, **loaded.settings(cache, topic_prefix=prefix))
    assert done.returncode == 0, done.stderr
    return path


def in_order(bootstrap: str, prefix: str, partitions: int) -> dict[str, list[Any]]:
    found = {topic: read_topic(bootstrap, prefix + topic, partitions) for topic in TOPICS}
    return {topic: sorted(log, key=lambda one: (one.partition(), one.offset())) for topic, log in found.items()}


def kill_in_the_middle(command: list[str], environment: dict[str, str], bootstrap: str, topic: str) -> int:
    """Kill a command when it has begun to write on; return how many records a topic holds then."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "none"})
    deadline = time.monotonic() + 60

    def written() -> int:
        try:
            return sum(
                consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=5)[1] for number in range(MORE)
            )
        except KafkaException:  # it is not there yet
            return 0

    before = written()
    process = subprocess.Popen(command, env=environment)
    while written() <= before:
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = written()
    consumer.close()
    return found


def test_more_partitions_hold_the_same_events_exactly_once_though_it_was_killed(old: Loaded, tmp_path: Path) -> None:
    into = f"new-{os.getpid()}-"
    flags = ["--into", into, "--run", into, "--partitions", str(MORE)]
    environment = os.environ | {f"STREAMS_{name.upper()}": text for name, text in old.settings(tmp_path).items()}
    command = [sys.executable, "-m", "streams.cli", "replay", "rebuild", *flags]
    before = in_order(old.bootstrap, old.prefix, PARTITIONS)
    for _ in range(2):
        assert kill_in_the_middle(command, environment, old.bootstrap, f"{into}renders") < len(before["renders"])
    done = rebuild(old, into, "--partitions", str(MORE), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    after = in_order(old.bootstrap, into, MORE)
    for topic in TOPICS:
        assert sequences(before[topic]) == sequences(after[topic])
        for record in after[topic]:
            assert dict(record.headers())["appended"].isdigit()
    appended = Counter((r.value(), b"%d" % r.timestamp()[1]) for r in before["renders"])
    assert appended == Counter((r.value(), dict(r.headers())["appended"]) for r in after["renders"])
    places = defaultdict(set)
    for records in after.values():
        for record in records:
            places[record.key()].add(record.partition())
    assert all(len(found) == 1 for found in places.values())
    assert {record.partition() for record in after["renders"]} == {*range(MORE)}
    again = rebuild(old, into, "--partitions", str(MORE), cache=tmp_path)
    assert again.stdout.startswith("0 events written"), again.stderr
    counts = [json.loads(report(old, prefix, tmp_path).read_bytes()) for prefix in (old.prefix, into)]
    for told in counts:  # what is final yet is another matter: it hangs on how far each partition is
        del told["final_before"]
        told["windows"] = [{**row, "final": None} for row in told["windows"]]
    assert counts[0] == counts[1]


def sequences(records: list[Any]) -> dict[bytes, list[bytes]]:
    """What comes by key, in its order."""
    found = defaultdict(list)
    for record in records:
        found[record.key()].append(record.value())
    return found


def test_what_was_keyed_wrongly_counts_as_it_should_when_it_is_keyed_by_viewer(
    broker: EmbeddedBroker, old: Loaded, tmp_path: Path
) -> None:
    wrong = Loaded(broker.bootstrap, f"wrong-{os.getpid()}-", old.start)
    records = records_of(made(tmp_path, old.start, "--seed", "21", rate=10), old.start)
    right = Loaded(broker.bootstrap, f"right-{os.getpid()}-", old.start)
    right.send(records)
    wrong.send(record._replace(key=str(number)) for number, record in enumerate(records))
    assert read(report(right, wrong.prefix, tmp_path)).windows != read(report(right, right.prefix, tmp_path)).windows
    into = f"keyed-{os.getpid()}-"
    done = rebuild(wrong, into, "--key", "viewer", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read(report(right, into, tmp_path)).windows == read(report(right, right.prefix, tmp_path)).windows


def test_a_range_is_written_with_all_that_decides_what_counts_in_it(old: Loaded, tmp_path: Path) -> None:
    into = f"part-{os.getpid()}-"
    done = rebuild(old, into, *old.range(22, 30), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = in_order(old.bootstrap, old.prefix, PARTITIONS), in_order(old.bootstrap, into, PARTITIONS)
    assert 0 < len(after["renders"]) < len(before["renders"]) * 0.9
    of_old, of_new = (report(old, prefix, tmp_path, *old.range(22, 30)) for prefix in (old.prefix, into))
    assert read(of_new).windows == read(of_old).windows
    assert len(read(of_old).windows) == 8 * 20


def test_topics_that_hold_other_records_are_left_alone(old: Loaded, tmp_path: Path) -> None:
    for into, code, said in (
        (old.prefix, 2, "--into is the prefix of the topics that are read"),
        (f"foreign-{os.getpid()}-", 1, "holds records that this run did not write"),
    ):
        if code == 1:
            Loaded(old.bootstrap, into, old.start).send(
                records_of(made(tmp_path, old.start, rate=1, minutes=1), old.start)
            )
        done = rebuild(old, into, cache=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert said in done.stderr
