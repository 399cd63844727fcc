"""The topics: their names, and the partitions, retention and compaction that fit what each is used for."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import Final, NamedTuple, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from streams.core.events import TOPICS
from streams.core.reported import REPORTED_COUNTS
from streams.kafka.connection import Broker, Connection, RefusedError

PARTIALS: Final = "campaign-partials"
WINDOWS: Final = "campaign-windows"
DEAD_LETTERS: Final = "dead-letters"
JOURNAL: Final = "journal"
CAMPAIGNS: Final = "campaigns"

T = TypeVar("T")

_ANSWER_S: Final = 10.0
_DAY_MS: Final = 86_400_000
_INPUT_BYTES: Final = 8 << 20
_AT_LEAST: Final = frozenset({"retention.ms", "max.message.bytes"})
_FOREVER: Final = "-1"
_OWN_BYTES: Final = 16 << 20
"""The program's own records and letters: a letter carries an input record whole, and its headers."""

# What aiokafka has to say goes to whoever set logging up. Without that, Python would write it to standard error, beside
# the one line in which a verb tells what is wrong.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


class Topic(NamedTuple):
    """A topic and the settings that its use depends on."""

    name: str
    config: dict[str, str]


class TopicsError(Exception):
    """Topics that cannot be used as they are; the message says what to do."""


class NoBrokerError(TopicsError):
    """No broker answers: it may come back."""


def changelog(group: str, table: str) -> str:
    """Return the name that Faust gives to a table's changelog topic."""
    return f"{group}-{table}-changelog"


def all_topics(prefix: str, group: str) -> list[Topic]:
    """Return every topic that the program reads or writes, in the order in which to create them."""
    compacted = {"cleanup.policy": "compact", "max.message.bytes": str(_OWN_BYTES)}
    state = {**compacted, "segment.ms": str(3_600_000), "min.cleanable.dirty.ratio": "0.1"}
    inputs = {
        "cleanup.policy": "delete",
        "retention.ms": str(7 * _DAY_MS),
        # Rule 2 needs a clock that is not the sender's; and retention goes by record time, so that old event times
        # in CreateTime records would be purged within minutes.
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(_INPUT_BYTES),
    }
    kept = {"cleanup.policy": "delete", "max.message.bytes": str(_OWN_BYTES)}
    return [
        *(Topic(prefix + name, inputs) for name in TOPICS),
        Topic(prefix + PARTIALS, {**kept, "retention.ms": str(7 * _DAY_MS)}),
        Topic(prefix + WINDOWS, compacted),
        Topic(prefix + REPORTED_COUNTS, compacted),
        Topic(prefix + DEAD_LETTERS, {**kept, "retention.ms": str(30 * _DAY_MS)}),
        *(Topic(changelog(group, table), state) for table in (JOURNAL, CAMPAIGNS)),
    ]


class TopicAdmin:
    """Creates and checks topics. Use as an async context manager."""

    def __init__(self, broker: Broker) -> None:
        self._connection = Connection.to(broker)
        self._client = AIOKafkaAdminClient(request_timeout_ms=int(_ANSWER_S * 1000), **self._connection.arguments)

    async def __aenter__(self) -> "TopicAdmin":
        address = self._connection.address
        try:
            # First, as it can say why: aiokafka's clients only log that, and raise that they got nowhere.
            await self._connection.knock()
        except ValueError:
            raise TopicsError(f"{address!r} is no list of Kafka addresses, host:port[,host:port]") from None
        except RefusedError as refusal:
            raise TopicsError(str(refusal)) from None
        except (KafkaError, OSError) as error:  # a time-out is an OSError
            raise self._away(error) from None
        try:
            await self._answer(self._client.start())
        except BaseException:  # to be cancelled is among them
            await self._client.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def _answer(self, request: Awaitable[T]) -> T:
        try:
            return await request
        except (KafkaError, OSError) as error:
            try:
                await self._connection.knock_at_nodes()
            except RefusedError as refusal:
                raise TopicsError(str(refusal)) from None
            except (KafkaError, OSError):
                pass
            raise self._away(error) from None

    def _away(self, error: Exception) -> NoBrokerError:
        closes = isinstance(error, KafkaConnectionError | ConnectionResetError)
        hint = "; it closes connections: is STREAMS_SECURITY_PROTOCOL what it wants?" if closes else ""
        return NoBrokerError(
            f"no answer from Kafka at {self._connection.address} ({type(error).__name__}): start one with `streams"
            f" broker`, or say with STREAMS_BROKER where one runs{hint}"
        )

    async def partition_counts(self, names: Iterable[str]) -> dict[str, int]:
        """Return how many partitions each of these topics has; those that do not exist are left out.

        Raises TopicsError if the broker does not tell.
        """
        found = await self._answer(self._client.describe_topics(list(names)))
        errors = {topic["topic"]: for_code(topic["error_code"]) for topic in found if topic["error_code"]}
        for name, error in errors.items():
            if error is not UnknownTopicOrPartitionError:
                raise TopicsError(f"{name} cannot be looked at: {error.__name__}")
        return {topic["topic"]: len(topic["partitions"]) for topic in found if topic["topic"] not in errors}

    async def create(self, topics: list[Topic], partitions: int, replication: int = 1) -> list[str]:
        """Create the topics that are missing and return their names.

        Raises TopicsError if one exists with another partition count: viewers and campaigns would be looked for in
        partitions where they do not lie.
        """
        counts = await self.partition_counts(topic.name for topic in topics)
        _refuse_other_counts(counts, partitions)
        missing = [topic for topic in topics if topic.name not in counts]
        new = [NewTopic(topic.name, partitions, replication, topic_configs=dict(topic.config)) for topic in missing]
        response = await self._answer(self._client.create_topics(new))
        for name, code, message in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise TopicsError(f"{name} cannot be created: {message or error.__name__}")
        names = [topic.name for topic in missing]
        await self._await_known(names)
        return names

    async def _await_known(self, names: list[str]) -> None:
        """Wait until the topics can be used: the controller has created them before the brokers know."""
        async with asyncio.timeout(_ANSWER_S):
            while len(await self.partition_counts(names)) < len(names):
                await asyncio.sleep(0.02)

    async def check(self, topics: list[Topic]) -> list[str]:
        """Return a line for everything that is not as it should be, each with what to do; empty if all is well."""
        counts = await self.partition_counts(topic.name for topic in topics)
        findings = [
            f"{topic.name}: does not exist; run `streams topics create --partitions N`"
            for topic in topics
            if topic.name not in counts
        ]
        if len(set(counts.values())) > 1:
            findings.append(_unequal(counts))
        configs = await self._configs([topic.name for topic in topics if topic.name in counts])
        for topic in topics:
            findings += _differences(topic, configs.get(topic.name))
        return findings

    async def agreed_partitions(self, topics: list[Topic]) -> int:
        """Return how many partitions every topic has. Raises TopicsError if one is missing or has another count."""
        counts = await self.partition_counts(topic.name for topic in topics)
        missing = [topic.name for topic in topics if topic.name not in counts]
        if missing:
            raise TopicsError(f"{', '.join(missing)}: no such topic; run `streams topics create --partitions N`")
        if len(set(counts.values())) > 1:
            raise TopicsError(_unequal(counts))
        return next(iter(counts.values()))

    async def _configs(self, names: list[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        if not resources:
            return {}
        answers = await self._answer(self._client.describe_configs(resources))
        configs = {}
        for code, message, _type, name, entries in (resource for answer in answers for resource in answer.resources):
            if code:
                raise TopicsError(f"{name}: its settings cannot be read: {message or for_code(code).__name__}")
            configs[name] = {entry[0]: entry[1] for entry in entries}
        return configs


def _refuse_other_counts(counts: dict[str, int], partitions: int) -> None:
    others = {name: count for name, count in counts.items() if count != partitions}
    if others:
        found = ", ".join(f"{name} has {count}" for name, count in sorted(others.items()))
        raise TopicsError(
            f"{found}, not {partitions}. Partition counts cannot be changed in place: what a key's partition has"
            f" counted would stay behind. Use --partitions {min(others.values())}, or another STREAMS_TOPIC_PREFIX and"
            " send the events again."
        )


def _unequal(counts: dict[str, int]) -> str:
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return (
        f"partition counts differ ({listed}): all events of one viewer must lie in the same partition number of each"
        " topic; create the topics anew under another STREAMS_TOPIC_PREFIX with one count"
    )


def _differences(topic: Topic, config: dict[str, str] | None) -> list[str]:
    if config is None:
        return []
    return [
        f"{topic.name}: {key} is {config.get(key)}, should be {'at least ' * (key in _AT_LEAST)}{wanted}; set it with "
        "kafka-configs.sh --alter"
        for key, wanted in topic.config.items()
        if not _is_enough(key, config.get(key), wanted)
    ]


def _is_enough(key: str, found: str | None, wanted: str) -> bool:
    if found is None or key not in _AT_LEAST:
        return found == wanted
    return found == _FOREVER or int(found) >= int(wanted)
