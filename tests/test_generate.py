"""`streams generate`: to files, to nowhere, to a real broker; the truth is of what was delivered; exit codes."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from click.testing import Result
from typer.testing import CliRunner

from streams.cli import app
from streams.core.partition import Partition
from streams.core.rules import Rules
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.produce import PacedProducer, ProduceError, partition_of
from streams.kafka.topics import TopicsError
from streams.sources.schedule import CLEAN, Mix, Scheduled
from streams.sources.synthetic import Traffic
from streams.sources.truth import Truth
from tests.conftest import create_topics
from tests.logs import TOPICS, batch
from tests.test_sources import observed

DEADLINE_S = 30
NOBODY = "127.0.0.1:1"


def generate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


# --- files and nothing ------------------------------------------------------------------------------------------------


def lines_of(folder: Path) -> dict[str, list[bytes]]:
    return {topic: (folder / f"{topic}.jsonl").read_bytes().splitlines() for topic in TOPICS}


def test_files_hold_exactly_the_events_that_the_truth_is_of(tmp_path):
    result = generate("--events", 5_000, "--out", tmp_path / "events", "--truth", tmp_path / "truth.json",
                      "--malformed", 0.1, "--late", 0.05, "--seed", 3)  # fmt: skip
    assert result.exit_code == 0, result.output
    truth = json.loads((tmp_path / "truth.json").read_bytes())
    state = Partition(Rules())
    for topic, lines in lines_of(tmp_path / "events").items():
        state.apply(batch(topic, [(offset, line, None) for offset, line in enumerate(lines)]))
    seen = observed([state])
    assert sum(topic["sent"] for topic in seen["events"].values()) == 5_000
    assert truth["seed"] == 3
    for topic in TOPICS:
        found = {outcome: count for outcome, count in seen["events"][topic]["outcomes"].items() if count}
        assert found == truth["events"][topic]["outcomes"]
    assert seen["dead_letters"] == truth["dead_letters"]
    assert sorted(seen["campaigns"], key=lambda row: row["campaign_id"]) == truth["campaigns"]


def test_the_same_seed_and_start_give_the_same_files_compressed_or_not(tmp_path):
    common = ("--for", "5s", "--start", "2026-01-31T12:00:00", "--seed", 5, "--rate", 100)
    for name, more in (("a", ()), ("b", ()), ("c", ("--gzip",)), ("d", ("--gzip",))):
        assert generate(*common, "--out", tmp_path / name, *more).exit_code == 0
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")
    for topic in TOPICS:
        packed = (tmp_path / "c" / f"{topic}.jsonl.gz").read_bytes()
        assert gzip.decompress(packed) == (tmp_path / "a" / f"{topic}.jsonl").read_bytes()
        assert packed == (tmp_path / "d" / f"{topic}.jsonl.gz").read_bytes()
    first = json.loads(lines_of(tmp_path / "a")["renders"][0])
    assert first["ts"] == 1_769_860_800_000


def test_without_a_start_files_end_by_now(tmp_path):
    before_ms = time.time() * 1000
    assert generate("--for", "10m", "--rate", 1, "--late", 0, "--malformed", 0, "--out", tmp_path).exit_code == 0
    times = [json.loads(line)["ts"] for line in lines_of(tmp_path)["renders"]]
    assert before_ms - 600_000 <= min(times) and max(times) <= time.time() * 1000


def test_a_dry_run_tells_what_would_have_been_sent_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = generate("--events", 2_000, "--dry-run", "--json", "--currencies", "EUR,JPY", "--campaigns", 2)
    told = json.loads(result.stdout)
    assert sum(told["sent"].values()) == 2_000
    assert {(row["campaign_id"], row["currency"]) for row in told["truth"]["campaigns"]} == {
        ("campaign-1", "EUR"), ("campaign-2", "JPY")
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_open_bandit_log_is_a_source():
    told = json.loads(generate("--source", "open-bandit", "--events", 3_000, "--dry-run", "--json").stdout)
    assert {row["campaign_id"] for row in told["truth"]["campaigns"]} == {
        f"{campaign}-{policy}" for campaign in ("all", "men", "women") for policy in ("bts", "random")
    }


def test_people_get_one_line():
    result = generate("--events", 100, "--dry-run")
    assert result.stdout.startswith("100 events in ") and result.stdout.count("\n") == 1


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dry-run",),
        ("--max",),
        ("--out", "there"),
        ("--for", "soon"),
        ("--events", "0"),
        ("--late", "1.5"),
        ("--source", "elsewhere"),
        ("--speed", "20000"),
        ("--drop", "campaign-1:1m:2m"),
        ("--drop", "campaign-1:1m:x:0.5"),
        ("--drop", "campaign-1:1m:2m:3"),
        ("--rotate-drops", "0:1m:0.5"),
        ("--currencies", "usd"),
        ("--cpm", "-1"),
        ("--cpm", "much"),
        ("--start", "yesterday"),
        ("--topic-prefix", "no spaces"),
        ("--drop", "campaign-21:1m:2m:0.5"),
        ("--break-tag", "campaign-21:1m:2m:0.5"),
        ("--source", "open-bandit", "--break-tag", "campaign-1:1m:2m:0.5"),
        ("--source", "open-bandit", "--rate", "10"),
        ("--source", "open-bandit", "--viewable", "0.5"),
        ("--speed", "2"),
        ("--gzip",),
    ],
    ids=" ".join,
)
def test_a_wrong_flag_ends_with_code_2_and_says_what_is_wrong(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = generate(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip()) > 20
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_ends_with_code_1(tmp_path):
    (tmp_path / "file").touch()
    result = generate("--events", 10, "--out", tmp_path / "file")
    assert result.exit_code == 1 and str(tmp_path / "file") in result.stderr


def test_a_truth_that_cannot_be_written_ends_with_code_1(tmp_path):
    result = generate("--events", 10, "--dry-run", "--truth", tmp_path / "nowhere" / "truth.json")
    assert result.exit_code == 1 and "nowhere" in result.stderr


def test_without_a_broker_it_ends_with_code_1_one_line_and_no_truth(tmp_path):
    result = generate("--broker", NOBODY, "--events", 10, "--truth", tmp_path / "truth.json")
    assert result.exit_code == 1
    assert NOBODY in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "truth.json").exists()


# --- a real broker ----------------------------------------------------------------------------------------------------


async def records_of(bootstrap: str, prefix: str) -> dict[str, list[Any]]:
    """Everything that lies in the input topics, each partition in order."""
    consumer = AIOKafkaConsumer(
        *(prefix + topic for topic in TOPICS),
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
    )
    await consumer.start()
    try:
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=100)
        ends = await consumer.end_offsets(consumer.assignment())
        found: dict[str, list[Any]] = {topic: [] for topic in TOPICS}
        await consumer.seek_to_beginning()
        deadline = time.monotonic() + DEADLINE_S
        while sum(map(len, found.values())) < sum(ends.values()):
            assert time.monotonic() < deadline
            for place, records in (await consumer.getmany(timeout_ms=500)).items():
                found[place.topic.removeprefix(prefix)] += records
        return found
    finally:
        await consumer.stop()


def counted(found: dict[str, list[Any]], partitions: int) -> dict[str, Any]:
    """What the core makes of what lies in the topics, a partition at a time."""
    states = [Partition(Rules()) for _ in range(partitions)]
    for number, state in enumerate(states):
        for topic, records in found.items():
            log = [(record.offset, record.value, None) for record in records if record.partition == number]
            if log:
                state.apply(batch(topic, log))
    return observed(states)


def paced_producer(broker: EmbeddedBroker, prefix: str, truth: Truth) -> PacedProducer[Scheduled]:
    def taken(event: Scheduled, partition: int) -> None:
        truth.note(event.fact, event.at_ms, partition)

    return PacedProducer(broker.bootstrap, prefix, taken)


ROUGH = Mix(duplicates=0.1, refreshes=0.1, late=0.05, malformed=0.05, strays=0.05, ctr=0.1, big_record=True)


async def test_what_lies_in_the_topics_is_what_the_truth_says_a_5_mb_record_included(broker, topic_prefix):
    await create_topics(broker.bootstrap, topic_prefix, 3)
    truth = Truth()
    source = Traffic(start_ms=int(time.time() * 1000) - 3_600_000, viewers=500, mix=ROUGH)
    producer = paced_producer(broker, topic_prefix, truth)
    await producer.send(islice(source.events(), 20_000), asyncio.Event(), paced=False)
    found = await records_of(broker.bootstrap, topic_prefix)
    assert truth.sent == producer.sending.sent == 20_000
    assert max(len(record.value or b"") for record in found["renders"]) == 5_000_000
    assert truth.compare(counted(found, 3)) == []
    assert {record.partition for record in found["renders"]} == {0, 1, 2}


async def test_equal_keys_lie_in_the_same_partition_number_of_every_topic(broker, topic_prefix):
    await create_topics(broker.bootstrap, topic_prefix, 4)
    source = Traffic(start_ms=int(time.time() * 1000), viewers=20, mix=ROUGH)
    await paced_producer(broker, topic_prefix, Truth()).send(
        islice(source.events(), 2_000), asyncio.Event(), paced=False
    )
    places = defaultdict(set)
    for records in (await records_of(broker.bootstrap, topic_prefix)).values():
        for record in records:
            places[record.key].add(record.partition)
    assert all(found == {partition_of(key, 4)} for key, found in places.items())


async def test_events_are_sent_at_their_time_and_never_before(broker, topic_prefix):
    await create_topics(broker.bootstrap, topic_prefix, 2)
    began = time.time()
    source = Traffic(start_ms=int(began * 1000) + 500, rate=50, mix=CLEAN)
    await paced_producer(broker, topic_prefix, Truth()).send(islice(source.events(), 100), asyncio.Event())
    assert time.time() - began > 1.2
    for records in (await records_of(broker.bootstrap, topic_prefix)).values():
        for record in records:
            assert record.timestamp >= json.loads(record.value)["ts"]


async def test_a_start_that_is_past_is_caught_up_with_at_once(broker, topic_prefix):
    await create_topics(broker.bootstrap, topic_prefix, 2)
    source = Traffic(start_ms=int(time.time() * 1000) - 600_000, rate=10, mix=CLEAN)
    began = time.monotonic()
    await paced_producer(broker, topic_prefix, Truth()).send(islice(source.events(), 10_000), asyncio.Event())
    assert time.monotonic() - began < DEADLINE_S


async def test_topics_that_are_missing_are_named(broker, topic_prefix):
    producer = paced_producer(broker, topic_prefix, Truth())
    with pytest.raises(TopicsError, match=f"{topic_prefix}renders"):
        await producer.send(islice(Traffic(start_ms=0).events(), 10), asyncio.Event(), paced=False)


async def test_a_record_that_the_broker_refuses_raises(broker, topic_prefix):
    """The input topics take 8 MiB; a record that no topic takes must not pass for delivered."""
    await create_topics(broker.bootstrap, topic_prefix, 1)
    huge = next(Traffic(start_ms=0, mix=CLEAN).events())._replace(value=b"x" * (9 << 20))
    with pytest.raises(ProduceError, match="did not take"):
        await paced_producer(broker, topic_prefix, Truth()).send(iter([huge]), asyncio.Event(), paced=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_it_in_order_with_the_truth_of_exactly_what_was_delivered(
    broker, topic_prefix, tmp_path, number
):
    await create_topics(broker.bootstrap, topic_prefix, 2)
    truth_path = tmp_path / "truth.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "generate", "--rate", "500", "--truth", str(truth_path), "--json"],
        env=os.environ | {"STREAMS_BROKER": broker.bootstrap, "STREAMS_TOPIC_PREFIX": topic_prefix},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await until_there_are(broker.bootstrap, topic_prefix, 200)
    process.send_signal(number)
    stdout, stderr = await asyncio.to_thread(process.communicate, timeout=DEADLINE_S)
    assert (process.returncode, stderr) == (0, b"")
    truth = json.loads(truth_path.read_bytes())
    found = await records_of(broker.bootstrap, topic_prefix)
    assert {topic: len(records) for topic, records in found.items()} == {
        topic: truth["events"][topic]["sent"] for topic in TOPICS
    }
    seen = counted(found, 2)
    assert sorted(seen["campaigns"], key=lambda row: row["campaign_id"]) == truth["campaigns"]
    assert json.loads(stdout)["truth"] == truth


async def test_a_broker_that_is_killed_and_comes_back_has_every_event_once(tmp_path, topic_prefix):
    truth = Truth()
    with EmbeddedBroker(0, tmp_path) as broker:
        await create_topics(broker.bootstrap, topic_prefix, 2)
        source = Traffic(start_ms=int(time.time() * 1000), rate=500, mix=ROUGH)
        producer = paced_producer(broker, topic_prefix, truth)
        sending = asyncio.create_task(producer.send(islice(source.events(), 6_000), asyncio.Event()))
        await until_there_are(broker.bootstrap, topic_prefix, 1_000)
        assert not sending.done()
        broker.kill()
        await asyncio.to_thread(broker.start)
        await sending
        found = await records_of(broker.bootstrap, topic_prefix)
    assert truth.compare(counted(found, 2)) == []


async def test_a_broker_that_stays_away_raises(tmp_path, topic_prefix):
    with EmbeddedBroker(0, tmp_path) as broker:
        await create_topics(broker.bootstrap, topic_prefix, 1)
        source = Traffic(start_ms=int(time.time() * 1000), rate=100, mix=CLEAN)
        producer = PacedProducer[Scheduled](broker.bootstrap, topic_prefix, lambda *_: None, give_up_s=2)
        sending = asyncio.create_task(producer.send(source.events(), asyncio.Event()))
        await until_there_are(broker.bootstrap, topic_prefix, 10)
        broker.kill()
        with pytest.raises(ProduceError, match=broker.bootstrap):
            await asyncio.wait_for(sending, DEADLINE_S)


def test_as_fast_as_possible_is_into_the_past_up_to_now(broker, topic_prefix):
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, 2))
    to = ("--broker", broker.bootstrap, "--topic-prefix", topic_prefix)
    began = time.monotonic()
    told = json.loads(generate("--max", "--events", 3_000, "--rate", 1, "--late", 0, "--json", *to).stdout)
    assert time.monotonic() - began < DEADLINE_S
    found = asyncio.run(records_of(broker.bootstrap, topic_prefix))
    assert told["truth"]["events"]["renders"]["sent"] == len(found["renders"])
    stamps = [json.loads(record.value)["ts"] for record in found["viewability"] if b'"0-' in (record.value or b"")]
    assert max(stamps) <= time.time() * 1000 < min(stamps) + 3_100_000


async def until_there_are(bootstrap: str, prefix: str, events: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while sum(map(len, (await records_of(bootstrap, prefix)).values())) < events:
        assert time.monotonic() < deadline
