"""Money is exact: integers of 10^-9, rounded once, half to even."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from streams.core.money import PriceError, decimal_text, impression_nano, is_currency, nano_of, surely_prices
from tests import oracle
from tests.test_properties import THOROUGH

UNITS = ("cpm", "impression", "micros_cpm", "micros_impression")
PRICES = st.one_of(
    st.floats(1e-29, 1_000_000).map(repr),
    st.decimals(0, 1_000_000, places=12).map(str),
    st.integers(0, 1_000_000).map(str),
    st.integers(0, 10**10).map(lambda half: f"{half}.5e-6"),
)


@pytest.mark.parametrize(
    ("price", "unit", "nano"),
    [
        ("2.5", "cpm", 2_500_000),
        ("2.50", "cpm", 2_500_000),
        ("0", "cpm", 0),
        ("-0", "cpm", 0),
        ("+1", "cpm", 1_000_000),
        (".5", "cpm", 500_000),
        ("1.", "cpm", 1_000_000),
        ("2.9e-05", "impression", 29_000),
        ("2.9e-05", "cpm", 29),
        ("0.00032199999999999997", "impression", 322_000),
        ("0.00032199999999999997", "cpm", 322),
        ("2500000", "micros_cpm", 2_500_000),
        ("1500", "micros_impression", 1_500_000),
        ("1000000", "cpm", 10**12),
        ("1000000", "impression", 10**15),
        ("1000000000000", "micros_cpm", 10**12),
        ("1e12", "micros_impression", 10**15),
        ("0.0000005", "cpm", 0),
        ("0.0000015", "cpm", 2),
        ("0.0000025", "cpm", 2),
        ("0.00000050000000000000000000000000000000000001", "cpm", 1),
        ("1e-30", "impression", 0),
    ],
)
def test_a_price_becomes_nano_units_of_one_impression(price, unit, nano):
    assert impression_nano(price.encode(), unit) == nano
    assert impression_nano(f'"{price}"'.encode(), unit) == nano


def is_price(text: bytes, unit: Any) -> bool:
    try:
        impression_nano(text, unit)
    except PriceError:
        return False
    return True


TEXTS = st.one_of(
    st.text('0123456789."nul-e+ ', max_size=12).map(str.encode),
    st.text("0123456789.\n", max_size=12).map(lambda text: f'"{text}"'.encode()),
    st.decimals(0, 10**7, places=3).map(str).map(str.encode),
    st.integers(0, 10**7).map(lambda number: f'"{number}"'.encode()),
)


@THOROUGH
@given(st.lists(TEXTS, max_size=4))
@example([b"1000001"])
@example([b'"1\n2"'])
def test_what_surely_is_a_price_is_one_in_any_unit(texts):
    if surely_prices(texts):
        assert all(is_price(text, unit) for text in texts for unit in UNITS)


def test_prices_that_look_like_most_are_known_at_a_glance_and_one_that_does_not_spoils_all():
    plain = [b"0", b"2.5", b'"2.5"', b"999999.123456789", b"null", b'"000100"']
    assert surely_prices(plain)
    assert surely_prices(map(Raw, plain))
    for other in (b"", b"1000000", b"-1", b"1e3", b'"2.5', b".5", b"1.", b"0.1234567890", b"true", b'"null"', b'" 1"'):
        assert not surely_prices([*plain, other]), other
        assert not surely_prices([other, *plain]), other


def test_null_is_no_price_and_0_is_one():
    assert impression_nano(b"null") is None
    assert impression_nano(b"0") == 0


@pytest.mark.parametrize(
    ("price", "unit"),
    [
        ("-1", "cpm"),
        ("-1e-30", "cpm"),
        ("1000000.0000000001", "cpm"),
        ("1000000000000.1", "micros_cpm"),
        ("1e31", "cpm"),
        ("1e-31", "cpm"),
        ("1e9999999999", "cpm"),
        ("NaN", "cpm"),
        ("nan", "cpm"),
        ("Infinity", "cpm"),
        ("1e", "cpm"),
        (".", "cpm"),
        ("", "cpm"),
        ("0x10", "cpm"),
        ("1_000", "cpm"),
        ("1,5", "cpm"),
        ("1 ", "cpm"),
        ("٣", "cpm"),
        ("9" * 401, "cpm"),
        ("0." + "0" * 400, "cpm"),
        ("0" * 400 + ".", "cpm"),
        ("1000000.000001", "cpm"),
        ("1000000.000000001", "impression"),
        ("1000000000001", "micros_cpm"),
        ("1000000000000.001", "micros_impression"),
    ],
)
def test_what_is_no_price_is_refused_in_words_that_do_not_repeat_it(price, unit):
    with pytest.raises(PriceError) as refused:
        impression_nano(f'"{price}"'.encode(), unit)
    assert len(price) < 3 or price not in str(refused.value)


@THOROUGH
@given(PRICES, st.sampled_from(UNITS))
@example("0.0000005", "cpm")
@example("0.00032199999999999997", "impression")
def test_the_cost_of_an_impression_is_the_exact_fraction_rounded_once(price, unit):
    within = Fraction(price) / (1_000_000 if unit.startswith("micros") else 1) <= 1_000_000
    if within:
        assert impression_nano(price.encode(), unit) == oracle.cost_nano({"price": price, "price_unit": unit})
    else:
        with pytest.raises(PriceError):
            impression_nano(price.encode(), unit)


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (-1, "-0.000000001"),
        (2_500_000, "0.0025"),
        (10**9, "1"),
        (10 * 10**9, "10"),
        (29_520 * 10**9, "29520"),
        (2**63, "9223372036.854775808"),
    ],
)
def test_nano_units_are_written_as_plain_decimal_text(nano, text):
    assert decimal_text(nano) == text


@THOROUGH
@given(st.integers(-(10**20), 10**20))
def test_nano_units_survive_being_text(nano):
    assert nano_of(decimal_text(nano)) == nano


@pytest.mark.parametrize("text", ["USD", "EUR", "XXX"])
def test_three_capital_letters_are_a_currency(text):
    assert is_currency(text)


@pytest.mark.parametrize("text", ["", "usd", "US", "USDX", "US1", "ÄÖÜ", "USD\n", " US"])
def test_anything_else_is_none(text):
    assert not is_currency(text)
