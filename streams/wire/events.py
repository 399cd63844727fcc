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
        return [_event_or_malformed(decode, value) for value in values]

    return decode_batch


def _event_or_malformed(decode: Decode, value: bytes | None) -> Event | Malformed:
    try:
        if value is None:
            return Malformed("null_value", "the record has no value")
        if not value.isascii():
            value.decode()  # the decoder below would let bad UTF-8 pass in a field that it skips
        return decode(value)
    except PriceError as error:
        return Malformed("bad_price", f"price: {error}")
    except msgspec.ValidationError as error:
        return _invalid(str(error))
    except UnicodeDecodeError as error:
        return Malformed("not_utf8", f"byte {error.start} is not UTF-8")
    except msgspec.DecodeError as error:
        return Malformed("not_json", str(error))
    except RecursionError:
        return Malformed("not_json", "nested too deeply")


def _invalid(message: str) -> Malformed:
    """Name what is wrong with an object: the decoder's message without any value that it quotes."""
    problem, _, path = message.partition(" - at `$.")
    field = path.rstrip("`")
    if problem.startswith("Object missing required field"):
        return Malformed("missing_field", problem.removeprefix("Object ") + (f" in {field}" if field else ""))
    if ", got `" in problem:
        return Malformed("wrong_type", f"{field}: {problem}") if field else Malformed("not_an_object", problem)
    return Malformed("out_of_range", f"{field}: {problem.partition(' value ')[0]}")


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
