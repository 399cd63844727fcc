"""The counting rules, one sentence each. Every step of every example is also held against the oracle."""

from types import SimpleNamespace

import pytest

from streams.kafka.backlog import appended_ms
from tests.logs import MIN, T0, Desk, H, S, batch, click, render, view

CPM_2_50 = 2_500_000

# --- renders ----------------------------------------------------------------------------------------------------------


def test_a_render_counts_once_and_costs_its_price():
    desk = Desk()
    assert desk.give(render()) == "counted"
    assert desk.cells() == {
        ("c", "USD", "adserver", T0): {
            "served": 1, "measurable": 0, "viewable": 0, "clicks": 0, "spend": CPM_2_50, "gross": 1, "revision": 1,
            "declared": 0, "over_cap": 0,
        }
    }  # fmt: skip


def test_the_same_key_five_times_is_one_counted_and_four_duplicates():
    desk = Desk()
    assert desk.give_all(*[render()] * 5) == ["counted"] + ["duplicate"] * 4
    assert desk.cell() == {"served": 1, "spend": CPM_2_50, "gross": 1, "revision": 1}


def test_a_duplicate_is_compared_with_nothing_so_0_50_and_100_minutes_count_at_0_and_100():
    desk = Desk()
    at = [render(ts=T0 + minutes * MIN) for minutes in (0, 50, 100)]
    assert desk.give_all(*at) == ["counted", "duplicate", "counted"]
    assert {place[3] for place in desk.cells()} == {T0, (T0 + 100 * MIN) // 10_000 * 10_000}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("apart", "outcome"), [(H - 1, "duplicate"), (H, "duplicate"), (H + 1, "counted")])
def test_the_dedup_horizon_itself_is_still_a_duplicate_forwards_and_backwards(sign, apart, outcome):
    desk = Desk(lateness_ms=2 * H)
    assert desk.give_all(render(), render(ts=T0 + sign * apart)) == ["counted", outcome]


def test_another_source_is_another_impression():
    desk = Desk()
    assert desk.give_all(render(), render(source="dsp"), render(source="adserver")) == [
        "counted",
        "counted",
        "duplicate",
    ]
    assert {place[2]: cell["served"] for place, cell in desk.cells().items()} == {"adserver": 1, "dsp": 1}


def test_no_spelling_of_source_and_id_makes_two_impressions_one():
    desk = Desk()
    assert desk.give_all(render("b\0c", source="a"), render("c", source="a\0b")) == ["counted", "counted"]
    assert desk.give_all(render("bc", source="a"), render("c", source="ab")) == ["counted", "counted"]


def test_a_null_source_is_the_default_source():
    assert Desk().give_all(render(), render(source=None)) == ["counted", "duplicate"]


def test_a_repeat_with_another_price_campaign_or_currency_is_a_duplicate_all_the_same():
    desk = Desk()
    desk.give(render())
    assert desk.give(render(price="9", campaign_id="d", currency="EUR")) == "duplicate"
    assert desk.cell()["spend"] == CPM_2_50


@pytest.mark.parametrize(("behind", "outcome"), [(H, "counted"), (H + 1, "late")])
def test_a_render_is_late_when_it_is_further_behind_than_lateness(behind, outcome):
    desk = Desk()
    desk.give(render("newest"))
    assert desk.give(render("x", T0 - behind)) == outcome


def test_a_late_render_neither_moves_stream_time_back_nor_counts_as_a_first():
    desk = Desk(lateness_ms=MIN)
    desk.give(render("newest"))
    assert desk.give(render("x", T0 - 61 * S)) == "late"
    assert desk.state.progress["renders"].stream_time == T0
    assert desk.give(render("x", T0 - 59 * S)) == "counted"


def test_a_duplicate_moves_stream_time_on():
    desk = Desk(lateness_ms=MIN)
    desk.give_all(render("x"), render("x", T0 + 30 * MIN))
    assert desk.give(render("y", T0 + 28 * MIN)) == "late"


def test_lateness_is_measured_on_the_topic_partition_of_the_event_alone():
    desk = Desk(lateness_ms=MIN)
    desk.give(render("x"))
    assert desk.give(view("x", T0 + 30 * MIN)) == "counted"
    assert desk.give(render("y", T0 + 1)) == "counted"
    assert desk.give(click("x", T0 + 2)) == "counted"
    assert desk.give(view("x", T0 + 28 * MIN)) == "late"


# --- joining views to renders -----------------------------------------------------------------------------------------


def test_a_view_is_credited_to_the_pane_of_its_render():
    desk = Desk()
    assert desk.give_all(render(), view(ts=T0 + 59 * MIN)) == ["counted", "counted"]
    assert desk.cell() == {
        "served": 1,
        "measurable": 1,
        "viewable": 1,
        "spend": CPM_2_50,
        "gross": 1,
        "revision": 2,
    }


@pytest.mark.parametrize(
    ("after", "outcome"),
    [(-10 * S - 1, "pending"), (-10 * S, "counted"), (0, "counted"), (H, "counted"), (H + 1, "pending")],
)
def test_a_view_belongs_to_its_render_from_10_s_before_it_to_the_horizon_after_it(after, outcome):
    assert Desk().give_all(render(), view(ts=T0 + after))[1] == outcome
    assert Desk().give_all(render(), click(ts=T0 + after))[1] == outcome


def test_a_view_61_minutes_after_its_render_is_pending_then_orphan_and_never_late():
    desk = Desk()
    assert desk.give_all(render(), view(ts=T0 + 61 * MIN)) == ["counted", "pending"]
    desk.give(render("y", T0 + 121 * MIN))
    assert desk.outcomes("viewability") == {"pending": 1}
    desk.give(render("y", T0 + 121 * MIN + 10 * S))
    assert desk.outcomes("viewability") == {"pending": 1}
    desk.give(render("y", T0 + 121 * MIN + 10 * S + 1))
    assert desk.outcomes("viewability") == {"orphan": 1}


def test_a_horizon_of_6_hours_counts_a_view_61_minutes_after_its_render():
    desk = Desk(viewability_horizon_ms=6 * H)
    assert desk.give_all(render(), view(ts=T0 + 61 * MIN)) == ["counted", "counted"]
    assert desk.give(view("x", T0 + 6 * H + 1, "measurable")) == "pending"


def test_a_view_that_comes_first_waits_and_is_credited_when_its_render_comes():
    desk = Desk()
    assert desk.give_all(view(ts=T0 + S), click(ts=T0 + S)) == ["pending", "pending"]
    assert desk.give(render()) == "counted"
    assert desk.outcomes("viewability") == desk.outcomes("clicks") == {"counted": 1}
    assert desk.cell() == {
        "served": 1,
        "measurable": 1,
        "viewable": 1,
        "clicks": 1,
        "spend": CPM_2_50,
        "gross": 1,
        "revision": 3,
    }


def test_views_that_wait_are_decided_in_the_order_of_their_topic():
    desk = Desk()
    waiting = [view(kind="undetermined"), view(kind="viewable"), view(kind="measurable"), view(kind="undetermined")]
    assert desk.give_all(*waiting) == ["pending"] * 4
    desk.give(render())
    assert desk.outcomes("viewability") == {"counted": 2, "duplicate": 2}


def test_only_the_waiting_views_that_the_window_holds_go_to_a_render():
    desk = Desk()
    desk.give_all(view(ts=T0 - 10 * S - 1), view(ts=T0 + H), view(ts=T0 + H + 1))
    desk.give(render())
    assert desk.outcomes("viewability") == {"counted": 1, "pending": 2}


@pytest.mark.parametrize("event", [view, click])
@pytest.mark.parametrize(
    ("after", "outcome"), [(-10 * S - 1, "pending"), (-10 * S, "counted"), (H, "counted"), (H + 1, "pending")]
)
def test_what_waits_belongs_to_a_render_by_the_same_bounds_as_what_comes_after_it(event, after, outcome):
    desk = Desk()
    desk.give_all(event(ts=T0 + after), render())
    assert desk.outcomes("viewability") | desk.outcomes("clicks") == {outcome: 1}


def test_a_view_goes_to_the_first_render_in_partition_order_whose_window_holds_it():
    desk = Desk(lateness_ms=2 * H, viewability_horizon_ms=6 * H)
    assert desk.give_all(render(ts=T0 + 100 * MIN), render(ts=T0 + 39 * MIN)) == ["counted", "counted"]
    assert desk.give(view(ts=T0 + 101 * MIN)) == "counted"
    viewable = [place[3] for place, cell in desk.cells().items() if cell["viewable"]]
    assert viewable == [(T0 + 100 * MIN) // 10_000 * 10_000]


@pytest.mark.parametrize(("minutes", "pane_minutes"), [(5, 0), (60, 0), (101, 100)])
def test_of_renders_at_0_50_and_100_minutes_a_view_goes_to_the_one_whose_window_holds_it(minutes, pane_minutes):
    desk = Desk()
    desk.give_all(*(render(ts=T0 + at * MIN) for at in (0, 50, 100)))
    assert desk.give(view(ts=T0 + minutes * MIN)) == "counted"
    viewable = [place[3] for place, cell in desk.cells().items() if cell["viewable"]]
    assert viewable == [(T0 + pane_minutes * MIN) // 10_000 * 10_000]


@pytest.mark.parametrize(("before", "outcome"), [(10 * S, "counted"), (10 * S + 1, "pending")])
def test_of_several_renders_too_one_takes_a_view_from_10_s_before_it(before, outcome):
    desk = Desk()
    desk.give_all(render(), render(ts=T0 + 100 * MIN))
    assert desk.give(view(ts=T0 + 100 * MIN - before)) == outcome


def test_a_duplicate_render_opens_no_window():
    desk = Desk()
    assert desk.give_all(render(), render(ts=T0 + 50 * MIN)) == ["counted", "duplicate"]
    assert desk.give(view(ts=T0 + 70 * MIN)) == "pending"


def test_a_view_of_another_source_belongs_to_the_impression_of_that_source():
    desk = Desk()
    assert desk.give_all(render(), view(source="dsp")) == ["counted", "pending"]
    desk.give(render(source="dsp"))
    assert {place[2]: cell["viewable"] for place, cell in desk.cells().items()} == {"adserver": 0, "dsp": 1}


def test_a_view_of_an_unknown_render_that_would_be_late_is_an_orphan_at_once():
    desk = Desk()
    desk.give(render("y", T0 + 2 * H))
    assert desk.give(view("x", T0 + H - 10 * S)) == "pending"
    assert desk.give(view("x", T0 + H - 10 * S - 1)) == "orphan"
    assert desk.give(click("x", T0 + H - 10 * S - 1)) == "orphan"


# --- what views say ---------------------------------------------------------------------------------------------------


def test_undetermined_counts_as_an_event_but_makes_nothing_measurable():
    desk = Desk()
    assert desk.give_all(render(), view(kind="undetermined")) == ["counted", "counted"]
    assert desk.cell() == {"served": 1, "spend": CPM_2_50, "gross": 1, "revision": 2}


def test_not_viewable_implies_measurable():
    desk = Desk()
    desk.give_all(render(), view(kind="not_viewable"))
    assert desk.cell() == {"served": 1, "measurable": 1, "spend": CPM_2_50, "gross": 1, "revision": 2}


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("viewable", "measurable", "duplicate"),
        ("viewable", "not_viewable", "duplicate"),
        ("viewable", "viewable", "duplicate"),
        ("viewable", "undetermined", "duplicate"),
        ("measurable", "viewable", "counted"),
        ("measurable", "not_viewable", "duplicate"),
        ("measurable", "undetermined", "duplicate"),
        ("not_viewable", "viewable", "counted"),
        ("not_viewable", "measurable", "duplicate"),
        ("undetermined", "undetermined", "duplicate"),
        ("undetermined", "measurable", "counted"),
        ("undetermined", "viewable", "counted"),
    ],
)
def test_a_view_is_a_duplicate_when_earlier_views_already_said_all_that_it_says(first, second, outcome):
    desk = Desk()
    assert desk.give_all(render(), view(kind=first), view(kind=second)) == ["counted", "counted", outcome]
    assert desk.cell().get("viewable", 0) == ("viewable" in (first, second))
    assert desk.cell().get("measurable", 0) == (first != "undetermined" or second != "undetermined")


def test_a_view_measurable_in_two_steps_is_measurable_once():
    desk = Desk()
    desk.give_all(render(), view(kind="undetermined"), view(kind="measurable"), view(kind="viewable"))
    assert desk.cell() == {
        "served": 1,
        "measurable": 1,
        "viewable": 1,
        "spend": CPM_2_50,
        "gross": 1,
        "revision": 4,
    }


# --- clicks -----------------------------------------------------------------------------------------------------------


def test_a_click_with_an_id_duplicates_only_the_same_id():
    desk = Desk()
    clicks = [click(click_id="a"), click(click_id="b"), click(click_id="a")]
    assert desk.give_all(render(), *clicks) == ["counted", "counted", "counted", "duplicate"]
    assert desk.cell()["clicks"] == 2


def test_a_click_without_an_id_duplicates_any_earlier_click():
    desk = Desk()
    assert desk.give_all(render(), click(click_id="a"), click()) == ["counted", "counted", "duplicate"]
    assert Desk().give_all(render(), click(), click()) == ["counted", "counted", "duplicate"]


def test_a_click_with_an_id_after_one_without_counts():
    assert Desk().give_all(render(), click(), click(click_id="a")) == ["counted"] * 3


def test_a_click_never_makes_a_view_a_duplicate_nor_an_impression_viewable():
    desk = Desk()
    assert desk.give_all(render(), click(), view(kind="undetermined")) == ["counted"] * 3
    assert desk.cell() == {"served": 1, "clicks": 1, "spend": CPM_2_50, "gross": 1, "revision": 3}


# --- whose figures ----------------------------------------------------------------------------------------------------


def test_price_0_is_a_price():
    desk = Desk()
    desk.give(render(price=0))
    assert {place[1]: cell["spend"] for place, cell in desk.cells().items()} == {"USD": 0}


@pytest.mark.parametrize("fields", [{"price": None}, {"price": None, "currency": "EUR"}])
def test_no_price_is_counted_under_currency_none(fields):
    desk = Desk()
    desk.give(render(**fields))
    assert [(place[1], cell["served"]) for place, cell in desk.cells().items()] == [("none", 1)]


def test_currencies_are_never_added_together():
    desk = Desk()
    desk.give_all(render("x"), render("y", currency="EUR"), render("z"))
    assert {place[1]: cell["spend"] for place, cell in desk.cells().items()} == {
        "USD": 2 * CPM_2_50,
        "EUR": CPM_2_50,
    }


def test_campaign_0_is_a_campaign_like_any_other():
    desk = Desk()
    desk.give_all(render("x", campaign_id="0"), render("y"))
    assert {place[0]: cell["served"] for place, cell in desk.cells().items()} == {"0": 1, "c": 1}


def test_spend_without_a_viewable_impression_is_still_spend():
    desk = Desk()
    desk.give_all(render(), view(kind="not_viewable"))
    assert "viewable" not in desk.cell()
    assert desk.cell()["spend"] == CPM_2_50


@pytest.mark.parametrize(
    ("price", "unit", "nano"),
    [
        ("2.50", "cpm", 2_500_000),
        (2.9e-05, "impression", 29_000),
        (2.9e-05, "cpm", 29),
        (0.00032199999999999997, "impression", 322_000),
        (0.00032199999999999997, "cpm", 322),
        (2_500_000, "micros_cpm", 2_500_000),
        (1_500, "micros_impression", 1_500_000),
    ],
)
def test_a_price_in_any_unit_is_exact_and_rounded_once(price, unit, nano):
    desk = Desk()
    desk.give(render(price=price, price_unit=unit))
    assert desk.cell()["spend"] == nano


def test_the_pane_boundary_belongs_to_the_pane_that_it_opens():
    desk = Desk()
    desk.give_all(render("x", T0 + 9_999), render("y", T0 + 10_000))
    assert {place[3]: cell["served"] for place, cell in desk.cells().items()} == {T0: 1, T0 + 10_000: 1}


# --- what cannot be counted, and what is counted already --------------------------------------------------------------


def test_a_negative_price_is_malformed_and_its_neighbours_are_unharmed():
    desk = Desk()
    assert desk.give(render("x")) == "counted"
    assert desk.give_raw("renders", b'{"impression_id":"y","campaign_id":"c","ts":1,"price":-1}') == "malformed"
    assert desk.give(render("z")) == "counted"
    assert desk.state.reasons == {"bad_price": 1}


def test_a_malformed_record_goes_to_the_dead_letters_with_its_place_and_reason():
    desk = Desk()
    desk.give(render())
    (letter,) = desk.state.apply(_raw("renders", 7, b"{"))
    assert (letter.topic, letter.offset, letter.reason) == ("renders", 7, "not_json")


@pytest.mark.parametrize(("ahead", "outcome"), [(10 * MIN, "counted"), (10 * MIN + 1, "future")])
def test_an_event_more_than_ten_minutes_ahead_of_its_record_is_future(ahead, outcome):
    assert Desk().give(render(ts=T0 + ahead), appended=T0) == outcome


def test_views_and_clicks_can_be_future_too():
    desk = Desk()
    desk.give(render())
    assert desk.give(view(ts=T0 + 11 * MIN), appended=T0) == "future"
    assert desk.give(click(ts=T0 + 11 * MIN), appended=T0) == "future"
    assert desk.state.reasons == {"future": 2}


def test_a_future_event_goes_to_the_dead_letters_and_does_not_move_stream_time():
    desk = Desk(lateness_ms=MIN)
    desk.give(render("x"), appended=T0)
    (letter,) = desk.state.apply(batch("renders", [(1, render("secret", T0 + H), T0)]))
    assert (letter.topic, letter.offset, letter.reason) == ("renders", 1, "future")
    assert "secret" not in letter.detail
    assert desk.state.progress["renders"].stream_time == T0


def test_one_wrong_clock_makes_no_other_event_late():
    desk = Desk(lateness_ms=MIN)
    assert desk.give(render("x", T0 + H), appended=T0) == "future"
    assert desk.give(render("y", T0), appended=T0) == "counted"


@pytest.mark.parametrize(
    ("timestamp", "headers", "appended"),
    [
        (5, (), 5),
        (5, (("other", b"7"),), 5),
        (5, (("appended", b"7"),), 7),
        (-1, (("appended", b"7"),), 7),
        (-1, (), None),
        (None, (), None),
        (5, (("appended", None),), 5),
        (5, (("appended", b""),), 5),
        (5, (("appended", b"-7"),), 5),
        (5, (("appended", b"soon"),), 5),
        (5, (("appended", b"9" * 5_000),), 5),
    ],
)
def test_the_header_appended_goes_before_the_records_own_time(timestamp, headers, appended):
    assert appended_ms([SimpleNamespace(timestamp=timestamp, headers=headers)]) == [appended]


def test_a_file_whose_records_have_no_time_of_their_own_has_no_future_events():
    assert Desk().give_all(render("x"), render("y", T0 + 24 * H)) == ["counted", "counted"]


def test_records_below_the_fence_are_in_the_state_already_and_are_skipped():
    desk = Desk()
    desk.give_all(render("x"), render("y"))
    desk.give_raw("renders", b"{")
    before = desk.outcomes("renders")
    assert desk.state.apply(batch("renders", desk.logs["renders"])) == []
    assert desk.outcomes("renders") == before == {"counted": 2, "malformed": 1}
    assert desk.state.reasons == {"not_json": 1}


def test_a_batch_that_reaches_over_the_fence_is_applied_from_the_fence_on():
    desk = Desk()
    desk.give_all(render("x"), render("y"))
    desk.state.apply(batch("renders", [*desk.logs["renders"], (2, render("z"), None)]))
    assert desk.outcomes("renders") == {"counted": 3}


def test_consumed_is_the_sum_of_all_outcomes_and_what_is_pending():
    desk = Desk(lateness_ms=MIN)
    desk.give_all(render("x"), render("x"), render("y", T0 - 2 * MIN))
    desk.give_all(view("x"), view("x"), view("q"), view("q", T0 - 2 * MIN), view("r", T0 - MIN), view("o", T0 - MIN))
    desk.give_raw("viewability", None)
    desk.give_all(render("z", T0 + 11 * S), render("z", T0 + 11 * S))
    assert desk.outcomes("renders") == {"counted": 2, "duplicate": 2, "late": 1}
    assert desk.outcomes("viewability") == {
        "counted": 1,
        "duplicate": 1,
        "late": 1,
        "malformed": 1,
        "orphan": 2,
        "pending": 1,
    }
    for topic in ("renders", "viewability", "clicks"):
        assert sum(desk.outcomes(topic).values()) == len(desk.logs[topic])


def _raw(topic, offset, value):
    return batch(topic, [(offset, value, None)])
