"""The ratios of the field against worked numbers, and none of them by another's name."""

import json
from fractions import Fraction
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core import rates
from streams.core.money import decimal_text, impression_nano, nano_of
from streams.core.panes import Cell
from streams.core.rates import Columns
from tests.test_properties import THOROUGH

case: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "acceptance_cases.json").read_text())


def cell(spend: str = "0", **counts: int) -> Cell:
    return Cell(spend=nano_of(spend), **counts)


def places(value: float | None, text: str) -> str:
    """A value rounded to as many places as a worked number has."""
    assert value is not None
    return f"{value:.{len(text.partition('.')[2])}f}"


def test_cost_over_impressions_is_the_price_of_one_and_a_thousand_times_that_the_cpm():
    worked = case["A1"]
    served = cell(worked["cost"], served=worked["impressions"])
    assert rates.cpm(served) == float(worked["cpm"])
    assert Fraction(served.spend, served.served * 10**9) == Fraction(worked["cpi"])
    assert impression_nano(worked["cpi"].encode(), "impression") == impression_nano(worked["cpm"].encode(), "cpm")


def test_a_cpm_is_the_same_in_any_currency():
    worked = case["A2"]
    assert rates.cpm(cell(worked["cost"], served=worked["impressions"])) == float(worked["cpm"])


def test_impressions_at_a_cpm_cost_what_they_cost_and_vcpm_is_all_spend_over_what_was_seen():
    worked = case["A3"]
    nano = impression_nano(worked["cpm"].encode(), "cpm")
    assert nano is not None
    assert decimal_text(nano * worked["impressions"]) == worked["cost"]
    seen = cell(worked["cost"], served=worked["impressions"], viewable=worked["viewable"])
    assert places(rates.vcpm(seen), worked["vcpm"]) == worked["vcpm"]


def test_three_rates_have_three_values_and_vcpm_is_not_cpm_over_the_viewable_rate():
    worked = case["A4"]
    nano = impression_nano(worked["cpm"].encode(), "cpm")
    assert nano is not None
    assert decimal_text(nano * worked["served"]) == worked["cost"]
    counts = {name: worked[name] for name in ("served", "measurable", "viewable")}
    whole = cell(worked["cost"], **counts)
    assert rates.cpm(whole) == float(worked["cpm"])
    assert places(rates.vcpm(whole), worked["vcpm"]) == worked["vcpm"]
    assert places(rates.viewable_rate(whole), worked["viewable_rate_mrc"]) == worked["viewable_rate_mrc"]
    assert places(rates.viewable_of_served(whole), worked["viewable_of_served"]) == worked["viewable_of_served"]
    assert places(rates.measured_rate(whole), worked["measured_rate"]) == worked["measured_rate"]
    wrong = rates.cpm(whole) / rates.viewable_rate(whole)  # type: ignore[operator]
    assert places(wrong, worked["wrong_vcpm_cpm_over_mrc_rate"]) == worked["wrong_vcpm_cpm_over_mrc_rate"]
    assert places(rates.vcpm(whole), worked["vcpm"]) != worked["wrong_vcpm_cpm_over_mrc_rate"]


def test_spend_over_measurable_and_the_discrepancies_come_out_of_the_same_ratio():
    worked = case["A4"]
    per_measurable = rates.ratio(nano_of(worked["cost"]) * 1000, worked["measurable"] * 10**9)
    assert places(per_measurable, worked["cpm_measurable"]) == worked["cpm_measurable"]
    lost = worked["dsp"] - worked["served"]
    of_dsp, of_adserver = worked["discrepancy_dsp_adserver_of_dsp"], worked["of_adserver"]
    assert places(rates.ratio(lost, worked["dsp"]), of_dsp) == of_dsp
    assert places(rates.ratio(lost, worked["served"]), of_adserver) == of_adserver


def test_the_measured_rate_is_of_served_and_not_of_eligible():
    worked = case["B"]
    whole = cell(**{name: worked[name] for name in ("served", "measurable", "viewable")})
    assert rates.measured_rate(whole) == float(worked["measurable_of_served"])
    assert rates.viewable_rate(whole) == float(worked["viewable_rate_mrc"])
    assert rates.viewable_of_served(whole) == float(worked["viewable_of_served"])
    of_eligible = worked["measurable_of_eligible"]
    assert places(rates.ratio(worked["measurable"], worked["eligible"]), of_eligible) == of_eligible


@pytest.mark.parametrize("worked", case.get("C", []), ids=lambda worked: worked["revenue"])
def test_vcpm_of_published_revenues(worked):
    vcpm = rates.vcpm(cell(worked["revenue"], viewable=worked["viewable"]))
    assert places(vcpm, worked["vcpm_2dp"]) == worked["vcpm_2dp"]


def test_an_openrtb_price_is_a_cpm_and_its_thousandth_the_price_of_one_impression():
    worked = case["E"]
    one = impression_nano(worked["openrtb_cpm"].encode(), "cpm")
    assert one is not None
    assert decimal_text(one) == worked["unit"]
    assert Fraction(worked["unit"]) * Fraction(worked["multiplier"]) == Fraction(worked["multiplied"])
    assert impression_nano(worked["multiplied"].encode(), "impression") == nano_of(worked["multiplied"])


RATES = [
    (rates.cpm, "served"),
    (rates.vcpm, "viewable"),
    (rates.cpc, "clicks"),
    (rates.viewable_rate, "measurable"),
    (rates.viewable_of_served, "served"),
    (rates.measured_rate, "served"),
    (rates.ctr, "served"),
]
FULL = {"served": 10, "measurable": 8, "viewable": 4, "clicks": 2}


@pytest.mark.parametrize(("rate", "denominator"), RATES)
def test_a_ratio_is_absent_exactly_while_its_own_denominator_is_0(rate, denominator):
    assert rate(cell("1", **FULL)) is not None
    assert rate(cell("1", **FULL | {denominator: 0})) is None
    assert rate(cell("1", **{name: 0 for name in FULL} | {denominator: 1})) is not None


@pytest.mark.parametrize(("rate", "denominator"), RATES)
def test_a_ratio_is_absent_below_the_smallest_sample_and_not_at_it(rate, denominator):
    assert rate(cell("1", **FULL), FULL[denominator]) is not None
    assert rate(cell("1", **FULL), FULL[denominator] + 1) is None
    assert rate(cell("1", **FULL | {denominator: 0}), 0) is None


def test_a_numerator_of_0_is_a_ratio_of_0():
    none_seen = cell("1", served=3, measurable=2)
    assert (rates.viewable_rate(none_seen), rates.viewable_of_served(none_seen), rates.ctr(none_seen)) == (0, 0, 0)
    assert rates.cpm(cell("0", served=3)) == 0


def test_clicks_have_a_price_and_a_rate():
    clicked = cell("5", served=1000, clicks=4)
    assert (rates.cpc(clicked), rates.ctr(clicked)) == (1.25, 0.004)


def test_a_ratio_of_sums_beyond_2_to_the_53_is_still_correctly_rounded():
    spend, served = 3 * 10**21 + 1, 10**12 + 7
    assert rates.cpm(Cell(spend=spend, served=served)) == float(Fraction(spend * 1000, served * 10**9))


EXACT = [
    (rates.cpm, lambda one: (one.spend * 1000, one.served * 10**9)),
    (rates.vcpm, lambda one: (one.spend * 1000, one.viewable * 10**9)),
    (rates.cpc, lambda one: (one.spend, one.clicks * 10**9)),
    (rates.viewable_rate, lambda one: (one.viewable, one.measurable)),
    (rates.viewable_of_served, lambda one: (one.viewable, one.served)),
    (rates.measured_rate, lambda one: (one.measurable, one.served)),
    (rates.ctr, lambda one: (one.clicks, one.served)),
]
figures = st.integers(0, 2**4) | st.integers(0, 2**56) | st.sampled_from([2**53, 2**53 + 1])
nanos = st.integers(0, 2**4) | st.integers(0, 2**90) | st.sampled_from([2**53 // 1000, 2**53, 2**53 + 1, 2**63])
cells = st.builds(Cell, served=figures, measurable=figures, viewable=figures, clicks=figures, spend=nanos)


@THOROUGH
@pytest.mark.parametrize(("rate", "parts"), EXACT)
@given(st.lists(cells, max_size=4), st.integers(0, 5))
def test_ratios_of_many_cells_are_those_of_each_correctly_rounded_whatever_the_others_are(
    rate, parts, many, min_sample
):
    ratios = rate.of_all(Columns(many), min_sample)
    for one, value in zip(many, ratios.tolist(), strict=True):
        if (alone := rate(one, min_sample)) is None:
            assert isnan(value)
        else:
            assert value == alone == float(Fraction(*parts(one)))


@THOROUGH
@given(st.lists(cells, max_size=4))
def test_spend_in_currency_units_is_correctly_rounded(many):
    units = rates.spend(Columns(many)).tolist()
    assert units == [float(Fraction(one.spend, 10**9)) for one in many]
