"""What lies on the topics, counted once more by the oracle, beside what the workers have written into their tables."""

import json
from collections import Counter, defaultdict
from functools import partial
from typing import Any

from streams.core.rollup import Share
from streams.core.rules import Rules
from streams.kafka.topics import CAMPAIGNS, changelog
from streams.wire.records import decode_row, decode_row_key
from tests import oracle
from tests.conftest import GROUP
from tests.logs import TOPICS, contract_of
from tests.oracle import Event
from tests.worker import read_topic

Cells = dict[tuple[Any, ...], dict[str, int]]


def recounted(bootstrap: str, prefix: str, partitions: int) -> tuple[Cells, dict[str, Counter[str]]]:
    """Figures by (campaign, currency, source, pane), and how often each outcome by topic, of what `generate` sent."""
    logs: list[oracle.Logs] = [{topic: [] for topic in TOPICS} for _ in range(partitions)]
    for topic in TOPICS:
        for record in sorted(read_topic(bootstrap, prefix + topic, partitions), key=lambda one: one.offset()):
            entry = (record.offset(), event_of(record.value()), record.timestamp()[1])
            logs[record.partition()][topic].append(entry)
    cells: Cells = defaultdict(lambda: dict.fromkeys(oracle.FIGURES, 0))
    outcomes: dict[str, Counter[str]] = {topic: Counter() for topic in TOPICS}
    while logs:
        answer = oracle.answer(logs.pop(), contract_of(Rules()))
        for topic in TOPICS:
            outcomes[topic] += answer.counts(topic)
        for place, figures in answer.cells.items():
            for name, value in figures.items():
                cells[place][name] += value
    return {place: figures for place, figures in cells.items() if any(figures.values())}, outcomes


def event_of(value: bytes | None) -> Event | None:
    """The event, or None if it is malformed: no JSON, or an id that is "broken", no text, or not there."""
    try:
        event = json.loads(value or b"")
    except ValueError:
        return None
    known = isinstance(event, dict) and isinstance(event.get("impression_id"), str)
    return event if known and event["impression_id"] != "broken" else None


def written(bootstrap: str, prefix: str, partitions: int) -> Cells:
    """Figures by (campaign, currency, source, pane), as the newest rows of all owners have them."""
    rows: dict[bytes, bytes | None] = {}
    topic = changelog(prefix + GROUP, CAMPAIGNS)
    for record in sorted(read_topic(bootstrap, topic, partitions), key=lambda one: one.offset()):
        rows[record.key()] = record.value()
    newest: dict[Any, dict[int, Share]] = defaultdict(dict)
    for key, value in rows.items():
        _, _, row = decode_row_key(key)
        if value is not None and row.series is not None and row.minute is not None:
            shares = decode_row(value)
            assert isinstance(shares, dict), "a row of a minute is what each source says of it"
            for source, share in shares.items():
                known = newest[row].get(source)
                if known is None or share.version > known.version:
                    newest[row][source] = share
    cells: Cells = defaultdict(partial(dict.fromkeys, oracle.FIGURES, 0))
    for row, by_source in newest.items():
        for share in by_source.values():
            for pane, cell in share.panes.items():
                place = (row.series.campaign_id, row.series.currency, row.series.source, pane)
                for name in oracle.FIGURES:
                    cells[place][name] += getattr(cell, name)
    return {place: figures for place, figures in cells.items() if any(figures.values())}


def assert_as_recounted(bootstrap: str, prefix: str, partitions: int, truth: dict[str, Any]) -> None:
    """All cells of the workers, which have stopped, and all outcomes of the generator's truth are the oracle's."""
    cells, outcomes = recounted(bootstrap, prefix, partitions)
    for topic in TOPICS:
        expected = {outcome: count for outcome, count in truth["events"][topic]["outcomes"].items() if count}
        assert outcomes[topic] == expected, topic
        assert outcomes[topic].total() == truth["events"][topic]["sent"], topic
    found = written(bootstrap, prefix, partitions)
    assert found
    differing = [place for place in cells.keys() | found.keys() if cells.get(place) != found.get(place)]
    assert not differing, [(place, cells.get(place), found.get(place)) for place in sorted(differing)[:5]]
