"""Events on the wire: JSON objects, one a record, decoded and validated in full.

A record that is no event becomes a `Malformed` with a reason from `REASONS`; it never disturbs its neighbours.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from streams.core.events import CLICKS, RENDERS, VIEWABILITY, Click, Event, Malformed, Render, Viewability
from streams.core.money import PriceError, impression_nano, is_currency, surely_prices

REASONS: Final = (
    "null_value",
    "not_utf8",
    "not_json",
    "not_an_object",
    "missing_field",
    "wrong_type",
    "out_of_range",
    "bad_price",
    "future",
)

Decode = Callable[[bytes], Event]

_price_of, _unit_of, _currency_of = map(attrgetter, ("price", "price_unit", "currency"))

_ERRORS: Final = (PriceError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decoder(topic: str) -> Callable[[Sequence[bytes | None]], list[Event | Malformed]]:
    """Return the function that decodes a batch of record values of an input topic, in order."""
    decode, check = _DECODERS[topic]

    def decode_batch(values: Sequence[bytes | None]) -> list[Event | Malformed]:
        try:
            if b"".join(values).isascii():  # type: ignore[arg-type]  # a value that is None raises
                events: list[Event | Malformed] = [*map(decode, values)]  # type: ignore[arg-type]  # there is none here
                check(events)
                return events
        except (TypeError, *_ERRORS):
            pass  # at least one is no event: which, and why, is asked of each
        return [decode_one(value) for value in values]

    def decode_one(value: bytes | None) -> Event | Malformed:
        if value is None:
            return Malformed("null_value", "the record has no value")
        try:
            if not value.isascii():
                value.decode()  # the decoder below would let bad UTF-8 pass in a field that it skips
            event = decode(value)
            check([event])
        except _ERRORS as error:
            return malformed(error)
        return event

    return decode_batch


def malformed(error: Exception) -> Malformed:
    """Say why a record is no event, in words that repeat nothing of it."""
    match error:
        case PriceError():
            return Malformed("bad_price", f"price: {error}")
        case UnicodeDecodeError():
            return Malformed("not_utf8", f"byte {error.start} is not UTF-8")
        case RecursionError():
            return Malformed("not_json", "nested too deeply")
        case msgspec.ValidationError():
            return _invalid(str(error))
    return Malformed("not_json", str(error))


def _invalid(message: str) -> Malformed:
    """Name what is wrong with an object. The decoder's message quotes a value only where a choice is wrong."""
    problem, _, path = message.rpartition(" - at `$.") if " - at `$." in message else (message, "", "")
    field = path.rstrip("`")
    if problem.startswith("Invalid enum value"):
        return Malformed("out_of_range", f"{field}: not one of the names that it can have")
    if problem.startswith("Object missing required field"):
        return Malformed("missing_field", problem.removeprefix("Object ") + (f" in {field}" if field else ""))
    if not field:
        return Malformed("not_an_object", problem)
    if problem.endswith("got `null`"):
        return Malformed("missing_field", f"{field}: null is absent, and it is required")
    return Malformed("wrong_type" if ", got `" in problem else "out_of_range", f"{field}: {problem}")


def _check_renders(renders: Sequence[Render]) -> None:
    """Refuse what types cannot say. Raises PriceError or ValidationError if any of them is no render."""
    if not surely_prices(map(_price_of, renders)):
        for price, unit in {*zip(map(bytes, map(_price_of, renders)), map(_unit_of, renders), strict=True)}:
            impression_nano(price, unit)
    for currency in {*map(_currency_of, renders)}:
        if currency is not None and not is_currency(currency):
            raise msgspec.ValidationError("Expected three capital letters - at `$.currency`")


def _check_nothing(_: Sequence[Any]) -> None:
    """Types say all."""


_DECODERS: Final[Mapping[str, tuple[Decode, Callable[[Sequence[Any]], None]]]] = {
    RENDERS: (msgspec.json.Decoder(Render).decode, _check_renders),
    VIEWABILITY: (msgspec.json.Decoder(Viewability).decode, _check_nothing),
    CLICKS: (msgspec.json.Decoder(Click).decode, _check_nothing),
}
