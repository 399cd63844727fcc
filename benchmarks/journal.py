"""Journals of many remembered impressions, written to their topic: the state of a worker hours into its work."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks.load import CAMPAIGNS, Truth, put
from streams.core.delta import Delta, Marks, Progress
from streams.core.events import RENDERS, TOPICS, VIEWABILITY
from streams.core.impressions import ANCHOR, COUNTED, SAID_MEASURABLE, SAID_VIEWABLE, Rows
from streams.core.journal import Claim, Position
from streams.core.panes import Series
from streams.core.rules import Outcome
from streams.kafka.topics import JOURNAL, changelog
from streams.settings import Settings
from streams.wire.records import encode_claim, encode_delta, journal_key

_ROWS: Final = 5_000
"""Renders of one journal record: a quarter of a second of 20,000 a second."""
_VIEWED: Final = 0.8
_SPREAD_MS: Final = 3_000_000
"""They came in the last 50 minutes: none of them is forgotten yet, and the window of an hour holds them."""


def preload(bootstrap: str, prefix: str, impressions: int, partitions: int, end_ms: int) -> Truth:
    """Write the journals of so many impressions, evenly over the partitions, up to a time; return what was counted.

    Each was rendered, most were viewed. Nothing lies in the inputs: the journals say that they were read up to offset
    0, and what comes there goes on from here.
    """
    settings = Settings(broker=bootstrap, topic_prefix=prefix)
    topic = changelog(settings.topic(settings.group), JOURNAL)
    producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": 8 << 20, "linger.ms": 20})
    truth = Truth(0, 0, Counter(), Counter(), Counter())
    for number in range(partitions):
        claim = encode_claim(Claim(None, partitions))
        put(producer, topic, journal_key(number, Position(1, 0)), claim, partition=number)
        for delta, counted in _deltas(settings, number, impressions // partitions, end_ms):
            put(producer, topic, journal_key(number, Position(1, delta.seq)), encode_delta(delta), partition=number)
            truth = truth.plus(counted)
    if producer.flush(60):
        raise RuntimeError("the journals were not delivered")
    return truth


def _deltas(settings: Settings, number: int, impressions: int, end_ms: int) -> Iterator[tuple[Delta, Truth]]:
    views = 0
    for seq, first in enumerate(range(0, impressions, _ROWS), 1):
        rows = min(_ROWS, impressions - first)
        random = np.random.default_rng((number, seq))
        campaigns = random.integers(0, CAMPAIGNS, rows, np.uint32)
        viewed = np.flatnonzero(random.random(rows) < _VIEWED)
        says = random.choice(np.array([SAID_MEASURABLE, SAID_MEASURABLE | SAID_VIEWABLE], np.uint8), len(viewed))
        views += len(viewed)
        ts = end_ms - _SPREAD_MS + (first + rows) * _SPREAD_MS // impressions
        progress = {topic: Progress(0, ts) for topic in TOPICS}
        progress[RENDERS].outcomes[Outcome.COUNTED] = first + rows
        progress[VIEWABILITY].outcomes[Outcome.COUNTED] = views
        marks = Marks((viewed + first).astype(np.uint64).tobytes(), says.tobytes(), [])
        delta = Delta(
            seq,
            [0] * len(TOPICS),
            list(progress.values()),
            {},
            0,
            _rows(random, first, ts, campaigns),
            marks,
            [],
            [],
            rules=settings.rules.plain(),
        )
        served, measurable = _counted(campaigns), _counted(campaigns[viewed])
        viewable = _counted(campaigns[viewed[says & SAID_VIEWABLE > 0]])
        yield delta, Truth(rows + len(viewed), 0, served, measurable, viewable)


def _rows(random: np.random.Generator, first: int, ts: int, campaigns: NDArray[np.uint32]) -> Rows:
    rows = len(campaigns)
    return Rows(
        first,
        random.integers(0, 1 << 64, rows, np.uint64).tobytes(),
        np.full(rows, ts, np.int64).tobytes(),
        np.full(rows, 2_500_000, np.int64).tobytes(),
        campaigns.tobytes(),
        bytes([COUNTED | ANCHOR]) * rows,
        [Series(f"campaign-{campaign}", "USD", "adserver") for campaign in range(CAMPAIGNS)],
        random.integers(1, 1 << 64, rows, np.uint64).tobytes(),
    )


def _counted(campaigns: NDArray[np.uint32]) -> Counter[str]:
    counts = np.bincount(campaigns, minlength=CAMPAIGNS).tolist()
    return Counter({f"campaign-{campaign}": count for campaign, count in enumerate(counts)})
