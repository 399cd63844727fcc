"""The ad systems whose files can be read, and the one way from their lines to records that are checked.

Law: what comes out is what the worker accepts. An event is encoded and decoded again by the worker's own rules, and one
that would be a dead letter there is a bad row here, with its line.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import orjson

from streams.core.events import TOPICS, Malformed
from streams.core.reported import REPORTED_COUNTS, ReportedCount
from streams.sources import gam, google_ads
from streams.sources.adapter import BadRow, Event, Numbered, Options, Skipped, System
from streams.wire.events import decoder
from streams.wire.reported import decode_reported, encode_reported, reported_key

SYSTEMS: Final[dict[str, System]] = {module.SYSTEM.name: module.SYSTEM for module in (gam, google_ads)}

_AT_ONCE: Final = 2_000
"""Rows that are checked together."""


class Ready(NamedTuple):
    """A record that can be sent or written. `viewer_id` is empty where it is not known."""

    topic: str
    value: bytes
    impression_id: str = ""
    viewer_id: str = ""
    appended_ms: int | None = None
    reported: ReportedCount | None = None

    @property
    def key(self) -> bytes:
        """Its key, where topics are keyed by viewers."""
        if self.reported is not None:
            return reported_key(self.reported)
        return (self.viewer_id or self.impression_id).encode()


class Piece(NamedTuple):
    """What some consecutive rows became."""

    ready: list[Ready]
    skipped: list[Skipped]
    bad: list[BadRow]


def read(system: System, lines: Iterator[bytes], file: str, options: Options) -> Iterator[Piece]:
    """Yield what the rows of a file become, in pieces. Raises HeaderError if it is no file of this system."""
    texts = (line.decode("utf-8", "surrogateescape") for line in lines)
    rows = system.read(texts, file, options)
    while piece := list(islice(rows, _AT_ONCE)):
        yield _checked(piece)


def _checked(rows: Sequence[Numbered]) -> Piece:
    bad = [row for row in rows if isinstance(row, BadRow)]
    made = [row for row in rows if not isinstance(row, BadRow)]
    skipped = [one for _, one in made if isinstance(one, Skipped)]
    ready: list[Ready] = []
    for topic in TOPICS:
        events = [(line, one) for line, one in made if isinstance(one, Event) and one.topic == topic]
        _check_events(topic, events, ready, bad)
    _check_counts([(line, one) for line, one in made if isinstance(one, ReportedCount)], ready, bad)
    bad.sort()
    return Piece(ready, skipped, bad)


def _check_events(topic: str, events: list[tuple[int, Event]], ready: list[Ready], bad: list[BadRow]) -> None:
    encoded: list[tuple[int, Event, bytes]] = []
    for line, event in events:
        try:
            encoded.append((line, event, orjson.dumps(event.fields)))
        except orjson.JSONEncodeError:  # a lone surrogate: what was no UTF-8 in the file
            bad.append(BadRow(line, "not_utf8", "is not UTF-8"))
    for (line, event, value), found in zip(encoded, decoder(topic)([value for *_, value in encoded]), strict=True):
        if isinstance(found, Malformed):
            bad.append(BadRow(line, found.reason, found.detail))
        else:
            ready.append(Ready(topic, value, found.impression_id, found.viewer_id or "", event.appended_ms))


def _check_counts(counts: list[tuple[int, ReportedCount]], ready: list[Ready], bad: list[BadRow]) -> None:
    for line, count in counts:
        value = encode_reported(count)
        found = decode_reported(value)
        if isinstance(found, Malformed):
            bad.append(BadRow(line, found.reason, found.detail))
        else:
            ready.append(Ready(REPORTED_COUNTS, value, reported=found))
