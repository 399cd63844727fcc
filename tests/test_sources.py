"""Made events: the same for a seed, with the shares asked for, and with a truth that an independent count agrees to."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, pairwise, takewhile
from random import Random
from typing import Any

import pytest

from streams.core.money import decimal_text, nano_of
from streams.core.partition import Partition
from streams.core.rules import Outcome, Rules
from streams.kafka.produce import partition_of
from streams.sources import open_bandit, schedule
from streams.sources.open_bandit import OpenBandit
from streams.sources.schedule import CLEAN, MALFORMED, EventMaker, Mix, Scheduled
from streams.sources.synthetic import Drop, Rotation, Traffic
from streams.sources.truth import FIGURES, Fact, Truth
from streams.wire.events import REASONS, decoder
from tests import oracle
from tests.logs import MIN, T0, TOPICS, H, S, batch

ROUGH = Mix(
    anonymous=0.3, duplicates=0.2, refreshes=0.2, bots=0.1, late=0.1, malformed=0.1, strays=0.1, ctr=0.2, two_step=0.4
)


def traffic(**settings: Any) -> Traffic:
    return Traffic(**{"start_ms": T0, "campaigns": 5, "viewers": 50, "currencies": ("USD", "EUR"), **settings})


def within(source: Traffic | OpenBandit, length_ms: int) -> list[Scheduled]:
    return list(takewhile(lambda event: event.at_ms < source.start_ms + length_ms, source.events()))


def truth_of(events: Iterable[Scheduled], partitions: int = 1, **settings: Any) -> Truth:
    truth = Truth(**settings)
    for event in events:
        truth.note(event.fact, event.at_ms, partition_of(event.key, partitions))
    return truth


# --- counted again, by what has to agree ------------------------------------------------------------------------------


def counted(events: list[Scheduled], order: str, partitions: int = 1) -> dict[str, Any]:
    """Feed each partition's topics to the core in an order, and tell what it made of them as `Truth.compare` wants."""
    states = [Partition(Rules()) for _ in range(partitions)]
    for number, state in enumerate(states):
        logs: dict[str, list[Any]] = {topic: [] for topic in TOPICS}
        arrivals = []
        for event in events:
            if partition_of(event.key, partitions) == number:
                log = logs[event.topic]
                log.append((len(log), event.value, None))
                arrivals.append((event.topic, [log[-1]]))
        whole = [(topic, log) for topic, log in logs.items() if log]
        for topic, records in {"scheduled": arrivals, "renders first": whole, "views first": whole[::-1]}[order]:
            state.apply(batch(topic, records))
    return observed(states)


def observed(states: list[Partition]) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    rows: dict[tuple[str, str], Counter[str]] = {}
    for state in states:
        reasons.update(state.reasons)
        for touched in state.cells():
            row = rows.setdefault((touched.series.campaign_id, touched.series.currency), Counter())
            row.update({figure: getattr(touched.cell, figure) for figure in (*FIGURES, "gross")})
    return {
        "events": {topic: topic_of(states, topic) for topic in TOPICS},
        "dead_letters": dict(reasons),
        "campaigns": campaign_rows(rows),
    }


def topic_of(states: list[Partition], topic: str) -> dict[str, Any]:
    outcomes = {
        outcome.name.lower(): sum(state.progress[topic].outcomes[outcome] for state in states) for outcome in Outcome
    }
    outcomes["pending"] = sum(state.pending[topic] for state in states)
    return {"sent": sum(outcomes.values()), "outcomes": outcomes}


def campaign_rows(rows: dict[tuple[str, str], Counter[str]]) -> list[dict[str, Any]]:
    return [
        {"campaign_id": name[0], "currency": name[1], **row, "spend": decimal_text(row["spend"])}
        for name, row in rows.items()
    ]


@pytest.mark.parametrize("order", ["scheduled", "renders first", "views first"])
@pytest.mark.parametrize("seed", range(5))
def test_the_core_counts_what_the_truth_says_however_the_topics_interleave(seed, order):
    events = within(traffic(seed=seed, mix=ROUGH, rate=20), MIN)
    assert truth_of(events, seed=seed).compare(counted(events, order)) == []


@pytest.mark.parametrize("order", ["scheduled", "renders first", "views first"])
def test_the_truth_holds_in_each_of_several_partitions_over_hours(order):
    """Strays become orphans while others of them still wait: that depends on each partition's stream time."""
    events = within(traffic(mix=replace(ROUGH, strays=0.9), rate=0.1), 3 * H)
    truth = truth_of(events, partitions=3)
    assert truth.compare(counted(events, order, partitions=3)) == []
    views = truth.outcomes("viewability")
    assert views["orphan"] > 50 and views["pending"] > 50


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 500])
def test_the_truth_holds_for_as_many_events_as_were_sent_before_somebody_stopped(count):
    events = list(islice(traffic(mix=ROUGH, rate=5).events(), count))
    assert truth_of(events).compare(counted(events, "scheduled")) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_core_counts_what_the_truth_of_the_open_bandit_log_says(seed):
    events = list(islice(OpenBandit(start_ms=T0, seed=seed, speed=600, mix=ROUGH).events(), 5_000))
    truth = truth_of(events)
    assert truth.compare(counted(events, "views first")) == []
    assert all(truth.outcomes("renders")[outcome] for outcome in ("late", "duplicate", "malformed", "counted"))


@pytest.mark.parametrize("seed", range(4))
def test_the_oracle_counts_what_the_truth_says(seed):
    events = within(traffic(seed=seed, mix=ROUGH, rate=4), 2 * MIN)
    contract = oracle.Contract(refresh=30_000, invalid_traffic=lambda event: "Googlebot" in event["user_agent"])
    truth = truth_of(events)
    assert truth.compare(judged(events, contract)) == []
    renders = truth.outcomes("renders")
    assert renders["refresh"] > 20 and renders["invalid_traffic"] > 20 and truth.outcomes("viewability")["orphan"] > 20


def judged(events: list[Scheduled], contract: oracle.Contract) -> dict[str, Any]:
    """What the oracle says: it judges dicts, and anything else is malformed to it."""
    logs: oracle.Logs = {topic: [] for topic in TOPICS}
    for event in events:
        value = {"viewer_id": "", **json.loads(event.value or b"")} if event.fact.made != "malformed" else None
        logs[event.topic].append((len(logs[event.topic]), value, None))
    answer = oracle.answer(logs, contract)
    rows: dict[tuple[str, str], Counter[str]] = {}
    for (campaign, currency, _source, _pane), cell in answer.cells.items():
        figures = {figure: count for figure, count in cell.items() if figure != "revision"}
        rows.setdefault((campaign, currency), Counter()).update(figures)
    return {
        "events": {topic: {"sent": len(logs[topic]), "outcomes": answer.counts(topic)} for topic in TOPICS},
        "campaigns": campaign_rows(rows),
    }


# --- synthetic traffic ------------------------------------------------------------------------------------------------


def test_a_seed_and_a_start_give_the_same_bytes_and_others_give_others():
    first, again = (list(islice(traffic(seed=7, mix=ROUGH).events(), 2_000)) for _ in range(2))
    assert first == again
    assert first != list(islice(traffic(seed=8, mix=ROUGH).events(), 2_000))


def test_two_runs_share_neither_impressions_nor_viewers():
    def names(source: Traffic) -> set[str]:
        return {name for plan in islice(source.plans(), 500) for name in (plan.impression_id, plan.viewer_id)}

    assert names(traffic(seed=1)).isdisjoint(names(traffic(seed=2)))
    assert names(traffic(seed=1)).isdisjoint(names(traffic(seed=1, start_ms=T0 + 1)))


def test_events_come_in_order_of_time_at_the_rate_that_was_asked_for():
    events = within(traffic(mix=ROUGH, rate=50), 20 * S)
    assert all(earlier.at_ms <= later.at_ms for earlier, later in pairwise(events))
    assert sum(event.fact.made in ("render", "bot") for event in events) == 1_000
    assert traffic(rate=50).span_ms(1_000) == 20 * S


def test_what_is_on_time_says_the_time_at_which_it_is_sent_and_late_events_are_two_hours_behind():
    for event in within(traffic(mix=ROUGH, rate=50), 20 * S):
        if event.fact.made in ("render", "refresh", "bot", "view", "click", "stray"):
            assert json.loads(event.value)["ts"] == event.at_ms
        elif event.fact.made == "late":
            assert json.loads(event.value)["ts"] == event.at_ms - 2 * H


def test_every_event_is_keyed_by_its_viewer_or_without_one_by_its_impression():
    events = [event for event in islice(traffic(mix=ROUGH).events(), 5_000) if event.fact.made != "malformed"]
    for event in events:
        value = json.loads(event.value)
        assert event.key.decode() == (value.get("viewer_id") or value["impression_id"])
    assert any("viewer_id" not in json.loads(event.value) for event in events)


def test_shares_come_out_near_what_was_asked_for():
    mix = Mix(bots=0.05, duplicates=0.03, late=0.02, malformed=0.04, strays=0.05, refreshes=0.1, ctr=0.05)
    truth = truth_of(islice(traffic(mix=mix, rate=100).events(), 60_000)).to_json()
    made, rows = truth["made"], truth["campaigns"]
    planned = made["render"] + made["bot"]
    served, measurable, viewable, clicks = (sum(row[figure] for row in rows) for figure in FIGURES[:4])
    assert made["bot"] / planned == pytest.approx(0.05, rel=0.1)
    assert made["refresh"] / (made["render"] * (1 - mix.anonymous)) == pytest.approx(0.1, rel=0.15)
    assert made["malformed"] / planned == pytest.approx(0.04, rel=0.1)
    assert made["stray"] / planned == pytest.approx(0.05, rel=0.1)
    on_time = planned + made["refresh"] + made["view"] + made["click"]
    assert made["duplicate"] / on_time == pytest.approx(0.03, rel=0.2)
    assert made["late"] / on_time == pytest.approx(0.02, rel=0.1)
    assert measurable / served == pytest.approx(0.9548, rel=0.05)
    assert viewable / measurable == pytest.approx(0.3993, rel=0.05)
    assert clicks / served == pytest.approx(0.05, rel=0.2)


def test_without_disturbances_every_render_counts_is_measurable_and_viewable():
    truth = truth_of(within(traffic(mix=CLEAN, rate=100), MIN))
    assert set(truth.outcomes("renders")) == set(truth.outcomes("viewability")) == {"counted"}
    assert truth.outcomes("renders")["counted"] == 6_000


def test_the_biggest_campaign_has_the_share_of_zipfs_law_and_no_skew_is_even():
    def share(skew: float) -> float:
        events = islice(traffic(mix=CLEAN, skew=skew, campaigns=4, currencies=("USD",)).events(), 20_000)
        rows = truth_of(events).campaigns()
        return rows["campaign-1", "USD"]["served"] / sum(row["served"] for row in rows.values())

    assert share(1.0) == pytest.approx(1 / (1 + 1 / 2 + 1 / 3 + 1 / 4), rel=0.05)
    assert share(0) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(("viewers", "rate"), [(1, 50), (7, 100), (100, 3), (1_000, 100)])
def test_no_viewer_meets_the_same_slot_again_within_a_minute_unless_a_refresh_is_made(viewers, rate):
    newest: dict[tuple[str, str], int] = {}
    for plan in islice(traffic(viewers=viewers, rate=rate).plans(), 20_000):
        place = (plan.viewer_id, plan.slot_id)
        assert plan.at_ms - newest.get(place, 0) >= schedule.PLACE_FREE_MS
        newest[place] = plan.at_ms
    assert len({viewer for viewer, _ in newest}) == viewers


def viewable_by_campaign(source: Traffic, start_ms: int, end_ms: int) -> dict[str, float]:
    shown, seen = Counter[str](), Counter[str]()
    for event in within(source, end_ms):
        if event.fact.topic == "viewability" and event.at_ms >= source.start_ms + start_ms + 4 * S:
            shown[event.fact.campaign_id] += "measurable" in event.fact.gains
            seen[event.fact.campaign_id] += "viewable" in event.fact.gains
    return {campaign: seen[campaign] / shown[campaign] for campaign in shown}


STEADY = replace(CLEAN, viewable=0.6)


def test_a_drop_is_of_one_campaign_and_of_its_time():
    source = traffic(campaigns=3, mix=STEADY, rate=100, skew=0, drops=[Drop("campaign-2", MIN, 2 * MIN, 0.25)])
    before, during, after = (viewable_by_campaign(source, n * MIN, (n + 1) * MIN) for n in range(3))
    for quiet in (before, after):
        assert all(share > 0.45 for share in quiet.values())
    assert during["campaign-2"] < 0.25
    assert during["campaign-1"] > 0.45 and during["campaign-3"] > 0.45


def test_a_broken_tag_measures_less_of_one_campaign_and_says_nothing_of_its_viewability():
    drop = Drop("campaign-2", MIN, 2 * MIN, 0.25, share="measurable")
    source = traffic(campaigns=3, mix=STEADY, rate=100, skew=0, drops=[drop])
    measured, served = Counter[str](), Counter[str]()
    for event in within(source, 2 * MIN):
        if event.at_ms >= source.start_ms + MIN + 4 * S:
            served[event.fact.campaign_id] += event.fact.topic == "renders"
            measured[event.fact.campaign_id] += "measurable" in event.fact.gains
    assert measured["campaign-2"] / served["campaign-2"] == pytest.approx(0.25, abs=0.05)
    assert measured["campaign-1"] / served["campaign-1"] > 0.95
    assert viewable_by_campaign(source, MIN, 2 * MIN)["campaign-2"] > 0.45


def test_a_rotation_lets_one_campaign_after_the_other_drop():
    source = traffic(campaigns=2, mix=STEADY, rate=100, skew=0, rotation=Rotation(MIN, MIN, 0.1))
    dropped = [
        {campaign for campaign, share in viewable_by_campaign(source, n * MIN, (n + 1) * MIN).items() if share < 0.3}
        for n in range(4)
    ]
    assert dropped == [set(), {"campaign-1"}, {"campaign-2"}, {"campaign-1"}]


def test_a_big_record_of_five_megabytes_comes_first_and_only_once():
    events = list(islice(traffic(mix=replace(CLEAN, big_record=True)).events(), 100))
    assert [len(event.value) > 1_000_000 for event in events] == [True] + 99 * [False]
    assert truth_of(events).compare(counted(events, "scheduled")) == []


@pytest.mark.parametrize(("topic", "reason", "value"), MALFORMED)
def test_each_broken_record_is_refused_for_the_reason_that_the_truth_gives(topic, reason, value):
    (event,) = decoder(topic)([value])
    assert event.reason == reason


def test_broken_records_cover_every_reason_but_those_of_rules_not_in_force():
    assert {reason for _, reason, _ in MALFORMED} == set(REASONS) - {"future"}


# --- the Open Bandit log ----------------------------------------------------------------------------------------------


def one_pass(**settings: Any) -> list[Scheduled]:
    source = OpenBandit(**{"start_ms": T0, "mix": CLEAN, **settings})
    return list(EventMaker(source.mix, Random(0)).events(islice(source.plans(), 60_000)))


def test_one_pass_through_the_log_gives_its_60_000_renders_of_six_campaigns_and_its_287_clicks():
    events = one_pass()
    renders = [event for event in events if event.topic == "renders"]
    assert len(renders) == 60_000
    assert len({event.fact.campaign_id for event in renders}) == 6
    assert sum(event.topic == "clicks" for event in events) == 287
    assert all(earlier.at_ms <= later.at_ms for earlier, later in pairwise(events))


def test_the_first_render_lies_at_the_start_and_distances_shrink_with_the_speed():
    slow, fast = (
        [plan.at_ms - T0 for plan in islice(OpenBandit(start_ms=T0, speed=speed).plans(), 60_000)]
        for speed in (1, 1_000)
    )
    assert slow[0] == fast[0] == 0
    assert slow[-1] > 6 * 24 * H
    assert all(abs(a - b * 1_000) <= 1_000 for a, b in zip(slow, fast, strict=True))


def test_rates_are_those_of_the_publisher_s_month():
    rates = Mix(anonymous=0, duplicates=0, refreshes=0, bots=0, late=0, malformed=0, strays=0)
    rows = truth_of(one_pass(mix=rates)).campaigns().values()
    served, measurable, viewable, spend = (sum(r[f] for r in rows) for f in ("served", *FIGURES[1:3], "spend"))
    assert measurable / served == pytest.approx(0.9548, abs=0.005)
    assert 0.3742 < viewable / measurable < 0.4192
    assert spend / served / 1e6 == pytest.approx(2.071, rel=0.05)


def test_the_log_begins_again_with_new_impressions_and_no_viewer_returns_within_a_minute():
    source = OpenBandit(start_ms=T0, speed=open_bandit.FASTEST)
    newest: dict[str, int] = {}
    impressions = set()
    for plan in islice(source.plans(), 150_000):
        assert plan.at_ms - newest.get(plan.viewer_id, 0) >= schedule.PLACE_FREE_MS
        newest[plan.viewer_id] = plan.at_ms
        impressions.add(plan.impression_id)
    assert len(impressions) == 150_000 and len(newest) == 60_000


@pytest.mark.parametrize("speed", [0, -1, open_bandit.FASTEST + 1])
def test_a_speed_at_which_viewers_would_return_too_soon_is_refused(speed):
    with pytest.raises(ValueError, match="speed"):
        OpenBandit(start_ms=T0, speed=speed)


# --- comparing --------------------------------------------------------------------------------------------------------


def a_truth() -> Truth:
    return truth_of(within(traffic(mix=ROUGH, rate=20), MIN))


def test_a_truth_agrees_with_itself():
    assert a_truth().compare(a_truth().to_json()) == []


def test_spend_may_be_told_as_a_number():
    seen = a_truth().to_json()
    for row in seen["campaigns"]:
        row["spend"] = float(row["spend"])
    assert a_truth().compare(seen) == []


@pytest.mark.parametrize("figure", [*FIGURES, "gross"])
def test_every_figure_that_is_off_by_the_least_is_named(figure):
    seen = a_truth().to_json()
    row = seen["campaigns"][0]
    row[figure] = decimal_text(nano_of(row[figure]) + 1) if figure == "spend" else row[figure] + 1
    (line,) = a_truth().compare(seen)
    assert row["campaign_id"] in line and figure in line


@pytest.mark.parametrize("outcome", ["counted", "late", "duplicate", "malformed", "orphan", "pending", "future"])
def test_every_outcome_that_is_off_by_one_is_named(outcome):
    seen = a_truth().to_json()
    outcomes = seen["events"]["viewability"]["outcomes"]
    outcomes[outcome] = outcomes.get(outcome, 0) + 1
    (line,) = a_truth().compare(seen)
    assert line.startswith("viewability:") and outcome in line


def test_what_was_lost_and_what_was_never_sent_is_named():
    seen = a_truth().to_json()
    seen["events"]["clicks"]["sent"] -= 1
    seen["dead_letters"]["bad_price"] = 99
    missing = seen["campaigns"].pop(0)
    seen["campaigns"].append({**missing, "campaign_id": "ghost"})
    lines = a_truth().compare(seen)
    assert len(lines) == 4
    assert "consumed" in lines[0] and "bad_price" in lines[1]
    assert any(line.startswith("ghost") and "nothing was sent" in line for line in lines)
    assert any(line.startswith(missing["campaign_id"]) and "not observed" in line for line in lines)


def test_a_figure_that_is_missing_is_a_difference():
    truth = Truth()
    truth.note(Fact("renders", "render", None, "c", "USD", 5), T0)
    seen = truth.to_json()
    del seen["campaigns"][0]["served"]
    assert truth.compare(seen) == ["c in USD: served should be 1, is 0"]


def test_the_truth_is_plain_json_with_spend_as_decimal_text():
    truth = Truth(seed=9)
    truth.note(Fact("renders", "render", None, "c", "USD", 2_500_000), T0)
    told = json.loads(json.dumps(truth.to_json()))
    assert told["seed"] == 9
    assert told["events"]["renders"] == {"sent": 1, "outcomes": {"counted": 1}}
    assert told["campaigns"] == [
        {
            "campaign_id": "c",
            "currency": "USD",
            "served": 1,
            "measurable": 0,
            "viewable": 0,
            "clicks": 0,
            "spend": "0.0025",
            "gross": 1,
        }
    ]
