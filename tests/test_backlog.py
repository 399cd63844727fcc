"""Whose turn it is among what was fetched of a partition."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.delta import Batch
from streams.core.events import CLICKS, RENDERS, TOPICS, VIEWABILITY
from streams.core.partition import Partition
from streams.core.rules import HOUR, MINUTE, SECOND, Rules
from streams.kafka import backlog as module
from streams.kafka.backlog import CHUNK, FULL, Backlog, Chunk
from streams.kafka.fetch import Batches

BEGIN = 1_700_000_000_000


def record(offset: int, topic: str, ts: int, name: str = "i") -> Any:
    event = {"impression_id": name, "campaign_id": "c", "ts": ts, "viewer_id": "v", "kind": "viewable"}
    return SimpleNamespace(offset=offset, value=orjson.dumps(event), timestamp=ts, headers=[])


def events(topic: str, times: Sequence[int | None]) -> list[Any]:
    """Return records of events of these times after BEGIN; None is no event."""
    records = [record(offset, topic, BEGIN + (time or 0)) for offset, time in enumerate(times)]
    for one, time in zip(records, times, strict=True):
        one.value = b"?" if time is None else one.value
    return records


@pytest.mark.parametrize(
    ("topic", "times", "due"),
    [
        pytest.param(RENDERS, range(0, 60 * SECOND, SECOND), 2 * SECOND, id="renders: when they begin"),
        pytest.param(VIEWABILITY, range(0, 60 * SECOND, SECOND), 56 * SECOND, id="views: a second before they end"),
        pytest.param(CLICKS, range(0, 60 * SECOND, SECOND), 56 * SECOND, id="clicks as views"),
        pytest.param(VIEWABILITY, range(0, 600, 10), 20, id="not before they begin"),
        pytest.param(VIEWABILITY, range(0, 5 * SECOND, SECOND), 2 * SECOND, id="a few: when they begin"),
        pytest.param(VIEWABILITY, range(0, 60 * MINUTE, MINUTE), 12 * MINUTE, id="renders of hours need not wait"),
        pytest.param(RENDERS, [9 * HOUR, 1, 2, 3, 4], 3, id="one that is far off says nothing"),
        pytest.param(VIEWABILITY, [*range(0, 9_000, 1_000), 9 * HOUR], 6 * SECOND, id="nor does it at the end"),
        pytest.param(RENDERS, [None, 5, None, 5, None], 5, id="what is no event has no time"),
    ],
)
def test_when_it_is_the_turn_of_a_chunk(topic: str, times: Sequence[int | None], due: int) -> None:
    assert Chunk(topic, events(topic, times)).due == BEGIN + due


def test_it_is_the_turn_of_what_is_no_event_at_once() -> None:
    assert Chunk(VIEWABILITY, events(VIEWABILITY, [None] * 20)).due == 0


TURNS = st.lists(st.tuples(st.sampled_from(TOPICS), st.integers(0, 9)), max_size=12)


@given(TURNS, st.fixed_dictionaries({topic: st.booleans() for topic in TOPICS}))
def test_all_come_each_topic_in_its_order_and_none_before_what_may_be_older(
    turns: list[tuple[str, int]], ended: dict[str, bool]
) -> None:
    backlog = Backlog()
    for topic, seconds in turns:
        backlog.put(topic, events(topic, [seconds * 1_000]))
    left = {topic: [BEGIN + seconds * 1_000 for other, seconds in turns if other == topic] for topic in TOPICS}
    reached = dict.fromkeys(TOPICS, 0)
    while True:
        with patch.object(module, "CHUNK", 1):
            one = backlog.next(reached, lambda topic: not ended[topic])
        oldest = min((times[0] for times in left.values() if times), default=None)
        awaited = [topic for topic in TOPICS if not left[topic] and not ended[topic] and reached[topic] < (oldest or 0)]
        if one is None:
            break
        assert not awaited
        assert one.due == oldest == left[one.topic].pop(0)
        reached[one.topic] = max(reached[one.topic], one.due)
    assert oldest is None or awaited


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("fetched", [[], [0], [1], [0, 2], [1, 1, 0, 1], [7], [3, 0, 5, 1]])
def test_a_chunk_has_what_comes_next_whatever_fetch_it_came_with(fetched: list[int], most: int) -> None:
    backlog, number = Backlog(), 0
    for length in fetched:
        backlog.put(RENDERS, [record(offset, RENDERS, BEGIN) for offset in range(number, number + length)])
        number += length
    with patch.object(module, "CHUNK", most):
        taken = [[*batch.offsets] for batch in batches(backlog)]
    assert [offset for offsets in taken for offset in offsets] == [*range(number)]
    assert all(len(offsets) == most for offsets in taken[:-1])
    assert not taken or 0 < len(taken[-1]) <= most


def test_no_more_is_parsed_than_a_chunk_of_each_topic() -> None:
    backlog, parsed = Backlog(), dict.fromkeys((RENDERS, VIEWABILITY), 0)

    def parse(topic: str, later_ms: int) -> Iterator[Any]:
        for offset in range(3 * CHUNK):
            parsed[topic] += 1
            yield record(offset, topic, BEGIN + later_ms + offset)

    for topic, later_ms in ((RENDERS, 0), (VIEWABILITY, HOUR)):
        backlog.put(topic, Batches([parse(topic, later_ms)], 0, 3 * CHUNK))
    for turn in range(1, 4):
        one = next_of(backlog)
        assert one is not None
        assert (one.topic, len(one.records)) == (RENDERS, CHUNK)
        assert parsed == {RENDERS: turn * CHUNK, VIEWABILITY: CHUNK}


def test_a_topic_is_full_while_so_many_records_of_it_lie_behind_its_next_chunk() -> None:
    backlog, half = Backlog(), FULL // 2
    assert half > CHUNK
    backlog.put(RENDERS, events(RENDERS, range(half)))
    assert not backlog.is_full(RENDERS)
    backlog.put(RENDERS, events(RENDERS, range(half)))
    assert backlog.is_full(RENDERS)
    assert not backlog.is_full(VIEWABILITY)
    assert next_of(backlog) is not None
    assert not backlog.is_full(RENDERS)


def test_a_topic_is_not_full_of_offsets_that_are_no_records() -> None:
    backlog = Backlog()
    backlog.put(RENDERS, Batches([events(RENDERS, range(CHUNK))], 0, 9 * FULL))
    assert backlog.is_full(RENDERS)
    assert next_of(backlog) is not None
    assert next_of(backlog) is None
    assert not backlog.is_full(RENDERS)


def events_a_second(topic: str, number: int, a_second: int, later_ms: int) -> list[Any]:
    return [
        record(offset, topic, BEGIN + later_ms + offset * 1000 // a_second, f"imp-{offset}") for offset in range(number)
    ]


@pytest.mark.parametrize("a_second", [50, 1_500, 20_000])
def test_hardly_any_view_comes_before_its_render_however_dense_they_lie(a_second: int) -> None:
    """A catch-up at hundreds, thousands, and tens of thousands of renders a second of event time."""
    number = 5 * CHUNK
    backlog = Backlog()
    for topic, later_ms in ((RENDERS, 0), (VIEWABILITY, SECOND)):
        backlog.put(topic, events_a_second(topic, number, a_second, later_ms))
    state, waited = Partition(Rules()), 0
    for batch in batches(backlog):
        before = state.pending[VIEWABILITY]
        state.apply(batch)
        waited += max(0, state.pending[VIEWABILITY] - before)
    assert len(state.impressions) == number
    assert state.pending[VIEWABILITY] == 0
    assert waited < number / 100


def batches(backlog: Backlog) -> Iterator[Batch]:
    while (one := next_of(backlog)) is not None:
        yield one.batch


def next_of(backlog: Backlog) -> Chunk | None:
    """Take the next chunk of a backlog of topics that have no more."""
    return backlog.next(dict.fromkeys(TOPICS, 0), lambda _: False)


@pytest.mark.parametrize("offsets", [[7], [7, 8, 9], [7, 9, 10], [7, 8, 10]])
def test_a_batch_names_the_offsets_of_its_records_also_where_some_are_missing(offsets: list[int]) -> None:
    batch = Chunk(RENDERS, [record(offset, RENDERS, BEGIN) for offset in offsets]).batch
    assert [*batch.offsets] == offsets
    assert batch.next_offset == offsets[-1] + 1
