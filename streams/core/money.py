"""Money: integers of 10^-9 of one currency, parsed from decimal text.

Law: the cost of an event is exact and is rounded once, half to even, to a nano-unit; then there are only integer sums.
"""

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Final

from streams.core.events import PriceUnit

NANO: Final = 1_000_000_000
MAX_PRICE: Final = Decimal(1_000_000)
"""Largest price, in currency units as the price unit counts them (a CPM of a million, an impression of a million)."""
MAX_EXPONENT: Final = 30

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?")
_MAX_TEXT = 400
_LONGEST_EXPONENT = 9
"""Characters; a longer one is not even turned into a number."""
_CONTEXT = Context(prec=_MAX_TEXT + 2 * MAX_EXPONENT)
_CURRENCY = re.compile(r"[A-Z]{3}")

# Unit -> (decimal places that one nano-unit of an impression has in it, decimal places from it to currency units)
_UNITS: Final[dict[PriceUnit, tuple[int, int]]] = {
    "cpm": (6, 0),
    "impression": (9, 0),
    "micros_cpm": (0, 6),
    "micros_impression": (3, 6),
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
    price = parse_decimal(text)
    nano_places, unit_places = _UNITS[unit or "cpm"]
    if not 0 <= price.scaleb(-unit_places, _CONTEXT) <= MAX_PRICE:
        raise PriceError("not between 0 and 1,000,000")
    return _rounded(price, nano_places)


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
