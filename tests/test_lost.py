"""Records that are gone before they were read, topics that are not what they were: the worker stops, and says why."""

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streams.kafka.broker import EmbeddedBroker
from tests.conftest import create_topics
from tests.logs import render
from tests.worker import WorkerProcess, read_topic, send, wait_until

COUNT, GONE = 100, 60
SESSION = {"session_timeout": "60s"}
LEAVES_S = 30.0
"""Who ends sooner has not waited until Kafka held the one before it for dead, which has left though it failed."""


@pytest.fixture
def topics(broker: EmbeddedBroker, topic_prefix: str) -> str:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, 1))
    return topic_prefix


def renders(start: int, stop: int) -> Iterator[tuple[str, dict[str, object]]]:
    ts = time.time_ns() // 1_000_000
    return (("v", render(f"imp-{number}", ts)) for number in range(start, stop))


def last_words(worker: WorkerProcess) -> str:
    """What a worker says that ends with 1."""
    began = time.monotonic()
    assert worker.wait() == 1
    assert time.monotonic() - began < LEAVES_S, "\n".join(worker.log)
    assert not any("Traceback" in line for line in worker.log), "\n".join(worker.log)
    return worker.log[-1]


def asleep(worker: WorkerProcess) -> None:
    """Let it sleep, and its last fetch run out."""
    worker.signal(signal.SIGSTOP)
    time.sleep(0.2)


def test_what_retention_deletes_under_a_running_worker_stops_it_until_the_loss_is_accepted(
    broker: EmbeddedBroker, topics: str
) -> None:
    with WorkerProcess(broker.bootstrap, topics, **SESSION) as worker:
        send(broker.bootstrap, topics + "renders", renders(0, 10))
        wait_until(lambda: worker.totals().get("c") == (10, 0, 0), "ten are counted")
        asleep(worker)
        send(broker.bootstrap, topics + "renders", renders(10, COUNT))
        delete_before(broker.bootstrap, topics + "renders", GONE)
        worker.signal(signal.SIGCONT)
        assert f"{topics}renders/0 was read up to offset 10, and Kafka has nothing there" in last_words(worker)
    with WorkerProcess(broker.bootstrap, topics) as heir:
        assert f"what came before {GONE} was deleted by the topic's retention" in last_words(heir)
    with WorkerProcess(broker.bootstrap, topics, "--accept-loss") as told:
        wait_until(lambda: told.totals().get("c") == (10 + COUNT - GONE, 0, 0), "what is left is counted")


def test_a_topic_that_is_created_anew_under_a_running_worker_stops_it_and_is_not_counted_on(
    broker: EmbeddedBroker, topics: str
) -> None:
    with WorkerProcess(broker.bootstrap, topics, **SESSION) as worker:
        send(broker.bootstrap, topics + "renders", renders(0, COUNT))
        wait_until(lambda: worker.totals().get("c") == (COUNT, 0, 0), "all are counted")
        asleep(worker)
        create_anew(broker.bootstrap, topics + "renders")
        send(broker.bootstrap, topics + "renders", renders(COUNT, COUNT + 10))
        worker.signal(signal.SIGCONT)
        said = last_words(worker)
    assert f"{topics}renders/0 was " in said and "created anew" in said
    with WorkerProcess(broker.bootstrap, topics, "--accept-loss") as heir:
        said = last_words(heir)
    assert f"{topics}renders/0 was counted up to offset {COUNT}, and ends at 10: it was created anew" in said
    assert "another STREAMS_TOPIC_PREFIX" in said
    assert len(read_topic(broker.bootstrap, topics + "renders", 1)) == 10, "nothing is lost by that"


def delete_before(bootstrap: str, topic: str, offset: int) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    for deleted in client.delete_records([TopicPartition(topic, 0, offset)]).values():
        deleted.result(10)


def create_anew(bootstrap: str, topic: str) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    for deleted in client.delete_topics([topic]).values():
        deleted.result(10)
    wait_until(lambda: topic not in client.list_topics(timeout=10).topics, "it is gone")
    anew = NewTopic(topic, 1, 1, config={"message.timestamp.type": "LogAppendTime"})
    for created in client.create_topics([anew]).values():
        created.result(10)
    wait_until(lambda: topic in client.list_topics(timeout=10).topics, "it is there again")
