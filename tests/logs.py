"""Builders: events as dicts, logs of them, batches for the core, and random logs in which ids and times collide."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

from hypothesis import strategies as st

from streams.core.delta import Batch
from streams.core.panes import Series, Touched
from streams.core.partition import Partition
from streams.core.rules import OUTCOME_NAMES, Rules
from streams.wire.campaigns import parse_campaigns
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
    return Batch(topic, offsets, events, offsets[-1] + 1, [appended for _, _, appended in records])


# --- what both sides say, in one form ---------------------------------------------------------------------------------


FIELDS = {
    "country": "country", "creative": "creative_id", "device": "device", "format": "format",
    "line_item": "line_item_id", "placement": "placement",
}  # fmt: skip
"""Dimension -> field of a render."""


@dataclass(frozen=True)
class Counting:
    """By what a partition counts: rules, what is agreed for campaigns (in the oracle's form), and segments."""

    rules: Rules
    agreed: dict[str, Any] = field(default_factory=dict)
    segments: tuple[str, ...] = ()

    def partition(self) -> Partition:
        return Partition(self.rules, parse_campaigns(toml_of(self.agreed), self.rules.billing_source), self.segments)

    def contract(self) -> Contract:
        segments = {name: FIELDS[name] for name in self.segments}
        return replace(contract_of(self.rules), agreed=self.agreed, segments=segments)


def counting_by(given: Rules | Counting) -> Counting:
    return given if isinstance(given, Counting) else Counting(given)


def toml_of(agreed: dict[str, Any]) -> str:
    """The file that says what is agreed."""
    lines = []
    for campaign, terms in agreed.items():
        lines += [f"[campaigns.{json.dumps(campaign)}]"]
        lines += [f"currency = '{terms['currency']}'"] if "currency" in terms else []
        if "cap" in terms:
            impressions, period_ms = terms["cap"]
            lines += [f"frequency_cap = {{ impressions = {impressions}, period = '{period_ms // 1000}s' }}"]
        for since, model, price in terms.get("pricing", ()):
            lines += [f"[[campaigns.{json.dumps(campaign)}.pricing]]", f"model = '{model}'"]
            lines += [f"from = {datetime.fromtimestamp(since / 1000, UTC).isoformat()}"]
            named = zip(("cost", "booked"), price, strict=True) if model == "flat" else [("price", price)]
            lines += [f"{name} = {value}" for name, value in named]
    return "\n".join(lines)


def contract_of(rules: Rules) -> Contract:
    return Contract(
        lateness=rules.lateness_ms,
        dedup=rules.dedup_horizon_ms,
        horizon=rules.viewability_horizon_ms,
        early=rules.early_ms,
        future=rules.future_ms,
        invalid_traffic=lambda event: invalid(event, rules),
        refresh=rules.refresh_interval_ms or None,
        refresh_slack=rules.refresh_slack_ms,
        count_user_refresh=rules.count_user_refresh,
        signal=oracle.standard,
        click_makes_viewable=rules.click_makes_viewable,
        keyed_by_viewer=rules.key == "viewer",
    )


def invalid(event: Event, rules: Rules) -> str | None:
    """Why a render is invalid traffic, by a look at all networks; no other bot than this one comes up in these logs."""
    if event.get("invalid"):
        return "declared"
    if "Googlebot" in (event.get("user_agent") or ""):
        return "bot"
    if not event.get("ip") or event.get("server_side"):
        return None
    address = ip_address(event["ip"])
    return "datacenter" if any(address in network for network in rules.datacenters) else None


def figures(touched: Iterable[Touched]) -> dict[tuple[Any, ...], dict[str, int]]:
    return {
        place_of(one.series, one.pane): {figure: getattr(one.cell, figure) for figure in oracle.FIGURES}
        for one in touched
    }


def place_of(series: Series, pane: int) -> tuple[Any, ...]:
    segment = (series.dimension, series.value) if series.dimension else ()
    return (series.campaign_id, series.currency, series.source, pane, *segment)


def outcomes(state: Partition, topic: str) -> dict[str, int]:
    """Outcomes that occurred and what is pending, each with how often."""
    counts = dict(zip(OUTCOME_NAMES, state.progress[topic].outcomes, strict=True))
    counts[oracle.PENDING] = len(pending(state, topic))
    return {outcome: count for outcome, count in counts.items() if count}


def pending(state: Partition, topic: str) -> set[int]:
    return {held.offset for of_key in state.waiting.values() for held in of_key if held.topic == topic}


def assert_as_the_oracle(state: Partition, logs: Logs, counting: Counting | None = None) -> oracle.Answer:
    """Outcomes, pending offsets, stream times, and every figure of every cell that is not forgotten."""
    truth = oracle.answer(logs, (counting or Counting(state.rules)).contract())
    for topic in TOPICS:
        assert outcomes(state, topic) == dict(truth.counts(topic)), topic
        assert pending(state, topic) == truth.pending(topic), topic
        assert state.progress[topic].stream_time == truth.stream_times[topic], topic
    assert {reason: count for reason, count in state.invalid.items() if count} == truth.invalid
    assert state.unchecked == truth.unchecked_refreshes
    assert figures(state.cells()) == {place: cell for place, cell in truth.cells.items() if place[3] >= state.bound}
    return truth


class Desk:
    """Decides events one by one as they come, and all of them at once; holds the oracle beside each step."""

    def __init__(self, agreed: dict[str, Any] | None = None, segments: tuple[str, ...] = (), **rules: Any) -> None:
        self.counting = Counting(Rules(**rules), agreed or {}, segments)
        self.state = self.counting.partition()
        self.logs: Logs = {topic: [] for topic in TOPICS}

    def give(self, event: Event, appended: int | None = None) -> str:
        """What became of this event so far: its outcome, or pending."""
        topic = topic_of(event)
        return self.give_raw(topic, event, appended)

    def give_raw(self, topic: str, event: Any, appended: int | None = None) -> str:
        record = (len(self.logs[topic]), event, appended)
        before = outcomes(self.state, topic)
        self.logs[topic].append(record)
        self.state.apply(batch(topic, [record]))
        after = self.outcomes(topic)
        assert_as_the_oracle(self.state, self.logs, self.counting)
        assert_as_the_oracle(self.at_once(), self.logs, self.counting)
        (grown,) = [outcome for outcome in after if after[outcome] > before.get(outcome, 0)]
        return grown

    def at_once(self) -> Partition:
        """A partition that is given each topic so far in one batch."""
        state = self.counting.partition()
        for topic in TOPICS:
            if self.logs[topic]:
                state.apply(batch(topic, self.logs[topic]))
        return state

    def give_all(self, *events: Event) -> list[str]:
        return [self.give(event) for event in events]

    def outcomes(self, topic: str) -> dict[str, int]:
        return outcomes(self.state, topic)

    def cells(self) -> dict[tuple[Any, ...], dict[str, int]]:
        return figures(self.state.cells())

    def cell(self) -> dict[str, int]:
        """The only cell there is, without the figures that are 0."""
        (cell,) = self.cells().values()
        return {figure: value for figure, value in cell.items() if value}


# --- random logs ------------------------------------------------------------------------------------------------------

NETWORKS = (ip_network("192.0.2.0/24"), ip_network("192.0.2.0/25"), ip_network("2001:db8::/32"))
RULES = (
    Rules(lateness_ms=20_000, dedup_horizon_ms=20_000, viewability_horizon_ms=20_000, future_ms=5_000),
    Rules(lateness_ms=5_000, dedup_horizon_ms=30_000, viewability_horizon_ms=10_000, datacenters=NETWORKS),
    Rules(
        lateness_ms=40_000,
        dedup_horizon_ms=10_000,
        viewability_horizon_ms=60_000,
        refresh_interval_ms=10_000,
        refresh_slack_ms=20_000,
        click_makes_viewable=True,
    ),
    Rules(
        lateness_ms=10_000,
        dedup_horizon_ms=5_000,
        viewability_horizon_ms=30_000,
        early_ms=5_000,
        refresh_interval_ms=10_001,
        refresh_slack_ms=5_000,
        count_user_refresh=True,
    ),
    Rules(
        lateness_ms=5_000,
        dedup_horizon_ms=5_000,
        viewability_horizon_ms=5_000,
        early_ms=5_000,
        refresh_slack_ms=1_000,
        click_makes_viewable=True,
        datacenters=NETWORKS,
    ),
    Rules(lateness_ms=1, dedup_horizon_ms=1, viewability_horizon_ms=1, early_ms=0, refresh_interval_ms=0),
    Rules(lateness_ms=20_000, dedup_horizon_ms=10_000, viewability_horizon_ms=20_000, key="impression"),
)
AGREED: tuple[dict[str, Any], ...] = (
    {},
    {
        "0": {"currency": "EUR", "pricing": [(80_000, "vcpm", "4"), (0, "cpm", "0.0000005"), (120_000, "cpc", "0.25")]},
        "c": {"cap": (1, 60_000), "pricing": [(70_000, "flat", (10, 3))]},
    },
    {"0": {"cap": (2, 7_000)}, "c": {"pricing": [(0, "vcpm", 2.5), (100_000, "flat", ("0.07", 9))]}},
)
SEGMENTS: tuple[tuple[str, ...], ...] = ((), ("country",), ("format", "device", "country"))
COUNTINGS = tuple(
    Counting(rules, AGREED[number % len(AGREED)], SEGMENTS[number // 2 % len(SEGMENTS)])
    for number, rules in enumerate(RULES + RULES[1:])
)
"""Every rule with and without agreements and segments."""
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
_STEPS = (0, 0, 0, 1, 1_000, 5_000, 10_000, 10_001, 20_000)
_BACK = (0, 0, 0, 0, 1, 4_999, 5_000, 5_001, 9_999, 10_000, 10_001, 20_000, 20_001, 40_000, 60_001)
_SOURCES: tuple[dict[str, Any], ...] = ({}, {}, {}, {"source": "adserver"}, {"source": "dsp"}, {"source": None})
_KINDS = ("measurable", "viewable", "not_viewable", "undetermined", "signal")
_CLICK_IDS: tuple[dict[str, Any], ...] = ({}, {"click_id": None}, {"click_id": "a"}, {"click_id": "b"})

_WHERE: tuple[dict[str, Any], ...] = (
    {},
    {"viewer_id": "v", "slot_id": "s"},
    {"viewer_id": "v", "slot_id": "s"},
    {"viewer_id": "v", "slot_id": "s", "creative_id": "0"},
    {"viewer_id": "w", "slot_id": "s", "creative_id": ""},
    {"viewer_id": "v", "slot_id": "t"},
    {"viewer_id": "", "slot_id": "s"},
    {"viewer_id": "v", "slot_id": None},
)
_REFRESHES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"refresh": None},
    {"refresh": {"type": "user"}},
    {"refresh": {"type": "time"}},
)
_WHAT: tuple[dict[str, Any], ...] = (
    {},
    {"format": "video"},
    {"format": "audio"},
    {"format": "native", "device": "desktop"},
    {"width": 970, "height": 250, "device": "desktop"},
    {"width": 970, "height": 250, "device": "phone"},
)
_PLACES: tuple[dict[str, Any], ...] = ({}, {"country": "DE"}, {"country": "FR"}, {"country": None})
_WHO: tuple[dict[str, Any], ...] = (
    *({},) * 8,
    {"invalid": ""},
    {"invalid": "sivt"},
    {"user_agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"},
    {"user_agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0", "ip": "192.0.2.129"},
    {"ip": "192.0.2.0", "server_side": True},
    {"ip": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"},
    {"ip": "2001:db9::"},
)
_SIGNALS: tuple[dict[str, Any], ...] = (
    {},
    {"in_view_pct": 50, "continuous_ms": 1_000},
    {"in_view_pct": 30, "continuous_ms": 1_000},
    {"in_view_pct": 49.9, "continuous_ms": 5_000},
    {"in_view_pct": 50, "continuous_ms": 999},
    {"in_view_pct": 50, "continuous_ms": 2_000, "played_ms": 2_000},
    {"in_view_pct": 50, "continuous_ms": 2_000, "played_ms": 2_000, "in_focus": False},
    {"played_ms": 2_000, "muted": True},
    {"played_ms": 2_000, "muted": False},
)


def _render(pick: Callable[[Sequence[Any]], Any]) -> Event:
    choices = (_SOURCES, _PRICES, _WHERE, _REFRESHES, _WHAT, _PLACES, _WHO)
    event = {"impression_id": pick("xyzuvw"), "campaign_id": pick("0c")}
    for choice in choices:
        event |= pick(choice)
    return event


def _view(pick: Callable[[Sequence[Any]], Any]) -> Event:
    kind = pick(_KINDS)
    signal = pick(_SIGNALS) if kind == "signal" else {}
    return {"impression_id": pick("xyz"), "kind": kind, **pick(_SOURCES), **signal}


def _click(pick: Callable[[Sequence[Any]], Any]) -> Event:
    return {"impression_id": pick("xyz"), **pick(_CLICK_IDS), **pick(_SOURCES)}


_EVENTS = {"renders": _render, "viewability": _view, "clicks": _click}


def _log(topic: str, length: int, pick: Callable[[Sequence[Any]], Any]) -> Log:
    """Time moves on by steps, each event lies some way behind it, offsets have gaps, one record in 15 is broken."""
    log: Log = []
    now, offset = 60_000, 0
    for _ in range(length):
        now += pick(_STEPS)
        event = _EVENTS[topic](pick) | {"ts": max(0, now - pick(_BACK))}
        appended = pick((None, event["ts"], event["ts"] - 5_000, event["ts"] - 5_001))
        log.append((offset, pick(MALFORMED) if pick(range(15)) == 7 else event, appended))
        offset += pick((1, 1, 1, 2))
    return log


@st.composite
def logs(draw: st.DrawFn, longest: int = 12) -> Logs:
    """Logs of the three topics of one partition, each choice hypothesis's own, so that a failure shrinks."""

    def pick(choices: Sequence[Any]) -> Any:
        return draw(st.sampled_from(choices))

    return {topic: _log(topic, draw(st.integers(0, longest)), pick) for topic in TOPICS}


def seeded_logs(seed: int, length: int) -> Logs:
    """Longer logs, the same for the same seed: long enough that impressions and panes are forgotten."""
    pick = Random(seed).choice
    return {topic: _log(topic, length, pick) for topic in TOPICS}
