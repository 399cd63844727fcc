"""Counting a range again, without Kafka: what is cut off decides nothing, nor do kills and the order of reading."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from streams.core.campaigns import Campaigns
from streams.core.rollup import Window
from streams.core.rules import Rules
from streams.replay.counting import Count
from streams.replay.document import windows
from streams.replay.edge import Edge, TooShallow
from streams.replay.scope import Scope, first_needed, reach_ms
from streams.replay.store import Store
from streams.wire.campaigns import parse_campaigns
from tests.logs import MIN, TOPICS, S, batch, click, render, view
from tests.oracle import Logs

SHORT = Rules(lateness_ms=40 * S, dedup_horizon_ms=30 * S, viewability_horizon_ms=50 * S, future_ms=5 * S)
CAPPED = parse_campaigns("[campaigns.0]\nfrequency_cap = { impressions = 2, period = '120s' }\n", "adserver")
OPEN = ExitStack()
"""The stores that a test opened."""
ENDED = {"has_ended": lambda topic, partition, fence: False}


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what a test opened."""
    with OPEN:
        yield


def appended_logs(seed: int, length: int, ids: int) -> Logs:
    """Logs as Kafka holds them: the time of append rises, and no event lies further ahead of it than rule 2 allows.

    Nor, much, behind. Few ids and places, so that chains of duplicates and refreshes are long.
    """
    random = Random(seed)
    logs: Logs = {}
    for topic in TOPICS:
        log, now = [], 1_000 * MIN
        for offset in range(length):
            now += random.choice((0, 500, 1_000, 3_000, 9_000))
            ts = now - random.choice((-5_000, 0, 0, 1_000, 5_000, 20_000, 39_999, 41_000, 80_000))
            name = f"i{random.randrange(ids)}"
            if topic == "renders":
                more = {"viewer_id": f"v{random.randrange(4)}", "slot_id": "s"}
                event = render(name, ts, campaign_id=random.choice("0c"), **more)
            elif topic == "viewability":
                event = view(name, ts, random.choice(("viewable", "measurable", "undetermined")))
            else:
                event = click(name, ts)
            log.append((offset, event, now))
        logs[topic] = log
    return logs


class Counted:
    """A count of logs in pieces, from where `starts` says; partitions are told apart by their numbers."""

    def __init__(
        self, logs: Sequence[Logs], scope: Scope, rules: Rules = SHORT, campaigns: Campaigns | None = None,
        starts: dict[Any, int] | None = None, edges: dict[int, Edge] | None = None, path: Path | None = None,
        seed: int = 0, kills: int = 0,
    ) -> None:  # fmt: skip
        self.store = OPEN.enter_context(Store(path))
        self.campaigns = campaigns or Campaigns()
        self._args = (self.store, scope, rules, self.campaigns, len(logs), edges)
        self.count = Count(*self._args)
        self._logs, self._starts, self._random, self._kills = logs, starts or {}, Random(seed), kills
        self._read()

    def _read(self) -> None:
        left = [(topic, number) for number in range(len(self._logs)) for topic in TOPICS]
        positions = {place: self._starts.get(place, 0) for place in left}
        while left:
            place = topic, number = self._random.choice(left)
            records = self._logs[number][topic][positions[place] :][: self._random.randint(1, 9)]
            if not records or not self.count.wants(topic, number):
                left.remove(place)
                continue
            self.count.apply(number, batch(topic, records))
            positions[place] += len(records)
            if self._random.random() < 0.2:
                self.count.checkpoint(lambda topic, number, fence: fence >= len(self._logs[number][topic]))
            if self._kills and self._random.random() < 0.1:
                self._kills -= 1
                self.count = Count(*self._args)
                for topic, number in positions:
                    positions[topic, number] = max(
                        self._starts.get((topic, number), 0), self.count.fence(topic, number)
                    )
                left = list(positions)
        self.count.finish(30_000)

    def windows(self) -> dict[tuple[str, str, int], Window]:
        found = windows(self.store, self.campaigns, self.count.final_before())
        return {(one.campaign_id, one.currency, one.start): one for one in found}


def ranged(logs: Sequence[Logs], scope: Scope, rules: Rules, campaigns: Campaigns, reach: int, **more: Any) -> Counted:
    """Count a range as `streams replay` does: from offsets by the time of append, further back where that is needed."""
    assert scope.start is not None
    needed = first_needed(scope.start, campaigns)
    since = needed - reach - rules.future_ms
    starts = {
        (topic, number): sum(appended < since for _, _, appended in log)
        for number, one in enumerate(logs)
        for topic, log in one.items()
    }
    edges = {n: Edge(rules, needed - reach, needed) for n in range(len(logs)) if starts["renders", n]}
    try:
        return Counted(logs, scope, rules, campaigns, starts, edges, **more)
    except TooShallow:
        if not any(starts.values()):
            raise
        return ranged(logs, scope, rules, campaigns, 2 * reach, **more)


@pytest.mark.parametrize("seed", range(60))
def test_the_windows_of_a_range_are_those_of_all_that_there_is(seed: int) -> None:
    random = Random(seed)
    rules = random.choice((SHORT, Rules(**{**SHORT.plain(), "datacenters": (), "refresh_interval_ms": 10 * S})))
    campaigns = random.choice((Campaigns(), CAPPED))
    logs = [appended_logs(seed * 7 + n, 400, random.choice((5, 40, 400))) for n in range(2)]
    start = (1_000 + random.randint(8, 14)) * MIN
    scope = Scope(start, start + random.randint(1, 4) * MIN)
    whole = Counted(logs, Scope(), rules, campaigns)
    part = ranged(logs, scope, rules, campaigns, reach_ms(rules), seed=seed)
    expected = {place: one for place, one in whole.windows().items() if scope.holds(place[2])}
    found = part.windows()
    assert found.keys() == expected.keys()
    for place, one in expected.items():
        assert {**vars_of(found[place]), "final": None} == {**vars_of(one), "final": None}


def vars_of(window: Window) -> dict[str, Any]:
    return {name: getattr(window, name) for name in window.__struct_fields__}


def test_a_chain_of_refreshes_from_long_before_is_followed_back() -> None:
    start = 1_000 * MIN
    shows = [
        (n, render(f"i{n}", start + 20 * S * n, viewer_id="v", slot_id="s"), start + 20 * S * n) for n in range(61)
    ]
    logs = [{"renders": shows, "viewability": [], "clicks": []}]
    scope = Scope(start + 18 * MIN + MIN, start + 20 * MIN)
    part = ranged(logs, scope, SHORT, Campaigns(), reach_ms(SHORT))
    # Of renders at 0, 20, 40 s ... every other one counts: 2 in one minute, 1 in the next.
    assert [one.served for one in part.windows().values()] == [1]
    wrong = {("renders", 0): 40, ("viewability", 0): 0, ("clicks", 0): 0}
    assert [one.served for one in Counted(logs, scope, SHORT, starts=wrong).windows().values()] == [1]
    wrong["renders", 0] = 41
    assert [one.served for one in Counted(logs, scope, SHORT, starts=wrong).windows().values()] == [2]
    with pytest.raises(TooShallow):
        Counted(logs, scope, SHORT, starts=wrong, edges={0: Edge(SHORT, start + 41 * 20 * S, scope.start or 0)})


def test_memory_is_bounded_by_the_horizons_however_long_the_range_and_uneven_the_partitions(tmp_path: Path) -> None:
    """Ten times the horizons, and partitions of one, five and twenty-five renders a second."""
    seconds = 10 * (SHORT.lateness_ms + SHORT.viewability_horizon_ms) // S
    rates = (1, 5, 25)
    count = Count(OPEN.enter_context(Store(tmp_path / "run.sqlite")), Scope(), SHORT, Campaigns(), len(rates))
    most = [0] * len(rates)
    offsets = [0] * len(rates)
    for second in range(0, seconds, 10):
        for number, rate in enumerate(rates):
            shows = [
                render(f"i{number}-{second}-{n}", (1_000 * 60 + second) * S + n, viewer_id=f"v{n}", slot_id=str(second))
                for n in range(10 * rate)
            ]
            records = [(offsets[number] + n, one, one["ts"]) for n, one in enumerate(shows)]
            offsets[number] += len(records)
            count.apply(number, batch("renders", records))
            for topic, make in (("viewability", view), ("clicks", click)):
                last = shows[-1]
                count.apply(number, batch(topic, [(second, make(last["impression_id"], last["ts"]), last["ts"])]))
        count.checkpoint(lambda topic, number, fence: False)
        most = [max(known, len(state.impressions)) for known, state in zip(most, count.states.values(), strict=True)]
    kept_s = (SHORT.lateness_ms + SHORT.viewability_horizon_ms + SHORT.dedup_horizon_ms + SHORT.early_ms) // S
    for rate, remembered, sent in zip(rates, most, offsets, strict=True):
        assert sent == rate * seconds
        assert remembered <= 2 * rate * kept_s < sent / 2
