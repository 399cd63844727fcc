"""Whatever bytes come: no exception, every record accounted for, and memory that does not grow.

STREAMS_TEST_INPUTS says how many inputs there are, 100,000 if it does not; three quarters of them are atheris's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.core.events import TOPICS
from streams.core.partition import Partition
from streams.core.rules import Rules
from streams.wire.records import decode_delta, encode_delta
from tests.fuzz import AT_ONCE, FIELDS, NASTY, SEEDS, Desk, resident_kib, tampered

INPUTS = int(os.environ.get("STREAMS_TEST_INPUTS", "100000"))
EACH = 20
"""Records of one example: they are decided by one partition."""
GROWTH_KIB = 16 << 10


@st.composite
def events(draw: st.DrawFn) -> bytes:
    event = {"impression_id": draw(st.sampled_from("xy")), "campaign_id": "c", "ts": draw(st.integers(0, 9_000_000))}
    event |= draw(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(NASTY), max_size=4))
    return json.dumps(event).encode()


RECORDS = st.lists(
    st.tuples(st.sampled_from(TOPICS), events() | st.sampled_from(SEEDS) | st.binary(max_size=40)),
    min_size=EACH, max_size=EACH,
)  # fmt: skip


@settings(max_examples=INPUTS // 8 // EACH)
@given(RECORDS)
def test_records_are_decided_whatever_they_are_and_the_journal_says_what_was(records: list[tuple[str, bytes]]) -> None:
    desk = Desk()
    for topic, value in records:
        desk.decide(topic, value)
    delta = desk.state.take()
    heir = Partition(Rules())
    heir.fold([decode_delta(encode_delta(delta))])
    assert heir.progress == desk.state.progress
    assert heir.pending == desk.state.pending


def test_tampered_records_are_decided_in_memory_that_does_not_grow() -> None:
    random, value, resident = Random(9), SEEDS[0], 0
    runs = INPUTS // 8
    for number in range(runs):
        if number % AT_ONCE == 0:
            desk = Desk()
        if number == runs // 5:
            resident = resident_kib()
        value = tampered(value if len(value) < 4_096 and random.random() < 0.9 else random.choice(SEEDS), random)
        desk.decide(random.choice(TOPICS), value)
    assert resident_kib() - resident < GROWTH_KIB


HUGE = 5_000_000
HOSTILE: list[Any] = [
    b"[" * HUGE,
    b'{"a":' * (HUGE // 5),
    b'{"impression_id":"x","campaign_id":"c","ts":1,"a":' + b"[" * 1_000 + b"]" * 1_000 + b"}",
    b'{"impression_id":"' + b"x" * HUGE + b'"}',
    b'{"impression_id":"x","campaign_id":"c","ts":' + b"9" * HUGE + b"}",
    b'{"impression_id":"x","campaign_id":"c","ts":1,"price":' + b"9" * HUGE + b"}",
    b'{"impression_id":"x","campaign_id":"c","ts":1,"price":"' + b"9" * HUGE + b'"}',
    b'{"impression_id":"x","campaign_id":"c","ts":1,"price":1e999999999}',
    b'{"impression_id":"x","campaign_id":"c","ts":1e400,"width":-1e400}',
    b"{" + b'"ts":1,' * (HUGE // 7) + b'"impression_id":"x","campaign_id":"c"}',
    b'{"impression_id":"\\ud800","campaign_id":"\\udfff","ts":1}',
    b'{"impression_id":"\xed\xa0\x80","campaign_id":"c","ts":1}',
    b"\x00" * HUGE,
    b"\xff" * HUGE,
    b" " * HUGE,
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:40]))
def test_a_hostile_record_is_decided_in_a_moment_and_leaves_nothing_behind(value: bytes) -> None:
    desk = Desk()
    for topic in TOPICS:
        desk.decide(topic, value)
    before = resident_kib()
    for _ in range(3):
        for topic in TOPICS:
            desk.decide(topic, value)
    assert resident_kib() - before < GROWTH_KIB


def test_atheris_finds_nothing_that_raises(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", str(INPUTS * 3 // 4), str(corpus)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.splitlines()[-1] == f"decided {INPUTS * 3 // 4}"
