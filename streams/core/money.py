"""Money: integers of 10^-9 of one currency, parsed from decimal text.

Law: the cost of an event is exact and is rounded once, half to even, to a nano-unit; then there are only integer sums.
"""

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import Raw

from streams.core.events import PriceUnit

NANO: Final = 1_000_000_000
MAX_PRICE: Final = Decimal(1_000_000)
"""Largest price, in currency units as the price unit counts them (a CPM of a million, an impression of a million)."""
MAX_EXPONENT: Final = 30

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?")
_PLAIN = rb"[0-9]{1,6}(?:\.[0-9]{1,9})?"
_PLAIN_PRICE = b"(?:" + _PLAIN + b'|"' + _PLAIN + b'"|null)'
_PLAIN_PRICES = re.compile(_PLAIN_PRICE + rb"(?:\n" + _PLAIN_PRICE + b")*+")
_MAX_TEXT = 400
_LONGEST_EXPONENT = 9
"""Characters; a longer one is not even turned into a number."""
_CONTEXT = Context(prec=_MAX_TEXT + 2 * MAX_EXPONENT)
_CURRENCY = re.compile(r"[A-Z]{3}")


class _Unit(NamedTuple):
    nano_places: int
    """Decimal places that one nano-unit of an impression has in it."""
    unit_places: int
    """Decimal places from it to currency units."""
    most: int
    """What the largest price costs, in nano-units."""


_UNITS: Final[dict[PriceUnit, _Unit]] = {
    "cpm": _Unit(6, 0, 10**12),
    "impression": _Unit(9, 0, 10**15),
    "micros_cpm": _Unit(0, 6, 10**12),
    "micros_impression": _Unit(3, 6, 10**15),
}


class PriceError(ValueError):
    """A price that no impression can have; the message says why and never repeats the price."""


def parse_decimal(text: str) -> Decimal:
    """Return the exact value of a decimal text such as "2.5" or "2.9e-05".

    Raises PriceError if it is no plain decimal number, is longer than 400 characters, or has an exponent beyond +-30.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if match is None:
        raise PriceError("not a decimal number")
    if match[1] is not None and (len(match[1]) > _LONGEST_EXPONENT or abs(int(match[1])) > MAX_EXPONENT):
        raise PriceError(f"exponent beyond +-{MAX_EXPONENT}")
    return Decimal(text)


@lru_cache(maxsize=65_536)
def impression_nano(json_text: bytes, unit: PriceUnit | None = None) -> int | None:
    """Return what one impression costs in nano-units, given the price as JSON text; None for `null`. No unit is "cpm".

    A price is a JSON string or number (README, events). Raises PriceError for anything else, and out of 0 to 1,000,000.
    """
    if json_text == b"null":
        return None
    quoted = json_text[:1] == b'"'
    text = json_text[1:-1].decode() if quoted else json_text.decode()
    nano_places, unit_places, most = _UNITS[unit or "cpm"]
    nano = _plain(text, nano_places)
    if nano is not None and nano <= most:
        return nano
    price = parse_decimal(text)
    if not 0 <= price.scaleb(-unit_places, _CONTEXT) <= MAX_PRICE:
        raise PriceError("not between 0 and 1,000,000")
    return _rounded(price, nano_places)


def surely_prices(json_texts: Iterable[bytes | Raw]) -> bool:
    """Say, at a glance at all of them, whether JSON texts surely are prices, in whatever unit: most are few digits.

    To ask `impression_nano` of each, as is done where this says no, takes ten times as long if it does not know them.
    """
    return _PLAIN_PRICES.fullmatch(b"\n".join(json_texts)) is not None


def _plain(text: str, places: int) -> int | None:
    """Return a number of digits, and perhaps a point with no more than so many of them behind it, times 10^places.

    None for any other: Decimal reads them all, and takes twice as long for the nine in ten that look like this.
    """
    whole, _, part = text.partition(".")
    digits, spare = whole + part, places - len(part)
    if spare < 0 or len(text) > _MAX_TEXT or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits + "0" * spare)


def nano_of(text: str) -> int:
    """Return a decimal text of currency units as nano-units, rounded half to even."""
    return _rounded(parse_decimal(text), 9)


def _rounded(value: Decimal, places: int) -> int:
    quantum = Decimal(1).scaleb(-places)
    return int(value.quantize(quantum, ROUND_HALF_EVEN, _CONTEXT).scaleb(places, _CONTEXT))


def decimal_text(nano: int) -> str:
    """Return nano-units as decimal text of currency units, without trailing zeros: 2500000 -> "0.0025"."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")


@lru_cache(maxsize=4_096)
def is_currency(text: str) -> bool:
    """Say whether a text has the form of an ISO 4217 code: three capital letters."""
    return _CURRENCY.fullmatch(text) is not None
