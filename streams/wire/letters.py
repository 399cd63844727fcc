"""Dead letters, read: what a letter says of its record, the record to send again, and what is noted of that.

Law: whether a letter was sent again is written beside it, on its own topic and under its own key. A `retrying` mark
goes before the record and says where the topic ended then; a `retried` mark after it. So after a crash between the two,
the record is looked for from that offset on.
"""

from typing import Final, NamedTuple

from streams.core.events import TOPICS, Malformed
from streams.core.rules import Rules
from streams.wire.events import decoder
from streams.wire.records import Headers

RETRY_OF: Final = "retry-of"
"""Header of a record that was sent again: the key of its letter."""
RETRIES: Final = "retries"
"""Header of it: how often it was sent again, this time included."""
MARK: Final = "mark"
RETRYING: Final = b"retrying"
RETRIED: Final = b"retried"
_END: Final = "end"


class Place(NamedTuple):
    """Where the record of a letter lay: topic without prefix, partition, offset."""

    topic: str
    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Return the place of a text such as "renders/0/17", or of a letter's key, with |. Raises ValueError."""
        topic, partition, offset = text.replace("|", "/").split("/")
        if topic not in TOPICS:
            raise ValueError(f"{topic} is no input topic")
        return cls(topic, int(partition), int(offset))

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def key(self) -> bytes:
        """The key of its letter."""
        return f"{self.topic}|{self.partition}|{self.offset}".encode()


class Letter(NamedTuple):
    """What the headers of a dead letter say. Times in ms since the epoch."""

    place: Place
    reason: str
    detail: str
    timestamp: int
    """When the record was appended."""
    appended: int
    """When it was first appended, if it is a copy; else the same."""
    retries: int
    """How often it had been sent again before it was refused this time."""
    retry_of: str | None
    """The letter that it was sent again from."""
    key: bytes | None
    """The record's own key."""
    size: int
    """Bytes of the record's value; 0 of one that has none."""


class Mark(NamedTuple):
    """What is noted of sending a letter's record again: that it is about to be, or that it was."""

    place: Place
    is_done: bool
    end: int
    """Offset at which the record's topic partition ended before."""


class LetterError(ValueError):
    """A record of the dead letter topic that is no letter."""


def read_letter(key: bytes | None, value: bytes | None, headers: Headers) -> Letter | Mark:
    """Return what a record of the dead letter topic is. Raises LetterError."""
    said = dict(headers)
    try:
        place = Place.parse((key or b"").decode())
        if MARK in said:
            return Mark(place, said[MARK] == RETRIED, int(said[_END]))
        timestamp = int(said["timestamp"])
        return Letter(
            place,
            said["reason"].decode(),
            said["detail"].decode(),
            timestamp,
            int(said.get("appended", timestamp)),
            int(said.get(RETRIES, 0)),
            said[RETRY_OF].decode() if RETRY_OF in said else None,
            said.get("key"),
            len(value or b""),
        )
    except (KeyError, ValueError) as error:
        raise LetterError(f"not a dead letter: {error}") from None


def mark_headers(mark: Mark) -> Headers:
    """Return the headers of a mark; it has no value, and the key of its letter."""
    return [(MARK, RETRIED if mark.is_done else RETRYING), (_END, str(mark.end).encode())]


def retry_headers(letter: Letter, as_new: bool) -> Headers:
    """Return the headers of the record that is sent again: how often, from which letter, and when it first came."""
    appended = [] if as_new else [("appended", str(letter.appended).encode())]
    return [*appended, (RETRIES, str(letter.retries + 1).encode()), (RETRY_OF, letter.place.key)]


def objection(topic: str, value: bytes | None, appended_ms: int, rules: Rules) -> str | None:
    """Return why rules 1 and 2 would refuse a record, or None: its topic, its value, and when it was appended in ms."""
    event = decoder(topic)([value])[0]
    if isinstance(event, Malformed):
        return f"{event.reason}: {event.detail}"
    if event.ts > appended_ms + rules.future_ms:
        return f"future: its ts lies {(event.ts - appended_ms) / 1000:,.0f} s after its record's own time"
    return None
