"""Journals of many remembered impressions, written to their topic: the state of a worker hours into its work."""

import time
from typing import Final

import numpy as np
from confluent_kafka import Producer

from benchmarks.load import send
from streams.core.events import RENDERS, TOPICS
from streams.core.impressions import ANCHOR, COUNTED, SAID_MEASURABLE, SAID_VIEWABLE, Rows
from streams.core.journal import Claim, Position
from streams.core.panes import Series
from streams.core.partition import Delta, Marks, Progress
from streams.core.rules import Outcome
from streams.kafka.topics import JOURNAL, changelog
from streams.settings import Settings
from streams.wire.records import encode_claim, encode_delta, journal_key

CAMPAIGNS: Final = 20
_ROWS: Final = 5_000
"""Renders of one journal record: a quarter of a second of 20,000 a second."""
_VIEWED: Final = 0.8
_SPREAD_MS: Final = 3_000_000
"""They came in the last 50 minutes: none of them is forgotten yet."""


def preload(bootstrap: str, prefix: str, impressions: int, partitions: int) -> None:
    """Write the journals of so many impressions, evenly over the partitions; each was rendered, most were viewed.

    Nothing lies in the inputs: the journals say that they were read up to offset 0.
    """
    settings = Settings(broker=bootstrap, topic_prefix=prefix)
    topic = changelog(settings.topic(settings.group), JOURNAL)
    producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": 8 << 20, "linger.ms": 20})
    now = int(time.time() * 1000)
    for number in range(partitions):
        claim = encode_claim(Claim(None, partitions))
        send(producer, topic, journal_key(number, Position(1, 0)), claim, partition=number)
        left = impressions // partitions
        for seq, first in enumerate(range(0, left, _ROWS), 1):
            rows = min(_ROWS, left - first)
            delta = _delta(settings, number, seq, first, rows, now - _SPREAD_MS + first * _SPREAD_MS // left)
            send(producer, topic, journal_key(number, Position(1, seq)), encode_delta(delta), partition=number)
    if producer.flush(60):
        raise RuntimeError("the journals were not delivered")


def _delta(settings: Settings, number: int, seq: int, first: int, rows: int, ts: int) -> Delta:
    random = np.random.default_rng((number, seq))
    viewed = np.flatnonzero(random.random(rows) < _VIEWED) + first
    says = random.choice(np.array([SAID_MEASURABLE, SAID_MEASURABLE | SAID_VIEWABLE], np.uint8), len(viewed))
    progress = {topic: Progress(0, ts) for topic in TOPICS}
    progress[RENDERS].outcomes[Outcome.COUNTED] = first + rows
    return Delta(
        seq,
        [0] * len(TOPICS),
        list(progress.values()),
        {},
        0,
        Rows(
            first,
            random.integers(0, 1 << 64, rows, np.uint64).tobytes(),
            np.full(rows, ts, np.int64).tobytes(),
            np.full(rows, 2_500_000, np.int64).tobytes(),
            random.integers(0, CAMPAIGNS, rows, np.uint32).tobytes(),
            bytes([COUNTED | ANCHOR]) * rows,
            [Series(f"campaign-{campaign}", "USD", "adserver") for campaign in range(CAMPAIGNS)],
            random.integers(1, 1 << 64, rows, np.uint64).tobytes(),
        ),
        Marks(viewed.astype(np.uint64).tobytes(), says.tobytes(), []),
        [],
        [],
        rules=settings.rules.plain(),
    )
