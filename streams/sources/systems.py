"""The ad systems whose files can be read, and the one way from their lines to records that are checked.

Law: what comes out is what the worker accepts. An event is encoded and decoded again by the worker's own rules, and one
that would be a dead letter there is a bad row here, with its line.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import orjson

from streams.core.events import TOPICS, Malformed
from streams.core.reported import REPORTED_COUNTS, ReportedCount
from streams.sources import (
    doubleverify,
    dsp_report,
    dv360,
    dv_report,
    equativ,
    gam,
    google_ads,
    gpt,
    ias,
    ias_report,
    kevel,
    meta,
    openrtb,
    prebid,
    ssp_report,
    vast,
)
from streams.sources.adapter import BadRow, Event, Options, Row, Skipped, System
from streams.wire.events import decoder
from streams.wire.reported import decode_reported, encode_reported, reported_key

_LOGS: Final = (gam, dv360, kevel, openrtb, vast, prebid, gpt, ias, doubleverify)
_REPORTS: Final = (google_ads, meta, equativ, dsp_report, ssp_report, ias_report, dv_report)

SYSTEMS: Final[dict[str, System]] = {module.SYSTEM.name: module.SYSTEM for module in (*_LOGS, *_REPORTS)}

_AT_ONCE: Final = 200
"""Rows that are checked together: so few that they are still in the processor's cache when they are."""


class Batch(NamedTuple):
    """Records of one topic, as columns: their values, what these say, and when each was recorded, if that is told."""

    topic: str
    values: list[bytes]
    says: list[Any]
    """Render, Viewability, Click or ReportedCount."""
    appended_ms: list[int | None]


class Piece(NamedTuple):
    """What some consecutive rows became."""

    batches: list[Batch]
    skipped: Counter[str]
    """By reason."""
    bad: list[BadRow]


class Reader:
    """Judges the lines of a file, knowing how it begins. Raises HeaderError if it is no file of the system."""

    def __init__(self, system: System, head: Sequence[bytes], file: str, options: Options) -> None:
        self.file = file
        self.head = head
        self._opened = system.open([*map(_decoded, head)], file, options)
        self.header = self._opened.header
        """Lines before the first row."""

    def pieces(self, lines: Sequence[bytes], first: int) -> Iterator[Piece]:
        """Yield what consecutive lines become, where each is judged alone; `first` is the number of the first one."""
        for start in range(0, len(lines), _AT_ONCE):
            rows = self._opened.judge(map(_decoded, lines[start : start + _AT_ONCE]), first + start)
            yield _checked(rows)

    def all_pieces(self, lines: Iterable[bytes]) -> Iterator[Piece]:
        """Yield what all lines after the header become."""
        rows = self._opened.judge(map(_decoded, lines), self.header + 1)
        rows = self._opened.over_all(rows) if self._opened.over_all else rows
        while piece := list(islice(rows, _AT_ONCE)):
            yield _checked(piece)


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def newest(batches: Iterable[Batch]) -> Batch:
    """Return, as one batch, of all counts that are reported of the same what was read last."""
    found = {
        reported_key(count): (value, count)
        for batch in batches
        for value, count in zip(batch.values, batch.says, strict=True)
    }
    values, counts = [value for value, _ in found.values()], [count for _, count in found.values()]
    return Batch(REPORTED_COUNTS, values, counts, [None] * len(counts))


def _checked(rows: Iterable[Row]) -> Piece:
    bad: list[BadRow] = []
    skipped: Counter[str] = Counter()
    events: dict[str, list[tuple[int, Event]]] = {topic: [] for topic in TOPICS}
    counts: list[tuple[int, ReportedCount]] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        line, made = row
        for one in made:
            if type(one) is Event:
                events[one.topic].append((line, one))
            elif isinstance(one, Skipped):
                skipped[one.reason] += 1
            elif isinstance(one, ReportedCount):
                counts.append((line, one))
    batches = [_checked_events(topic, told, bad) for topic, told in events.items() if told]
    if counts:
        batches.append(_checked_counts(counts, bad))
    bad.sort()
    return Piece(batches, skipped, bad)


def _checked_events(topic: str, events: list[tuple[int, Event]], bad: list[BadRow]) -> Batch:
    values = _encoded([event.fields for _, event in events])
    says = decoder(topic)(values)
    batch = Batch(topic, values, says, [event.appended_ms for _, event in events])
    if Malformed not in set(map(type, says)):
        return batch
    wrong = {number for number, one in enumerate(says) if isinstance(one, Malformed)}
    bad += [_bad_row(events[number][0], values[number], says[number]) for number in wrong]
    right = [number for number in range(len(events)) if number not in wrong]
    return Batch(
        topic,
        [values[number] for number in right],
        [says[number] for number in right],
        [batch.appended_ms[number] for number in right],
    )


def _encoded(events: list[dict[str, Any]]) -> list[bytes]:
    try:
        return [*map(orjson.dumps, events)]
    except orjson.JSONEncodeError:  # a lone surrogate: what was no UTF-8 in the file
        return [b""] if len(events) == 1 else [value for event in events for value in _encoded([event])]


def _bad_row(line: int, value: bytes, problem: Any) -> BadRow:
    return BadRow(line, problem.reason, problem.detail) if value else BadRow(line, "not_utf8", "is not UTF-8")


def _checked_counts(counts: list[tuple[int, ReportedCount]], bad: list[BadRow]) -> Batch:
    batch = Batch(REPORTED_COUNTS, [], [], [])
    for line, count in counts:
        value = encode_reported(count)
        found = decode_reported(value)
        if isinstance(found, Malformed):
            bad.append(BadRow(line, found.reason, found.detail))
        else:
            batch.values.append(value)
            batch.says.append(found)
            batch.appended_ms.append(None)
    return batch
