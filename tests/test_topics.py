"""Topics on real Kafka: created once, refused when they are others, checked against what the program needs."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from typer.testing import CliRunner, Result

from streams.cli import app
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.topics import Topic, TopicAdmin, TopicsError, all_topics
from tests.conftest import GROUP, create_topics

FEW = 2
STREAMS = Path(sys.executable).with_name("streams")


def topics(prefix: str) -> list[Topic]:
    return all_topics(prefix, prefix + GROUP)


def names(prefix: str) -> list[str]:
    return [topic.name for topic in topics(prefix)]


def other(topic: Topic, **config: str) -> Topic:
    return Topic(topic.name, topic.config | {key.replace("_", "."): value for key, value in config.items()})


async def make(bootstrap: str, made: Iterable[Topic], partitions: int = FEW) -> None:
    async with TopicAdmin(bootstrap) as admin:
        await admin.create(list(made), partitions)


async def config_of(bootstrap: str, name: str) -> dict[str, str]:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        [answer] = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        return {entry[0]: entry[1] for entry in answer.resources[0][4]}
    finally:
        await client.close()


async def check(bootstrap: str, wanted: Iterable[Topic]) -> list[str]:
    async with TopicAdmin(bootstrap) as admin:
        return await admin.check(list(wanted))


# --- create ----------------------------------------------------------------------------------------------------------


async def test_creating_topics_again_changes_nothing(broker: EmbeddedBroker, topic_prefix: str) -> None:
    async with TopicAdmin(broker.bootstrap) as admin:
        assert await admin.create(topics(topic_prefix), FEW) == names(topic_prefix)
        assert await admin.create(topics(topic_prefix), FEW) == []
        assert await admin.partition_counts(names(topic_prefix)) == dict.fromkeys(names(topic_prefix), FEW)


async def test_only_the_missing_topics_are_created(broker: EmbeddedBroker, topic_prefix: str) -> None:
    there, *missing = topics(topic_prefix)
    await make(broker.bootstrap, [there])
    async with TopicAdmin(broker.bootstrap) as admin:
        assert await admin.create(topics(topic_prefix), FEW) == [topic.name for topic in missing]


async def test_a_topic_is_known_as_soon_as_it_is_created(broker: EmbeddedBroker, topic_prefix: str) -> None:
    async with TopicAdmin(broker.bootstrap) as admin:
        for number in range(10):
            topic = Topic(f"{topic_prefix}{number}", {})
            await admin.create([topic], FEW)
            assert await admin.partition_counts([topic.name]) == {topic.name: FEW}


async def test_another_partition_count_is_refused_with_what_to_do_and_nothing_is_created(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    there = topics(topic_prefix)[0]
    await make(broker.bootstrap, [there], partitions=3)
    async with TopicAdmin(broker.bootstrap) as admin:
        with pytest.raises(TopicsError, match=rf"{there.name} has 3, not 2.*Use --partitions 3, or another STREAMS"):
            await admin.create(topics(topic_prefix), FEW)
        assert await admin.partition_counts(names(topic_prefix)) == {there.name: 3}


async def test_input_topics_get_the_clock_of_the_broker(broker: EmbeddedBroker, topic_prefix: str) -> None:
    await create_topics(broker.bootstrap, topic_prefix, FEW)
    for name in ("renders", "viewability", "clicks"):
        assert (await config_of(broker.bootstrap, topic_prefix + name))["message.timestamp.type"] == "LogAppendTime"


async def test_state_and_windows_are_compacted_and_what_is_read_once_is_not(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, FEW)
    policies = {
        topic.name.removeprefix(topic_prefix): (await config_of(broker.bootstrap, topic.name))["cleanup.policy"]
        for topic in topics(topic_prefix)
    }
    assert {name for name, policy in policies.items() if policy == "compact"} == {
        "campaign-windows",
        "reported-counts",
        f"{GROUP}-journal-changelog",
        f"{GROUP}-campaigns-changelog",
    }


async def test_more_replicas_than_brokers_are_refused_in_kafkas_words(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    async with TopicAdmin(broker.bootstrap) as admin:
        with pytest.raises(TopicsError, match=r"renders cannot be created: .*replication factor"):
            await admin.create(topics(topic_prefix), FEW, replication=3)


# --- check -----------------------------------------------------------------------------------------------------------


async def test_topics_as_created_give_no_findings(broker: EmbeddedBroker, topic_prefix: str) -> None:
    await create_topics(broker.bootstrap, topic_prefix, FEW)
    assert await check(broker.bootstrap, topics(topic_prefix)) == []


async def test_a_missing_topic_is_found(broker: EmbeddedBroker, topic_prefix: str) -> None:
    *there, missing = topics(topic_prefix)
    await make(broker.bootstrap, there)
    assert await check(broker.bootstrap, topics(topic_prefix)) == [
        f"{missing.name}: does not exist; run `streams topics create --partitions N`"
    ]


async def test_unequal_partition_counts_are_found(broker: EmbeddedBroker, topic_prefix: str) -> None:
    *there, last = topics(topic_prefix)
    await make(broker.bootstrap, there)
    await make(broker.bootstrap, [last], partitions=3)
    [finding] = await check(broker.bootstrap, topics(topic_prefix))
    assert "partition counts differ" in finding
    assert f"{last.name} 3" in finding


async def test_the_clock_of_the_sender_is_found(broker: EmbeddedBroker, topic_prefix: str) -> None:
    renders, *there = topics(topic_prefix)
    await make(broker.bootstrap, [other(renders, message_timestamp_type="CreateTime"), *there])
    [finding] = await check(broker.bootstrap, topics(topic_prefix))
    assert finding.startswith(f"{renders.name}: message.timestamp.type is CreateTime, should be LogAppendTime")


async def test_topics_that_agree_say_how_many_partitions_there_are(broker: EmbeddedBroker, topic_prefix: str) -> None:
    async with TopicAdmin(broker.bootstrap) as admin:
        with pytest.raises(TopicsError, match="no such topic; run `streams topics create"):
            await admin.agreed_partitions(topics(topic_prefix))
        await admin.create(topics(topic_prefix), FEW)
        assert await admin.agreed_partitions(topics(topic_prefix)) == FEW


# --- the command line ------------------------------------------------------------------------------------------------


def streams(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def at(broker: EmbeddedBroker, prefix: str, *flags: str) -> list[str]:
    return ["--broker", broker.bootstrap, "--topic-prefix", prefix, *flags]


def test_the_command_creates_then_finds_nothing_to_create(broker: EmbeddedBroker, topic_prefix: str) -> None:
    first = streams("topics", "create", "--partitions", "2", *at(broker, topic_prefix))
    assert (first.exit_code, first.stdout.splitlines()) == (0, [f"created {name}" for name in names(topic_prefix)])
    again = streams("topics", "create", "--partitions", "2", *at(broker, topic_prefix))
    assert (again.exit_code, again.stdout) == (0, "all topics exist\n")
    checked = streams("topics", "check", *at(broker, topic_prefix))
    assert (checked.exit_code, checked.stdout) == (0, "all topics are as they should be\n")


def test_the_command_exits_with_1_when_it_refuses(broker: EmbeddedBroker, topic_prefix: str) -> None:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, FEW))
    refused = streams("topics", "create", "--partitions", "5", *at(broker, topic_prefix))
    assert refused.exit_code == 1
    assert refused.stderr.startswith("streams: ")
    assert "Use --partitions 2" in refused.stderr


def test_the_command_exits_with_3_when_it_has_findings(broker: EmbeddedBroker, topic_prefix: str) -> None:
    found = streams("topics", "check", *at(broker, topic_prefix))
    assert found.exit_code == 3
    assert len(found.stdout.splitlines()) == len(topics(topic_prefix))


def test_with_json_the_command_prints_json_and_nothing_else(broker: EmbeddedBroker, topic_prefix: str) -> None:
    findings = read_json(streams("topics", "check", *at(broker, topic_prefix, "--json")), exit_code=3)
    assert len(findings["findings"]) == len(topics(topic_prefix))
    created = read_json(streams("topics", "create", *at(broker, topic_prefix, "--json")))
    assert created == {"created": names(topic_prefix)}
    assert read_json(streams("topics", "create", *at(broker, topic_prefix, "--json"))) == {"created": []}
    assert read_json(streams("topics", "check", *at(broker, topic_prefix, "--json"))) == {"findings": []}


def read_json(result: Result, exit_code: int = 0) -> Any:
    assert result.exit_code == exit_code
    assert result.stderr == ""
    return json.loads(result.stdout)


def run_check(address: str) -> tuple["subprocess.CompletedProcess[str]", float]:
    """Run the command as a process of its own, as what libraries write around it shows only there."""
    started = time.monotonic()
    command = [STREAMS, "topics", "check", "--broker", address]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMS_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    return done, time.monotonic() - started


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:9092"])
def test_an_unreachable_broker_is_told_in_one_line_and_soon(address: str) -> None:
    done, seconds = run_check(address)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"streams: no answer from Kafka at {address}")
    assert "STREAMS_BROKER" in line
    assert seconds < 20


def test_something_else_that_listens_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done, seconds = run_check(address)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"streams: no answer from Kafka at {address}")
    assert seconds < 30


def test_what_is_no_address_is_told_in_one_line() -> None:
    done, _ = run_check("kafka:port")
    assert done.returncode == 1
    assert done.stderr == "streams: 'kafka:port' is no list of Kafka addresses, host:port[,host:port]\n"
