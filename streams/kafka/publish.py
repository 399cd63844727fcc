"""Windows of a replay on a topic of its own, `campaign-windows-NAME`: keyed and cut as the live one is."""

from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.core.rollup import Window
from streams.kafka.connection import Broker, Connection
from streams.kafka.qualify import campaign_partition
from streams.kafka.topics import WINDOWS, Topic, TopicAdmin, TopicsError, all_topics
from streams.wire.records import encode_window, window_key


class WindowsTopic:
    """The topic of one run. Use as an async context manager; raises TopicsError."""

    def __init__(self, broker: Broker, prefix: str, run: str, is_ours: bool) -> None:
        self.name = f"{prefix}{WINDOWS}-{run}"
        self._live = prefix + WINDOWS
        self._connection = Connection.to(broker)
        self._is_ours = is_ours
        """Whether this run has begun to write there: then the topic may exist."""
        self._partitions = 0
        self._producer: Any = None

    async def __aenter__(self) -> "WindowsTopic":
        (config,) = (topic.config for topic in all_topics("", "") if topic.name == WINDOWS)
        async with TopicAdmin(self._connection) as admin:
            self._partitions = await admin.agreed_partitions([Topic(self._live, {})])
            if self.name in await admin.partition_counts([self.name]) and not self._is_ours:
                raise TopicsError(f"{self.name} exists: another run wrote it. Take another --run, or delete the topic")
            await admin.create([Topic(self.name, config)], self._partitions)
        self._producer = AIOKafkaProducer(enable_idempotence=True, **self._connection.arguments)
        try:
            await self._producer.start()
        except (KafkaError, OSError) as error:
            await self._producer.stop()
            raise self._failed(error) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def send(self, windows: Iterable[Window]) -> int:
        """Write windows; return how many when all of them are delivered. One that is written again stays the same."""
        deliveries = []
        try:
            for window in windows:
                place = campaign_partition(window.campaign_id, self._partitions)
                value, key = encode_window(window), window_key(window)
                deliveries.append(await self._producer.send(self.name, value, key, partition=place))
            for delivery in deliveries:
                await delivery
        except (KafkaError, OSError) as error:
            raise self._failed(error) from None
        return len(deliveries)

    def _failed(self, error: Exception) -> TopicsError:
        return TopicsError(f"{self.name}: not all windows could be written ({type(error).__name__}); run it again")
