"""Events on the wire: JSON objects, one a record, decoded and validated in full.

A record that is no event becomes a `Malformed` with a reason from `REASONS`; it never disturbs its neighbours.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from streams.core.events import CLICKS, RENDERS, VIEWABILITY, Click, Event, Malformed, Render, Viewability
from streams.core.money import PriceError, impression_nano, is_currency

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


def decoder(topic: str) -> Callable[[Iterable[bytes | None]], list[Event | Malformed]]:
    """Return the function that decodes a batch of record values of an input topic, in order."""
    decode = _DECODERS[topic]

    def decode_batch(values: Iterable[bytes | None]) -> list[Event | Malformed]:
        events: list[Event | Malformed] = []
        for value in values:
            if value is None:
                events.append(Malformed("null_value", "the record has no value"))
                continue
            try:
                if not value.isascii():
                    value.decode()  # the decoder below would let bad UTF-8 pass in a field that it skips
                events.append(decode(value))
            except (PriceError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                events.append(_malformed(error))
        return events

    return decode_batch


def _malformed(error: Exception) -> Malformed:
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


_render = msgspec.json.Decoder(Render).decode


def _decode_render(value: bytes) -> Render:
    render = _render(value)
    impression_nano(bytes(render.price), render.price_unit or "cpm")
    if render.currency is not None and not is_currency(render.currency):
        raise msgspec.ValidationError("Expected three capital letters - at `$.currency`")
    return render


_DECODERS: Final[Mapping[str, Decode]] = {
    RENDERS: _decode_render,
    VIEWABILITY: msgspec.json.Decoder(Viewability).decode,
    CLICKS: msgspec.json.Decoder(Click).decode,
}
