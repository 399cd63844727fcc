"""What is agreed for a campaign: what its impressions cost from when on, and how many one viewer should see."""

import asyncio
from typing import Any

import pytest

from streams.core.campaigns import Campaigns, Caps
from streams.core.journal import Position
from streams.kafka.journal import JournalError
from streams.kafka.qualify import Qualify
from streams.wire.campaigns import CampaignsError, load_campaigns, parse_campaigns
from streams.wire.records import journal_key
from tests.logs import RULES, T0, TOPICS, Counting, Desk, H, S, click, render, seeded_logs, view
from tests.runs import Run, assert_same_state, folded
from tests.test_rules import FLOW, Journal, inputs

NANO = 10**9


def priced(*pricing: tuple[int, str, Any], **more: Any) -> dict[str, Any]:
    return {"c": {"pricing": list(pricing), **more}}


def spend(desk: Desk) -> dict[tuple[str, int], int]:
    """Spend by currency and seconds of the pane."""
    return {(place[1], (place[3] - T0) // S): cell["spend"] for place, cell in desk.cells().items()}


# --- pricing models ---------------------------------------------------------------------------------------------------


def test_a_cpm_of_the_campaign_holds_whatever_the_render_says():
    desk = Desk(priced((0, "cpm", "4"), currency="EUR"))
    desk.give_all(render("x", price="9"), render("y", price=None), render("z", price="1", currency="GBP"))
    assert spend(desk) == {("EUR", 0): 3 * 4_000_000}


def test_with_vcpm_only_what_was_seen_costs_and_once():
    desk = Desk(priced((0, "vcpm", "10")))
    desk.give_all(render("x"), render("y"), view("y", kind="not_viewable"))
    assert spend(desk) == {("USD", 0): 0}
    desk.give_all(view("x"), view("x"), view("x", kind="measurable"))
    assert spend(desk) == {("USD", 0): 10_000_000}


def test_with_vcpm_a_click_that_makes_viewable_costs_like_a_view_and_not_twice():
    desk = Desk(priced((0, "vcpm", "10")), click_makes_viewable=True)
    desk.give_all(render("x"), click("x", click_id="1"), click("x", click_id="2"), view("x"))
    assert spend(desk) == {("USD", 0): 10_000_000}
    without = Desk(priced((0, "vcpm", "10")))
    without.give_all(render("x"), click("x"))
    assert spend(without) == {("USD", 0): 0}


def test_with_cpc_each_counted_click_costs():
    desk = Desk(priced((0, "cpc", "0.25")))
    desk.give_all(render("x"), view("x"), click("x", click_id="1"), click("x", click_id="2"), click("x", click_id="1"))
    assert spend(desk) == {("USD", 0): 2 * 250_000_000}


def test_flat_is_cost_by_booked_for_each_and_goes_on_beyond_what_was_booked():
    desk = Desk(priced((0, "flat", (10, 3))))
    desk.give_all(*(render(str(number)) for number in range(4)))
    assert spend(desk) == {("USD", 0): 4 * 3_333_333_333}


@pytest.mark.parametrize(
    ("cost", "booked", "nano"), [("5000", 500_000, 10_000_000), (1, 3, 333_333_333), ("0.000000005", 2, 2), (0, 1, 0)]
)
def test_a_share_of_a_flat_cost_is_rounded_once_half_to_even(cost, booked, nano):
    (terms,) = (
        parse_campaigns(f"[[campaigns.c.pricing]]\nmodel='flat'\ncost='{cost}'\nbooked={booked}", "adserver")
        .by_id["c"]
        .terms
    )
    assert terms.nano == nano


def test_invalid_and_refreshed_renders_cost_nothing_in_any_model():
    for model in ("cpm", "vcpm", "cpc"):
        desk = Desk(priced((0, model, "4")))
        place = {"viewer_id": "v", "slot_id": "s"}
        outcomes = desk.give_all(render("i", invalid="givt"), render("x", **place), render("y", T0 + S, **place))
        assert outcomes == ["counted" if one == "x" else one for one in ("invalid_traffic", "x", "refresh")]
        desk.give_all(view("i"), view("y", T0 + S), click("i"), click("y", T0 + S))
        assert sum(spend(desk).values()) == (4_000_000 if model == "cpm" else 0)


# --- from when on -----------------------------------------------------------------------------------------------------


def test_terms_hold_from_their_time_on_and_before_the_first_the_price_of_the_render_does():
    desk = Desk(priced((T0 + 10 * S, "cpm", "1"), (T0 + 20 * S, "cpm", "3")))
    desk.give_all(*(render(str(ts), T0 + ts) for ts in (0, 9_999, 10_000, 19_999, 20_000, 30_000)))
    assert spend(desk) == {
        ("USD", 0): 2 * 2_500_000, ("USD", 10): 2 * 1_000_000, ("USD", 20): 3_000_000, ("USD", 30): 3_000_000,
    }  # fmt: skip


def test_the_terms_of_the_render_hold_for_its_later_views_and_clicks():
    desk = Desk(priced((0, "vcpm", "1"), (T0 + 10 * S, "cpc", "5")))
    desk.give_all(render("x"), render("y", T0 + 10 * S))
    desk.give_all(*(event(name, T0 + 20 * S) for event in (view, click) for name in "xy"))
    assert spend(desk) == {("USD", 0): 1_000_000, ("USD", 10): 5 * NANO}


def test_a_late_comer_has_the_terms_of_its_own_time():
    desk = Desk(priced((0, "cpm", "1"), (T0 + 10 * S, "cpm", "3")))
    desk.give_all(render("x", T0 + 60 * S), render("y", T0 + 9 * S))
    assert spend(desk) == {("USD", 60): 3_000_000, ("USD", 0): 1_000_000}


def test_other_terms_from_now_on_change_nothing_that_is_remembered_also_after_a_restart():
    run = Run(Counting(RULES[0], priced((0, "vcpm", "1"))), {topic: [] for topic in TOPICS})
    run.logs["renders"] += [(0, render("x"), None)]
    run.logs["viewability"] += [(0, view("x"), None)]
    run.read("renders", 1)
    run.commit()
    later = Counting(RULES[0], priced((0, "vcpm", "1"), (T0 + 1, "vcpm", "9")))
    run.counting = later
    run.crash()
    run.read("viewability", 1)
    assert [one.cell.spend for one in run.state.cells()] == [1_000_000]


# --- what may be changed while it runs --------------------------------------------------------------------------------


def file(text: str) -> Campaigns:
    return parse_campaigns(text, "adserver")


BEFORE = file("[campaigns.c]\n[[campaigns.c.pricing]]\nfrom = 1970-01-01T00:00:10Z\nmodel = 'cpm'\nprice = 2")
PRICING = "[[campaigns.{}.pricing]]\nfrom = 1970-01-01T00:00:{}Z\nmodel = 'cpm'\nprice = {}\n"


@pytest.mark.parametrize(
    ("after", "rewritten"),
    [
        (PRICING.format("c", "10", "2"), []),
        (PRICING.format("c", "10", "2.0") + PRICING.format("c", "21", "5"), []),
        (PRICING.format("c", "10", "2") + PRICING.format("c", "20", "5"), ["c"]),
        (PRICING.format("c", "10", "2.1"), ["c"]),
        (PRICING.format("c", "11", "2"), ["c"]),
        ("", ["c"]),
        ("[campaigns.c]\ncurrency = 'EUR'\n" + PRICING.format("c", "10", "2"), ["c"]),
        ("[campaigns.c]\nbilling_source = 'dsp'\n" + PRICING.format("c", "10", "2"), ["c"]),
        ("[campaigns.c]\nfrequency_cap = {impressions = 1, period = '1h'}\n" + PRICING.format("c", "10", "2"), ["c"]),
        ("[campaigns.c]\nname = 'C'\nviewability_target = 0.5\n" + PRICING.format("c", "10", "2"), []),
        (PRICING.format("c", "10", "2") + PRICING.format("d", "21", "5"), []),
        (PRICING.format("c", "10", "2") + PRICING.format("d", "20", "5"), ["d"]),
        (PRICING.format("c", "10", "2") + "[campaigns.d]\nbilling_source = 'dsp'\n", ["d"]),
        (PRICING.format("d", "30", "5") + "[campaigns.c]\n" + PRICING.format("c", "10", "2"), []),
        ("[campaigns.d]\nbilling_source = 'd'\n" + PRICING.format("d", "30", "5") + PRICING.format("c", "10", "2"), []),
    ],
)  # fmt: skip
def test_at_20_s_only_what_begins_later_may_change(after, rewritten):
    assert BEFORE.rewritten_by(file(after), 20_000) == rewritten
    assert (BEFORE.digest(20_000) == file(after).digest(20_000)) == (rewritten == [])


def worker_on(journal: Journal, campaigns: Campaigns, accept: bool = False) -> Qualify:
    made = Qualify(RULES[0], "", 0, 1, journal, FLOW, campaigns, accept_settings=accept)
    made.take_over(0, 1)
    asyncio.run(made.claim(inputs()))
    return made


def counted_until_220_s() -> tuple[Journal, Counting]:
    counting = Counting(RULES[0], priced((0, "cpm", "2"), (400_000, "cpm", "3")))
    run = Run(counting, {"renders": [(0, render("x", 220_000), None)], "viewability": [], "clicks": []})
    run.read_all()
    run.commit()
    return Journal({journal_key(0, Position(0, seq)): record for seq, record in run.journal.items()}), counting


def test_a_worker_does_not_start_on_a_file_that_says_other_things_of_what_was_counted():
    journal, counting = counted_until_220_s()
    assert worker_on(journal, counting.partition().campaigns)
    ahead = Counting(RULES[0], priced((0, "cpm", "2"), (300_000, "cpc", "3"))).partition().campaigns
    assert worker_on(journal, ahead), "it begins later"
    behind = Counting(RULES[0], priced((0, "cpm", "2"), (220_000, "cpm", "3"))).partition().campaigns
    for other in (Campaigns(), behind):
        with pytest.raises(JournalError, match=r"partition 0 .*STREAMS_CAMPAIGNS.*--accept-settings"):
            worker_on(journal, other)
        assert worker_on(journal, other, accept=True)


def test_a_reload_takes_what_lies_ahead_for_owned_partitions_and_refuses_the_rest_whole():
    journal, counting = counted_until_220_s()
    worker = worker_on(journal, counting.partition().campaigns)
    ahead = Counting(RULES[0], priced((0, "cpm", "2"), (220_001, "cpm", "7"))).partition().campaigns
    behind = Counting(RULES[0], priced((0, "cpm", "2"), (220_000, "cpm", "7"))).partition().campaigns
    assert worker.change_campaigns(behind) == ["c"]
    assert worker.owned[0].state.campaigns is worker.campaigns is not behind
    assert worker.change_campaigns(ahead) == []
    assert worker.owned[0].state.campaigns is worker.campaigns is ahead
    worker.newest_elsewhere = lambda: 500_000
    assert worker.change_campaigns(counting.partition().campaigns) == ["c"], "another partition is further on"


# --- frequency cap ----------------------------------------------------------------------------------------------------


def over_cap(desk: Desk) -> int:
    return sum(cell["over_cap"] for cell in desk.cells().values())


def test_over_cap_impressions_count_and_are_counted_again_by_viewer_and_period():
    desk = Desk({"c": {"cap": (2, H)}}, refresh_interval_ms=0)
    start = T0 - T0 % H
    assert desk.give_all(*(render(f"v{n}", start + n, viewer_id="v") for n in range(5))) == ["counted"] * 5
    assert over_cap(desk) == 3
    desk.give_all(render("w", start + 6, viewer_id="w"), render("next", start + H, viewer_id="v"))
    assert over_cap(desk) == 3, "another viewer, another period"
    desk.give_all(*(render(f"o{n}", start + 7, viewer_id="v", source="dsp") for n in range(2)))
    assert over_cap(desk) == 3, "another source counts for itself"
    desk.give_all(*(render(f"a{n}", start + 8) for n in range(5)))
    assert over_cap(desk) == 3, "nobody knows who is anonymous"
    desk.give(render("late", start + 1, viewer_id="v"))
    assert over_cap(desk) == 4


def test_what_does_not_count_is_not_seen_by_the_cap():
    desk = Desk({"c": {"cap": (1, H)}})
    place = {"viewer_id": "v", "slot_id": "s"}
    desk.give_all(render("i", invalid="x", **place), render("x", **place), render("x", **place), render("y", **place))
    assert over_cap(desk) == 0


def test_the_cap_of_a_campaign_begins_with_its_first_terms():
    desk = Desk({"c": {"cap": (1, H), "pricing": [(T0 + 10 * S, "cpm", 1)]}}, refresh_interval_ms=0)
    desk.give_all(*(render(str(n), T0 + n * 4 * S, viewer_id="v") for n in range(5)))
    assert over_cap(desk) == 1


def test_counts_of_a_long_period_outlive_the_records_of_their_impressions_without_holding_them():
    rules = Counting(RULES[0], {"c": {"cap": (3, 24 * H)}})
    logs = {topic: [] for topic in TOPICS}
    start = T0 - T0 % (24 * H)
    for number in range(100):
        ts = start + number * 10 * S
        viewer = {"viewer_id": "v" if number in (0, 1, 50, 99) else f"w{number}"}
        logs["renders"].append((number, render(str(number), ts, **viewer), None))
        logs["viewability"].append((number, view("q", ts), None))
        logs["clicks"].append((number, click("q", ts), None))
    run = Run(rules, logs)
    for _ in range(100):
        for topic in TOPICS:
            run.read(topic, 1)
        run.commit()
        assert_same_state(run.state, folded(rules, run.journal))
    assert sum(cell["over_cap"] for cell in run.told.values()) == 1
    assert len(run.journal) < 40


def test_counts_are_forgotten_when_no_impression_of_their_period_can_come_any_more():
    caps = Caps()
    cap = parse_campaigns("[campaigns.c]\nfrequency_cap = {impressions = 1, period = '10s'}", "").by_id["c"].cap
    assert cap is not None
    caps.add(1, cap, 9_999)
    caps.add(1, cap, 10_000)
    caps.take(0)
    caps.forget(9_999)
    assert set(caps.counts) == {10_000, 20_000}
    caps.forget(10_000)
    assert set(caps.counts) == {20_000}
    assert caps.carry(0)
    caps.forget(20_000)
    assert not caps.counts
    assert not caps.carry(0)


# --- keyed by impression, and segments --------------------------------------------------------------------------------


def test_keyed_by_impression_refresh_and_cap_are_off_and_counted_as_unchecked():
    desk = Desk({"c": {"cap": (1, H)}}, key="impression")
    place = {"viewer_id": "v", "slot_id": "s"}
    assert desk.give_all(*(render(str(n), T0 + n, **place) for n in range(3))) == ["counted"] * 3
    assert desk.state.unchecked == 3
    assert over_cap(desk) == 0
    assert len(desk.state.anchors) == 0


def test_a_segment_has_the_figures_of_its_impressions_and_no_campaign_figure_changes():
    plain, cut = Desk(), Desk(segments=("device", "placement"))
    for desk in (plain, cut):
        desk.give_all(render("x", device="tv"), render("y", device="tv", placement="top"), render("z"))
        desk.give_all(view("x"), click("y"), view("z", kind="undetermined"))
    campaign = {place: cell for place, cell in cut.cells().items() if len(place) == 4}
    assert campaign == plain.cells()
    tv, unknown, top = (
        cut.cells()["c", "USD", "adserver", T0, *segment]
        for segment in (("device", "tv"), ("device", "unknown"), ("placement", "top"))
    )
    assert (tv["served"], tv["viewable"], tv["clicks"], tv["spend"]) == (2, 1, 1, 5_000_000)
    assert (unknown["served"], unknown["measurable"], unknown["revision"]) == (1, 0, 2)
    assert (top["served"], top["clicks"]) == (1, 1)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_file_says_all_that_can_be_agreed():
    campaigns = file(
        """
        [campaigns."shoes/1"]
        name = "Shoes"
        currency = "EUR"
        billing_source = "gam"
        frequency_cap = { impressions = 3, period = "1d" }
        viewability_target = 0.7

        [[campaigns."shoes/1".pricing]]
        from = 2026-10-01T00:00:00+02:00
        model = "flat"
        cost = 10000
        booked = 1000000

        [[campaigns."shoes/1".pricing]]
        model = "cpm"
        price = 0.00032199999999999997

        [campaigns.0]
        """
    )
    shoes = campaigns.by_id["shoes/1"]
    assert (shoes.name, shoes.currency, shoes.viewability_target) == ("Shoes", "EUR", 0.7)
    assert shoes.cap is not None
    assert (shoes.cap.impressions, shoes.cap.period_ms) == (3, 86_400_000)
    assert [(one.since_ms, one.model, one.nano) for one in shoes.terms] == [
        (0, "cpm", 322), (1_790_805_600_000, "flat", 10_000_000),
    ]  # fmt: skip
    assert campaigns.billing_source_of("shoes/1") == "gam"
    assert campaigns.billing_source_of("0") == campaigns.billing_source_of("unheard of") == "adserver"
    assert (campaigns.name_of("shoes/1"), campaigns.name_of("0"), campaigns.name_of("unheard of")) == ("Shoes", "", "")


ENTRY = "[[campaigns.c.pricing]]\n"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[campaigns.c\n", r"line 1, column 13"),
        ("[campaign.c]\n", r"^file: .*`campaign`"),
        ("campaigns = 1", r"^file.campaigns: Expected `object`"),
        ("[campaigns.c]\nnmae = 'x'", r"^campaigns.c: .*`nmae`"),
        ("[campaigns.c]\nname = 1", r"^campaigns.c.name: Expected `str`, got `int`"),
        ("[campaigns.c]\ncurrency = 'eur'", r"campaigns.c.currency: three capital"),
        ("[campaigns.c]\nviewability_target = 70", r"campaigns.c.viewability_target: a share"),
        ("[campaigns.c]\nviewability_target = nan", r"campaigns.c.viewability_target: a share"),
        ("[campaigns.c]\nfrequency_cap = {impressions = 0, period = '1h'}", r"campaigns.c.frequency_cap.impressions: "),
        ("[campaigns.c]\nfrequency_cap = {impressions = 1, period = '32d'}", r"c.frequency_cap.period: .*31d"),
        ("[campaigns.c]\nfrequency_cap = {impressions = 1, period = '0h'}", r"c.frequency_cap.period: .*31d"),
        (ENTRY + "model = 'cpx'\nprice = 1", r"campaigns.c.pricing\[0\].model: "),
        (ENTRY + "model = 'cpm'", r"campaigns.c.pricing\[0\]: model cpm needs price; wrong: price"),
        (ENTRY + "model = 'cpm'\nprice = 1\ncost = 2", r"model cpm needs price; wrong: cost"),
        (ENTRY + "model = 'flat'\ncost = 1", r"model flat needs cost and booked; wrong: booked"),
        (ENTRY + "model = 'flat'\ncost = 1\nbooked = 0", r"pricing\[0\].booked"),
        (ENTRY + "model = 'flat'\ncost = -1\nbooked = 1", r"pricing\[0\]: cost: not between"),
        (ENTRY + "model = 'flat'\ncost = 1e30\nbooked = 1", r"pricing\[0\]: cost: not between"),
        (ENTRY + "model = 'cpm'\nprice = -1", r"pricing\[0\]: price: not between"),
        (ENTRY + "model = 'cpm'\nprice = inf", r"pricing\[0\]: price: not a decimal number"),
        (ENTRY + "model = 'cpm'\nprice = true", r"campaigns.c.pricing\[0\].price: "),
        (ENTRY + "model = 'cpm'\nprice = '1\"'", r"pricing\[0\]: price: not a decimal number"),
        (ENTRY + "from = 2026-01-01T00:00:00\nmodel = 'cpm'\nprice = 1", r"pricing\[0\].from: a time with its zone"),
        (ENTRY + "from = 2026-01-01\nmodel = 'cpm'\nprice = 1", r"pricing\[0\].from"),
        ((ENTRY + "model = 'cpm'\nprice = 1\n") * 2, r"campaigns.c.pricing: two entries begin at the same time"),
    ],
)  # fmt: skip
def test_an_error_says_where_it_is(text, where):
    with pytest.raises(CampaignsError, match=where) as error:
        file(text)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_and_one_that_is_no_text_are_named(tmp_path):
    with pytest.raises(CampaignsError, match=r"absent.toml: cannot be read"):
        load_campaigns(tmp_path / "absent.toml", "adserver")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CampaignsError, match=r"binary.toml: cannot be read"):
        load_campaigns(tmp_path / "binary.toml", "adserver")


def test_logs_of_agreements_in_the_random_tests_say_something():
    """Whatever the properties are tried on has to reach every model, caps and segments."""
    seen: set[str] = set()
    for seed in range(40):
        logs = seeded_logs(seed, 60)
        counting = Counting(
            RULES[0],
            {
                "0": {"pricing": [(0, "vcpm", "4"), (120_000, "cpc", "0.25")]},
                "c": {"cap": (1, 60_000), "pricing": [(70_000, "flat", (10, 3))]},
            },
            ("country",),
        )
        run = Run(counting, logs)
        run.read_all()
        for one in run.state.cells():
            if one.series.dimension:
                seen.add(one.series.value)
            elif one.cell.spend and one.series.campaign_id == "0":
                seen.add("vcpm" if one.pane < 120_000 else "cpc")
            elif one.cell.over_cap:
                seen.add("over cap")
    assert seen == {"DE", "FR", "unknown", "vcpm", "cpc", "over cap"}
