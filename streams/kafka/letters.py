"""The dead letter topic: its letters, and sending their records again, each at most once.

Law: a record is sent between two marks (wire/letters), each step confirmed before the next one begins. Whoever finds
the first mark without the second looks for the record behind the offset that the mark names, and sends it only if it
is not there. So a run that died is finished by the next one.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.kafka.connection import Broker, Connection
from streams.kafka.crash import reached
from streams.kafka.produce import ProduceError
from streams.kafka.reader import Reader
from streams.kafka.topics import DEAD_LETTERS
from streams.wire.letters import RETRY_OF, Letter, LetterError, Mark, Place, mark_headers, read_letter, retry_headers
from streams.wire.records import Headers

_REQUEST_BYTES: Final = 16 << 20
_GIVE_UP_MS: Final = 30_000


class Box:
    """What lies on the dead letter topic, without the records themselves: they may be large."""

    def __init__(self) -> None:
        self.letters: dict[Place, Letter] = {}
        self.retried: set[Place] = set()
        """Letters whose records were sent again."""
        self.unknown: dict[Place, int] = {}
        """Letters of which that is not known, as a run died; with the offset behind which their records would lie."""

    def put(self, one: Letter | Mark) -> None:
        """Add a letter, which may come twice, or what is noted of one."""
        if isinstance(one, Letter):
            self.letters[one.place] = one
        elif one.is_done:
            self.retried.add(one.place)
            self.unknown.pop(one.place, None)
        elif one.place not in self.retried:
            self.unknown.setdefault(one.place, one.end)


async def letters(broker: Broker, prefix: str) -> AsyncIterator[tuple[Letter | Mark, bytes | None]]:
    """Yield all that lies on the dead letter topic, with the values of records. What is no letter is left out.

    Raises TopicsError.
    """
    async with Reader(broker, prefix, (DEAD_LETTERS,)) as reader:
        async for _, _, records in reader.records(range(reader.partitions)):
            for record in records:
                try:
                    yield read_letter(record.key, record.value, list(record.headers)), record.value
                except LetterError:
                    continue  # whoever put it there, it is no record that was refused


async def sent_already(broker: Broker, prefix: str, unknown: dict[Place, int]) -> set[Place]:
    """Return which of these letters have a record that was sent again, behind the offset that each has here."""
    since: dict[tuple[str, int], int] = {}
    for place, end in unknown.items():
        since[place.topic, place.partition] = min(end, since.get((place.topic, place.partition), end))
    found = set()
    async with Reader(broker, prefix, sorted({topic for topic, _ in since})) as reader:
        async for _, _, records in reader.records({partition for _, partition in since}, since):
            found |= {value for record in records for name, value in record.headers if name == RETRY_OF}
    return {place for place in unknown if place.key in found}


class Retrier:
    """Sends records of letters again, into the partition that they came from. Use as an async context manager.

    Raises ProduceError if Kafka does not take one: what was sent by then, the next run knows.
    """

    def __init__(self, broker: Broker, prefix: str) -> None:
        self._connection = Connection.to(broker)
        self._prefix = prefix
        self._producer: Any = None

    async def __aenter__(self) -> "Retrier":
        self._producer = AIOKafkaProducer(
            enable_idempotence=True,
            max_request_size=_REQUEST_BYTES,
            request_timeout_ms=_GIVE_UP_MS,
            **self._connection.arguments,
        )
        try:
            await self._producer.start()
        except (KafkaError, OSError) as error:
            await self._producer.stop()
            raise self._refused(error) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    def _refused(self, error: Exception) -> ProduceError:
        return ProduceError(
            f"Kafka at {self._connection.address} did not take a record ({type(error).__name__}): run it again, what "
            "was sent by now is known and not sent twice"
        )

    async def retry(
        self, chosen: Collection[tuple[Letter, bytes | None]], ends: Mapping[tuple[str, int], int], as_new: bool
    ) -> None:
        """Send these records again between their marks. `ends` are those of the topic partitions that they lay in."""
        places = [letter.place for letter, _ in chosen]
        await self.mark(Mark(place, False, ends[place.topic, place.partition]) for place in places)
        reached("retrying")
        await self._send(
            (letter.place.topic, letter.place.partition, letter.key, value, retry_headers(letter, as_new))
            for letter, value in chosen
        )
        reached("sent")
        await self.mark(Mark(place, True, 0) for place in places)

    async def mark(self, marks: Iterable[Mark]) -> None:
        """Write marks beside their letters."""
        await self._send((DEAD_LETTERS, None, mark.place.key, None, mark_headers(mark)) for mark in marks)

    async def _send(self, records: Iterable[tuple[str, int | None, bytes | None, bytes | None, Headers]]) -> None:
        try:
            deliveries = [
                await self._producer.send(self._prefix + topic, value, key, partition, headers=headers)
                for topic, partition, key, value, headers in records
            ]
            for delivery in deliveries:
                await delivery
        except (KafkaError, OSError) as error:
            raise self._refused(error) from None
