"""What the program reads and writes, for other programs: JSON Schema of the events, and an AsyncAPI document.

Law: all of it comes from the types that decode and encode; nothing is described twice. Where JSON Schema cannot say
what the decoder asks, `DIFFERENCES` names it.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from streams.core.events import CLICKS, RENDERS, VIEWABILITY, Click, Render, Viewability
from streams.core.money import MAX_EXPONENT, MAX_PRICE
from streams.core.rollup import Farewell, Window
from streams.wire.events import REASONS

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

DIFFERENCES: Final = (
    "Of a price that is a text a schema can say the form only, not that it is at most 1,000,000 currency units; and of "
    f"any price not that an exponent lies within +-{MAX_EXPONENT}.",
    "To JSON Schema 2.0 is an integer; the decoder wants integers written as such.",
    "What is no JSON is no business of a schema: bad UTF-8, NaN, halves of surrogates, nesting too deep, numbers that "
    "no double holds. Of a field that is said twice the last one holds.",
)
"""Where the decoder refuses what its schema accepts. It accepts nothing that its schema refuses."""

_MICROS: Final = 1_000_000
_DIGITS: Final = r"([0-9]+\.?[0-9]*|\.[0-9]+)"
_ZERO: Final = r"(0+\.?0*|\.0+)"
_POWER: Final = r"([eE][+-]?[0-9]+)?"
_PRICE: Final[dict[str, Any]] = {
    "description": "Decimal currency units, as text or as a number; null is no price",
    "anyOf": [
        {"type": "null"},
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": rf"^([+]?{_DIGITS}|-{_ZERO}){_POWER}$", "maxLength": 400},
    ],
}
_IN_MICROS: Final = {
    "if": {"properties": {"price_unit": {"enum": ["micros_cpm", "micros_impression"]}}, "required": ["price_unit"]},
    "then": {"properties": {"price": {"maximum": int(MAX_PRICE) * _MICROS}}},
    "else": {"properties": {"price": {"maximum": int(MAX_PRICE)}}},
}
"""The largest price depends on its unit. A maximum says nothing of texts."""

_WRITTEN: Final = {
    "price": Annotated[Any, Meta(extra_json_schema=_PRICE)],
    "currency": Annotated[str, Meta(min_length=3, max_length=3, pattern="^[A-Z]{3}$")] | None,
}
"""Fields whose values the decoder looks at beyond their types."""

_TYPES: Final = {RENDERS: Render, VIEWABILITY: Viewability, CLICKS: Click}


def _described(event: Any) -> Any:
    """Return a type like that of an event, with all that the decoder asks in the types of its fields."""
    fields = [
        (field.name, _WRITTEN.get(field.name, field.type), *(() if field.required else (None,)))
        for field in msgspec.structs.fields(event)
    ]
    described = msgspec.defstruct(event.__name__, fields, kw_only=True)
    described.__doc__ = event.__doc__
    return described


def event_schemas() -> dict[str, dict[str, Any]]:
    """Return a JSON Schema (2020-12), whole in itself, of the events of each input topic."""
    return {topic: {"$schema": DIALECT, **_inlined(event)} for topic, event in _TYPES.items()}


def _inlined(event: Any) -> dict[str, Any]:
    schema = _schemas([_described(event)], "#/$defs/{name}")
    own: dict[str, Any] = schema.pop(event.__name__)
    return own | ({"$defs": schema} if schema else {})


def _schemas(types: list[Any], references: str) -> dict[str, Any]:
    """Return the schema of each type and of those in it, by name."""
    _, schemas = msgspec.json.schema_components(types, ref_template=references)
    for name, schema in schemas.items():
        if "price" in schema["properties"]:
            schemas[name] = schema | _IN_MICROS
    return dict(schemas)


# --- AsyncAPI ---------------------------------------------------------------------------------------------------------

_SAYS: Final = {
    RENDERS: "What was rendered",
    VIEWABILITY: "What was measured",
    CLICKS: "What was clicked",
}
_APPENDED: Final = {
    "type": "object",
    "properties": {
        "appended": {"type": "string", "pattern": "^[0-9]{1,13}$", "description": "When it was first appended, in ms"}
    },
}
_LETTER_HEADERS: Final = {
    "type": "object",
    "required": ["reason", "detail", "topic", "partition", "offset", "timestamp"],
    "properties": {
        "reason": {"type": "string", "enum": list(REASONS)},
        "detail": {"type": "string"},
        "topic": {"type": "string", "enum": list(_TYPES), "description": "Where it lay, without prefix"},
        "partition": {"type": "string", "pattern": "^[0-9]+$"},
        "offset": {"type": "string", "pattern": "^[0-9]+$"},
        "timestamp": {"type": "string", "pattern": "^[0-9]+$", "description": "Its own time, ms since the epoch"},
        "key": {"type": "string", "description": "Its own key, if it had one"},
    },
}


def asyncapi(broker: str, prefix: str, version: str) -> dict[str, Any]:
    """Return an AsyncAPI 3.1 document: the topics with this prefix, what lies on them, and what the program does."""
    events = [_described(event) for event in _TYPES.values()]
    schemas = _schemas([*events, Window, Farewell], "#/components/schemas/{name}")
    messages = {topic: _event_message(topic, event.__name__) for topic, event in _TYPES.items()}
    messages |= {"campaign-windows": _window_message("Window"), "lifetimes": _window_message("Farewell")}
    messages["dead-letters"] = {
        "title": "A record that was refused, its own bytes",
        "contentType": "application/octet-stream",
        "headers": _LETTER_HEADERS,
        "bindings": {"kafka": {"key": {"type": "string", "description": "topic|partition|offset"}}},
    }
    written = {"campaign-windows": ["campaign-windows", "lifetimes"], "dead-letters": ["dead-letters"]}
    return {
        "asyncapi": "3.1.0",
        "info": {"title": "impression-streams", "version": version, "description": " ".join(DIFFERENCES)},
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": broker.partition(",")[0], "protocol": "kafka"}},
        "channels": {
            name: _channel(prefix + name, of_it)
            for name, of_it in ({topic: [topic] for topic in _TYPES} | written).items()
        },
        "operations": {
            name: {"action": "receive" if name in _TYPES else "send", "channel": {"$ref": f"#/channels/{name}"}}
            for name in (*_TYPES, *written)
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def _channel(address: str, messages: list[str]) -> dict[str, Any]:
    return {"address": address, "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages}}


def _event_message(topic: str, schema: str) -> dict[str, Any]:
    key = {"type": "string", "description": "viewer_id, or impression_id where there is no viewer"}
    return {
        "title": _SAYS[topic],
        "payload": {"$ref": f"#/components/schemas/{schema}"},
        "headers": _APPENDED,
        "bindings": {"kafka": {"key": key}},
    }


def _window_message(schema: str) -> dict[str, Any]:
    last = "lifetime" if schema == "Farewell" else "start_ms"
    return {
        "title": "The last word on a campaign" if schema == "Farewell" else "A minute of a campaign",
        "payload": {"$ref": f"#/components/schemas/{schema}"},
        "bindings": {"kafka": {"key": {"type": "string", "description": f"campaign|currency|{last}"}}},
    }
