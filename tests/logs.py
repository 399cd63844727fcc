"""Builders: events as dicts, logs of them, batches for the core, and random logs in which ids and times collide."""

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from streams.core.partition import Batch, Partition, Touched
from streams.core.rules import OUTCOME_NAMES, Rules
from streams.wire.events import decoder
from tests import oracle
from tests.oracle import Contract, Event, Log, Logs

T0 = 1_700_000_000_000
S, MIN, H = 1_000, 60_000, 3_600_000
TOPICS = ("renders", "viewability", "clicks")

# --- events -----------------------------------------------------------------------------------------------------------


def render(impression_id: str = "x", ts: int = T0, **fields: Any) -> Event:
    return {"impression_id": impression_id, "campaign_id": "c", "ts": ts, "price": "2.50", **fields}


def view(impression_id: str = "x", ts: int = T0, kind: str = "viewable", **fields: Any) -> Event:
    return {"impression_id": impression_id, "ts": ts, "kind": kind, **fields}


def click(impression_id: str = "x", ts: int = T0, **fields: Any) -> Event:
    return {"impression_id": impression_id, "ts": ts, **fields}


def topic_of(event: Event) -> str:
    return "renders" if "campaign_id" in event else "viewability" if "kind" in event else "clicks"


def encoded(event: Any) -> bytes | None:
    """The record's value; what is no dict is a value already."""
    return json.dumps(event).encode() if isinstance(event, dict) else event


def batch(topic: str, records: Log) -> Batch:
    events = decoder(topic)([encoded(event) for _, event, _ in records])
    offsets = [offset for offset, _, _ in records]
    return Batch(topic, offsets, events, offsets[-1] + 1)


# --- what both sides say, in one form ---------------------------------------------------------------------------------


def contract_of(rules: Rules) -> Contract:
    return Contract(rules.lateness_ms, rules.dedup_horizon_ms, rules.viewability_horizon_ms, rules.early_ms)


def figures(touched: Iterable[Touched]) -> dict[tuple[str, str, str, int], dict[str, int]]:
    return {
        (cell.series.campaign_id, cell.series.currency, cell.series.source, cell.pane): {
            figure: getattr(cell.cell, figure) for figure in oracle.FIGURES
        }
        for cell in touched
    }


def outcomes(state: Partition, topic: str) -> dict[str, int]:
    """Outcomes that occurred and what is pending, each with how often."""
    counts = dict(zip(OUTCOME_NAMES, state.progress[topic].outcomes, strict=True))
    counts[oracle.PENDING] = len(pending(state, topic))
    return {outcome: count for outcome, count in counts.items() if count}


def pending(state: Partition, topic: str) -> set[int]:
    return {held.offset for of_key in state.waiting.values() for held in of_key if held.topic == topic}


def assert_as_the_oracle(state: Partition, logs: Logs) -> oracle.Answer:
    """Outcomes, pending offsets, stream times, and every figure of every cell that is not forgotten."""
    truth = oracle.answer(logs, contract_of(state.rules))
    for topic in TOPICS:
        assert outcomes(state, topic) == dict(truth.counts(topic)), topic
        assert pending(state, topic) == truth.pending(topic), topic
        assert state.progress[topic].stream_time == truth.stream_times[topic], topic
    assert figures(state.cells()) == {place: cell for place, cell in truth.cells.items() if place[3] >= state.bound}
    return truth


class Desk:
    """Decides events one by one as they come, and holds the oracle beside each step."""

    def __init__(self, **rules: Any) -> None:
        self.state = Partition(Rules(**rules))
        self.logs: Logs = {topic: [] for topic in TOPICS}

    def give(self, event: Event) -> str:
        """What became of this event so far: its outcome, or pending."""
        topic = topic_of(event)
        return self.give_raw(topic, event)

    def give_raw(self, topic: str, event: Any) -> str:
        record = (len(self.logs[topic]), event, None)
        before = outcomes(self.state, topic)
        self.logs[topic].append(record)
        self.state.apply(batch(topic, [record]))
        after = self.outcomes(topic)
        assert_as_the_oracle(self.state, self.logs)
        (grown,) = [outcome for outcome in after if after[outcome] > before.get(outcome, 0)]
        return grown

    def give_all(self, *events: Event) -> list[str]:
        return [self.give(event) for event in events]

    def outcomes(self, topic: str) -> dict[str, int]:
        return outcomes(self.state, topic)

    def cells(self) -> dict[tuple[str, str, str, int], dict[str, int]]:
        return figures(self.state.cells())

    def cell(self) -> dict[str, int]:
        """The only cell there is, without the figures that are 0."""
        (cell,) = self.cells().values()
        return {figure: value for figure, value in cell.items() if value}


# --- random logs ------------------------------------------------------------------------------------------------------

RULES = (
    Rules(lateness_ms=20_000, dedup_horizon_ms=20_000, viewability_horizon_ms=20_000),
    Rules(lateness_ms=5_000, dedup_horizon_ms=30_000, viewability_horizon_ms=10_000),
    Rules(lateness_ms=40_000, dedup_horizon_ms=10_000, viewability_horizon_ms=60_000),
    Rules(lateness_ms=10_000, dedup_horizon_ms=5_000, viewability_horizon_ms=30_000, early_ms=5_000),
)
MALFORMED = (
    None,
    b"",
    b"[]",
    b"\xff",
    b'{"ts":1}',
    b'{"impression_id":"x","campaign_id":"c","ts":-1,"kind":"viewable"}',
)

_PRICES: tuple[dict[str, Any], ...] = (
    {"price": "2.5"},
    {"price": 2.9e-05, "price_unit": "impression"},
    {"price": 0.00032199999999999997, "currency": "EUR"},
    {"price": 0},
    {"price": None},
    {"price": "0.0000005"},
    {"price": 1234567, "price_unit": "micros_cpm", "currency": "USD"},
)
_STEPS = st.sampled_from((0, 0, 0, 1, 1_000, 5_000, 10_000, 10_001, 20_000))
_BACK = st.sampled_from((0, 0, 0, 1, 4_999, 5_000, 5_001, 9_999, 10_000, 10_001, 20_000, 20_001, 40_000, 60_001))
_SOURCES = st.sampled_from(({}, {}, {}, {"source": "adserver"}, {"source": "dsp"}, {"source": None}))
_IDS = st.sampled_from("xyz")

_RENDERS = st.builds(
    lambda name, campaign, source, price: {"impression_id": name, "campaign_id": campaign, **source, **price},
    _IDS,
    st.sampled_from("0c"),
    _SOURCES,
    st.sampled_from(_PRICES),
)
_VIEWS = st.builds(
    lambda name, kind, source: {"impression_id": name, "kind": kind, **source},
    _IDS,
    st.sampled_from(("measurable", "viewable", "not_viewable", "undetermined", "signal")),
    _SOURCES,
)
_CLICKS = st.builds(
    lambda name, click_id, source: {"impression_id": name, **click_id, **source},
    _IDS,
    st.sampled_from(({}, {"click_id": None}, {"click_id": "a"}, {"click_id": "b"})),
    _SOURCES,
)


def _log(events: st.SearchStrategy[Event], longest: int) -> st.SearchStrategy[Log]:
    """Time moves on by steps, each event lies some way behind it, offsets have gaps, one record in ten is broken."""
    record = st.tuples(st.integers(0, 9), st.sampled_from(MALFORMED), events, _STEPS, _BACK, st.integers(1, 2))
    return st.lists(record, max_size=longest).map(_placed)


def _placed(drawn: list[tuple[int, Any, Event, int, int, int]]) -> Log:
    log: Log = []
    now, offset = 60_000, 0
    for luck, broken, event, step, back, gap in drawn:
        now += step
        log.append((offset, broken if luck == 9 else {**event, "ts": max(0, now - back)}, None))
        offset += gap
    return log


def logs(longest: int = 14) -> st.SearchStrategy[Logs]:
    """Logs of the three topics of one partition."""
    return st.fixed_dictionaries(
        {
            "renders": _log(_RENDERS, longest),
            "viewability": _log(_VIEWS, longest),
            "clicks": _log(_CLICKS, longest // 2),
        }
    )
