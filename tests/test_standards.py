"""When an ad counts as seen: the MRC's standards, by examples, each held against the oracle as well."""

import pytest

from tests.logs import T0, Desk, H, S, click, render, view

BANNER = {"width": 300, "height": 250}
BILLBOARD = {"width": 970, "height": 250, "device": "desktop"}
VIDEO = {"format": "video"}
AUDIO = {"format": "audio"}

YES, NO, OPEN = {"measurable": 1, "viewable": 1}, {"measurable": 1}, {}
"""Viewable; measurable and not viewable; undetermined."""


def seen(pct, ms, **fields):
    return {"in_view_pct": pct, "continuous_ms": ms, **fields}


def credited(desk):
    return {figure: count for figure, count in desk.cell().items() if figure in ("measurable", "viewable")}


def says(render_fields, signal):
    """What a signal makes of a render, after it and before it: the order never matters."""
    after, before = Desk(), Desk()
    assert after.give_all(render(**render_fields), view(kind="signal", **signal)) == ["counted", "counted"]
    assert before.give_all(view(kind="signal", **signal), render(**render_fields)) == ["pending", "counted"]
    assert credited(after) == credited(before)
    return credited(after)


@pytest.mark.parametrize(
    ("shown", "signal", "answer"),
    [
        (BANNER, seen(50, 1_000), YES),
        (BANNER, seen(100, 60_000), YES),
        (BANNER, seen(49.9, 5_000), NO),
        (BANNER, seen(50, 999), NO),
        ({}, seen(50, 1_000), YES),
        ({"format": "native"}, seen(50, 1_000), YES),
        ({"format": None}, seen(50, 1_000), YES),
        (BANNER | {"device": "desktop"}, seen(49, 1_000), NO),
    ],
)
def test_a_display_ad_needs_half_of_it_in_view_for_a_second(shown, signal, answer):
    assert says(shown, signal) == answer


@pytest.mark.parametrize(
    ("shown", "signal", "answer"),
    [
        (BILLBOARD, seen(30, 1_000), YES),
        (BILLBOARD, seen(29.9, 1_000), NO),
        (BILLBOARD, seen(30, 999), NO),
        (BILLBOARD | {"device": "mobile"}, seen(30, 1_000), NO),
        (BILLBOARD | {"device": None}, seen(30, 1_000), NO),
        (BILLBOARD | {"height": 249}, seen(30, 1_000), NO),
        (BILLBOARD | {"width": None}, seen(30, 1_000), NO),
        (BILLBOARD | {"width": 242_500, "height": 1}, seen(30, 1_000), YES),
        (BILLBOARD | VIDEO, seen(30, 2_000, played_ms=2_000), NO),
    ],
)
def test_a_large_display_ad_on_desktop_needs_30_percent_of_it_for_a_second(shown, signal, answer):
    assert says(shown, signal) == answer


@pytest.mark.parametrize(
    ("signal", "answer"),
    [
        (seen(50, 2_000, played_ms=2_000), YES),
        (seen(49.9, 2_000, played_ms=2_000), NO),
        (seen(50, 1_999, played_ms=9_000), NO),
        (seen(50, 2_000, played_ms=1_999), NO),
        (seen(50, 2_000, played_ms=2_000, muted=True), YES),
        (seen(50, 2_000), OPEN),
    ],
)
def test_a_video_needs_half_of_it_in_view_for_two_seconds_and_has_to_play_for_two(signal, answer):
    assert says(VIDEO, signal) == answer


def test_a_video_that_is_in_view_for_1200_ms_twice_is_not_viewable():
    desk = Desk()
    twice = [view(ts=T0 + at, kind="signal", **seen(50, 1_200, played_ms=2_400)) for at in (0, 5 * S)]
    assert desk.give_all(render(**VIDEO), *twice) == ["counted", "counted", "duplicate"]
    assert credited(desk) == NO


@pytest.mark.parametrize(
    ("signal", "answer"),
    [
        ({"played_ms": 2_000}, YES),
        ({"played_ms": 2_000, "muted": False}, YES),
        ({"played_ms": 1_999, "muted": False}, NO),
        ({"played_ms": 2_000, "muted": True}, NO),
        ({"muted": True}, NO),
        ({"muted": False}, OPEN),
        (seen(100, 9_000), OPEN),
    ],
)
def test_audio_has_to_play_for_two_seconds_and_to_be_heard(signal, answer):
    assert says(AUDIO, signal) == answer


@pytest.mark.parametrize("shown", [BANNER, BILLBOARD, VIDEO, AUDIO])
def test_what_is_out_of_focus_is_never_viewable(shown):
    best = seen(100, 60_000, played_ms=60_000, muted=False)
    assert says(shown, best) == says(shown, best | {"in_focus": True}) == YES
    assert says(shown, best | {"in_focus": False}) == NO


@pytest.mark.parametrize("shown", [BANNER, BILLBOARD, VIDEO, AUDIO])
def test_no_signal_is_undetermined(shown):
    assert says(shown, {}) == says(shown, {"in_focus": True}) == OPEN


@pytest.mark.parametrize(
    ("signal", "answer"), [({"in_view_pct": 80}, OPEN), ({"continuous_ms": 1_000}, OPEN), ({"in_view_pct": 10}, NO)]
)
def test_a_signal_that_tells_a_part_decides_only_if_the_rest_could_not_change_it(signal, answer):
    assert says(BANNER, signal) == answer


def test_the_same_waiting_signal_is_judged_by_the_standard_of_the_render_that_comes():
    for shown, answer in [(BANNER, NO), (BILLBOARD, YES), (VIDEO, NO), (AUDIO, OPEN)]:
        assert says(shown, seen(30, 1_000)) == answer


def test_a_signal_says_what_a_verdict_would_say_so_repeats_are_duplicates():
    desk = Desk()
    short, long = view(kind="signal", **seen(50, 999)), view(kind="signal", **seen(50, 1_000))
    verdicts = [view(kind="not_viewable"), short, long, view(kind="viewable"), long, view(kind="signal")]
    assert desk.give_all(render(**BANNER), short, *verdicts) == [
        "counted", "counted", "duplicate", "duplicate", "counted", "duplicate", "duplicate", "duplicate",
    ]  # fmt: skip
    assert credited(desk) == YES


# --- clicks -----------------------------------------------------------------------------------------------------------


def test_400_ms_in_view_and_then_a_click_is_viewable_only_if_clicks_are_told_to_make_it_so():
    events = [render(**BANNER), view(kind="signal", **seen(100, 400)), click()]
    without, with_override = Desk(), Desk(click_makes_viewable=True)
    assert without.give_all(*events) == with_override.give_all(*events) == ["counted"] * 3
    assert credited(without) == NO
    assert credited(with_override) == YES


def test_a_click_makes_measurable_what_nobody_measured_and_a_view_after_it_still_counts_but_credits_nothing():
    desk = Desk(click_makes_viewable=True)
    assert desk.give_all(render(), click(), view(), view()) == ["counted", "counted", "counted", "duplicate"]
    assert credited(desk) == YES


def test_two_clicks_make_an_impression_viewable_once():
    desk = Desk(click_makes_viewable=True)
    assert desk.give_all(render(), view(), click(click_id="a"), click(click_id="b")) == ["counted"] * 4
    assert credited(desk) == YES
    assert desk.cell()["clicks"] == 2


def test_a_click_that_waits_makes_its_impression_viewable_when_that_comes():
    desk = Desk(click_makes_viewable=True)
    assert desk.give_all(click(ts=T0 + S), render()) == ["pending", "counted"]
    assert credited(desk) == YES


def test_a_click_that_is_not_counted_makes_nothing_viewable():
    desk = Desk(click_makes_viewable=True)
    desk.give_all(render("y", invalid="sivt"), click("y"), render("x"), click("x", T0 + H + 1))
    assert desk.outcomes("clicks") == {"pending": 1, "orphan": 1}
    assert credited(desk) == {}
