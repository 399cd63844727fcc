"""`streams schema`: what the events are, for other programs."""

from enum import StrEnum
from importlib.metadata import version
from typing import Annotated, Final

import typer

from streams.cli.shared import BrokerOption, PrefixOption, fail, settings_from, write_json
from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.wire.schema import asyncapi, event_schemas

EPILOG: Final = "Examples: [bold]streams schema renders[/bold] | [bold]streams schema --asyncapi > asyncapi.json[/bold]"


class Input(StrEnum):
    """The topics that events come from."""

    RENDERS = RENDERS
    VIEWABILITY = VIEWABILITY
    CLICKS = CLICKS


def command(
    topic: Annotated[Input | None, typer.Argument(help="Whose events; without it all three, by topic.")] = None,
    as_asyncapi: Annotated[bool, typer.Option("--asyncapi", help="An AsyncAPI 3.1 document instead.")] = False,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Print the JSON Schema (2020-12) of events, or with --asyncapi a document of all topics that others may use.

    The schemas come from the types that decode events. What JSON Schema cannot say of them is in the description of
    the document. The broker and the prefix of topics stand in the document only.
    """
    if as_asyncapi:
        if topic is not None:
            fail("--asyncapi is a document of all topics: leave TOPIC out", 2)
        settings = settings_from(broker=broker, topic_prefix=topic_prefix)
        write_json(asyncapi(settings.broker, settings.topic_prefix, version("impression-streams")))
    else:
        schemas = event_schemas()
        write_json(schemas if topic is None else schemas[topic])
