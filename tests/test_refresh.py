"""Refreshes: rule 6 by examples, each step held against the oracle. Times are seconds after T0."""

import numpy as np
import pytest

from streams.core.partition import Partition
from streams.core.refresh import Anchors, place_of
from streams.core.rules import Outcome, Rules
from streams.wire.events import decoder
from streams.wire.records import encode_delta
from tests.logs import T0, Desk, S, batch, click, encoded, render, view
from tests.runs import assert_same_state, folded, noted

USER = {"type": "user"}
TIMED = {"type": "time", "min_interval_s": 30}


def at(second, name=None, **fields):
    """A render of one viewer's only slot; each has an identity of its own."""
    there = {"viewer_id": "v", "slot_id": "s", **fields}
    return render(name or f"{second} {sorted(fields.items())}", T0 + int(second * S), **there)


def outcomes(*events, **rules):
    desk = Desk(**rules)
    return [desk.give(event) for event in events]


def counts(*seconds, **rules):
    """The seconds of the renders that count, given in the order in which they come."""
    return [s for s, outcome in zip(seconds, outcomes(*map(at, seconds), **rules), strict=True) if outcome == "counted"]


@pytest.mark.parametrize(
    ("seconds", "counted"),
    [
        ((0, 20, 40, 60), [0, 40]),
        ((0, 40, 10), [0, 40]),
        ((0, 30, 60), [0, 30, 60]),
        ((0, 29.999), [0]),
        ((0, 30), [0, 30]),
        ((30, 0), [30, 0]),
        ((29.999, 0), [29.999]),
        ((0, 0), [0]),
        ((60, 0, 30), [60, 0, 30]),
        ((60, 0, 31), [60, 0]),
        ((0, 29, 31, 61), [0, 31, 61]),
        ((0, 10, 20, 30, 40, 50, 60), [0, 30, 60]),
    ],
)
def test_less_than_the_interval_before_or_after_a_counted_render_of_its_place_is_a_refresh(seconds, counted):
    assert counts(*seconds) == counted


def test_0_40_and_10_seconds_count_twice_and_the_third_is_a_refresh():
    assert outcomes(at(0), at(40), at(10)) == ["counted", "counted", "refresh"]


def test_a_refresh_is_in_no_figure_and_its_views_and_clicks_are_orphans():
    desk = Desk()
    desk.give_all(at(0, "x"), view("y", T0 + 11 * S), at(10, "y"))
    assert desk.give_all(view("y", T0 + 12 * S), click("y", T0 + 12 * S)) == ["orphan", "orphan"]
    assert desk.outcomes("renders") == {"counted": 1, "refresh": 1}
    assert desk.outcomes("viewability") == {"orphan": 2}
    assert desk.cell() == {"served": 1, "spend": 2_500_000, "gross": 1, "revision": 1}


def test_a_duplicate_of_a_refresh_is_a_duplicate_even_where_it_would_be_none():
    assert outcomes(at(0, "x"), at(10, "y"), at(50, "y"), at(50, "z")) == [
        "counted", "refresh", "duplicate", "counted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [{"viewer_id": "w"}, {"slot_id": "t"}, {"creative_id": "k"}, {"campaign_id": "d"}, {"source": "dsp"}],
)
def test_another_viewer_slot_creative_campaign_or_source_is_another_place(fields):
    assert outcomes(at(0), at(1, **fields)) == ["counted", "counted"]


def test_with_a_creative_the_campaign_does_not_matter_and_without_one_it_does():
    assert outcomes(at(0, creative_id="k"), at(1, creative_id="k", campaign_id="d")) == ["counted", "refresh"]
    assert outcomes(at(0, creative_id=""), at(1, creative_id=None), at(2, creative_id="c")) == [
        "counted", "refresh", "counted",
    ]  # fmt: skip


def test_no_spelling_of_viewer_slot_and_creative_makes_two_places_one():
    def place(**fields):
        (event,) = decoder("renders")([encoded(at(0, **fields))])
        return place_of(event)

    spellings = [
        {"viewer_id": "ab", "slot_id": "c"}, {"viewer_id": "a", "slot_id": "bc"}, {"viewer_id": "c", "slot_id": "ab"},
        {"slot_id": "sk"}, {"creative_id": "k"}, {"campaign_id": "k"}, {"campaign_id": "creative k"},
        {"source": "s", "slot_id": "adserver"}, {"source": "v", "viewer_id": "adserver"},
    ]  # fmt: skip
    assert len({place(**fields) for fields in spellings}) == len(spellings)
    assert place() == place(source="adserver") == place(source=None, creative_id="")


def test_what_does_not_count_is_no_anchor():
    assert outcomes(at(0, invalid="sivt"), at(10), at(20)) == ["invalid_traffic", "counted", "refresh"]
    assert outcomes(at(60, "x"), at(0, "x"), at(10)) == ["counted", "duplicate", "counted"]


@pytest.mark.parametrize("missing", [{"viewer_id": ""}, {"viewer_id": None}, {"slot_id": ""}, {"slot_id": None}])
def test_a_render_without_viewer_or_slot_is_never_a_refresh_and_is_counted_as_unchecked(missing):
    desk = Desk()
    assert desk.give_all(at(0, "x", **missing), at(1, "y", **missing)) == ["counted", "counted"]
    assert desk.state.unchecked == 2


@pytest.mark.parametrize(("behind", "outcome", "unchecked"), [(60, "refresh", 0), (60.001, "counted", 1)])
def test_what_is_more_than_the_slack_behind_stream_time_is_not_checked(behind, outcome, unchecked):
    desk = Desk()
    assert desk.give_all(at(0), at(100, slot_id="t"), at(100 - behind, creative_id="k"), at(100 - behind, "again")) == [
        "counted", "counted", "counted", "counted",
    ]  # fmt: skip
    desk = Desk()
    assert desk.give_all(at(100 - behind - 29), at(100, slot_id="t"), at(100 - behind)) == [
        "counted", "counted", outcome,
    ]  # fmt: skip
    assert desk.state.unchecked == unchecked


def test_what_was_not_checked_but_counts_is_an_anchor_all_the_same():
    assert outcomes(at(100, slot_id="t"), at(39), at(41), at(69)) == ["counted", "counted", "refresh", "counted"]


def test_other_intervals_and_slacks_hold_and_0_switches_the_rule_off():
    assert counts(0, 5, 10, refresh_interval_ms=10_000) == [0, 10]
    assert outcomes(at(0), at(9, slot_id="t"), at(1), refresh_slack_ms=8_000) == ["counted", "counted", "refresh"]
    assert outcomes(at(0), at(9, slot_id="t"), at(1), refresh_slack_ms=7_999) == ["counted"] * 3
    desk = Desk(refresh_interval_ms=0)
    assert desk.give_all(at(0), at(1), at(2, viewer_id="")) == ["counted"] * 3
    assert desk.state.unchecked == 0


# --- declared refreshes -----------------------------------------------------------------------------------------------


def test_a_declared_refresh_is_checked_like_any_other_and_labelled_if_it_counts():
    desk = Desk()
    assert desk.give_all(at(0), at(29, refresh=TIMED), at(30, refresh=TIMED), at(70, refresh=USER), at(71)) == [
        "counted", "refresh", "counted", "counted", "refresh",
    ]  # fmt: skip
    assert sum(cell["declared"] for cell in desk.cells().values()) == 2


def test_a_users_own_refresh_counts_if_it_is_told_to_and_is_an_anchor():
    rules = {"count_user_refresh": True}
    assert outcomes(at(0), at(10, refresh=USER), at(35), at(40), **rules) == [
        "counted", "counted", "refresh", "counted",
    ]  # fmt: skip
    assert outcomes(at(0), at(10, refresh=TIMED), **rules) == ["counted", "refresh"]
    assert outcomes(at(0), at(10, refresh={"type": "event"}), **rules) == ["counted", "refresh"]
    assert outcomes(at(0), at(10, refresh=USER)) == ["counted", "refresh"]


def test_a_users_own_refresh_that_counts_by_rule_is_not_called_unchecked():
    desk = Desk(count_user_refresh=True)
    desk.give(at(0, viewer_id="", refresh=USER))
    assert desk.state.unchecked == 0
    assert desk.cell()["declared"] == 1


# --- the memory of anchors --------------------------------------------------------------------------------------------


def state_of(*events, **rules):
    state = Partition(Rules(**rules))
    state.apply(batch("renders", [(offset, event, None) for offset, event in enumerate(events)]))
    return state


@pytest.mark.parametrize("slots", [1, 1_000])
def test_anchors_are_kept_as_long_as_a_render_that_is_checked_can_be_near_to_them_and_at_most_twice_as_long(slots):
    state = Partition(Rules())
    for second in range(0, 1_000, 30 if slots == 1 else 1):
        state.apply(batch("renders", [(second, at(second, slot_id=str(second % slots)), None)]))
        state.take()
        known = {(anchor - T0) // S for _, anchor in noted(state.anchors)}
        assert known >= {one for one in range(second - 90, second + 1) if one >= 0 and (slots > 1 or one % 30 == 0)}
        assert len(known) == len(state.anchors)
        assert min(known) >= second - 2 * (90 + 10)


def test_silence_makes_all_of_them_forgotten():
    state = state_of(*(at(second, slot_id=str(second)) for second in range(100)))
    state.take()
    assert len(state.anchors) == 100
    assert state.lift("renders", T0 + 1_000 * S)
    state.take()
    assert len(state.anchors) == 0


def near(anchors, place, ts):
    return bool(anchors.near(np.array([place]), np.array([ts]))[0])


def test_an_anchor_at_the_very_reach_of_a_checked_render_is_still_there():
    anchors = Anchors(30_000, 60_000)
    anchors.add(np.array([1]), np.array([10_001]))
    anchors.forget(100_000)
    assert near(anchors, 1, 40_000)
    assert anchors.of(1) == [10_001]
    anchors.forget(110_000)
    assert anchors.of(1) == []
    assert not near(anchors, 1, 40_000)


def test_a_render_is_compared_with_what_any_part_knows():
    state = Partition(Rules())
    for offset, second in enumerate((0, 40)):
        elsewhere = [at(second, slot_id=str(slot)) for slot in range(20)]
        records = [(offset * 100 + number, event, None) for number, event in enumerate([at(second), *elsewhere])]
        state.apply(batch("renders", records))
    assert all(sorted(state.anchors.of(place)) == [T0, T0 + 40 * S] for place, _ in noted(state.anchors))
    assert len(state.anchors) == 42
    state.apply(batch("renders", [(200, at(20), None), (201, at(65), None), (202, at(75), None)]))
    told = state.progress["renders"].outcomes
    assert (told[Outcome.COUNTED], told[Outcome.REFRESH]) == (43, 2)


@pytest.mark.parametrize("together", [True, False])
def test_renders_of_one_place_in_one_batch_are_compared_with_each_other(together):
    events = [at(0), at(20), at(0, slot_id="other"), at(40), at(60), at(39), at(70)]
    records = [(offset, event, None) for offset, event in enumerate(events)]
    state = Partition(Rules())
    for chunk in [records] if together else [[record] for record in records]:
        state.apply(batch("renders", chunk))
    told = state.progress["renders"].outcomes
    assert (told[Outcome.COUNTED], told[Outcome.REFRESH]) == (4, 3)


def test_a_record_whose_impressions_are_forgotten_stays_while_its_anchors_are_needed():
    rules = Rules(lateness_ms=1, dedup_horizon_ms=1, viewability_horizon_ms=1)
    state = Partition(rules)
    journal = {}
    for second in range(0, 200, 5):
        offset = state.progress["renders"].fence
        state.apply(batch("renders", [(offset, at(second, slot_id=str(second)), None)]))
        state.apply(batch("viewability", [(offset, view("q", T0 + second * S), None)]))
        state.apply(batch("clicks", [(offset, click("q", T0 + second * S), None)]))
        confirmed = state.final_before()
        expired = state.expired()
        seq = state.seq
        journal[seq] = encode_delta(state.take(confirmed))
        for number in expired:
            del journal[number]
        assert_same_state(state, folded(rules, journal))
    assert len(state.impressions) < 10 < len(state.anchors) <= 40
    assert len(journal) < 25
