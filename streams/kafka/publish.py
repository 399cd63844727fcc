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
    """The topic of one run, `name` behind the prefix. Use as an async context manager; raises TopicsError."""

    def __init__(self, broker: Broker, prefix: str, name: str) -> None:
        self.name = prefix + name
        self._live = prefix + WINDOWS
        self._connection = Connection.to(broker)
        self._partitions = 0
        self._producer: Any = None

    async def refuse_existing(self) -> None:
        """Refuse a topic that is there already: of another run."""
        async with TopicAdmin(self._connection) as admin:
            if self.name in await admin.partition_counts([self.name]):
                raise TopicsError(f"{self.name} exists: another run wrote it. Take another --run, or delete the topic")

    async def create(self) -> None:
        """Create the topic, unless it is there, like the live one: it has that one's keys in that one's partitions."""
        (config,) = (topic.config for topic in all_topics("", "") if topic.name == WINDOWS)
        async with TopicAdmin(self._connection) as admin:
            self._partitions = await admin.agreed_partitions([Topic(self._live, {})])
            await admin.create([Topic(self.name, config)], self._partitions)

    async def __aenter__(self) -> "WindowsTopic":
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
