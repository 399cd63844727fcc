"""`streams topics`: create and check the topics."""

from typing import Annotated

import typer

from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    connection_from,
    finish,
    settings_from,
    write_json,
)
from streams.kafka.topics import Topic, TopicAdmin, all_topics
from streams.settings import Settings

app = typer.Typer(help="Create and check the Kafka topics.", no_args_is_help=True)


@app.command(
    epilog="Example: streams topics create --partitions 8 --replication 3",
)
def create(
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of every topic; cannot be changed later.")] = 4,
    replication: Annotated[int, typer.Option(min=1, help="Replicas of each partition.")] = 1,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create the topics that are missing. Running it again changes nothing."""
    settings = settings_from(broker=broker, topic_prefix=topic_prefix)

    async def run() -> list[str]:
        async with TopicAdmin(connection_from(settings)) as admin:
            return await admin.create(_topics(settings), partitions, replication)

    created = finish(run())
    if as_json:
        write_json({"created": created})
    else:
        typer.echo("\n".join(f"created {name}" for name in created) or "all topics exist")


@app.command(epilog="Example: streams topics check --broker kafka:9092")
def check(broker: BrokerOption = None, topic_prefix: PrefixOption = None, as_json: JsonOption = False) -> None:
    """Say what about the topics is not as it should be. Exit code 3 if there is anything."""
    settings = settings_from(broker=broker, topic_prefix=topic_prefix)

    async def run() -> list[str]:
        async with TopicAdmin(connection_from(settings)) as admin:
            return await admin.check(_topics(settings))

    findings = finish(run())
    if as_json:
        write_json({"findings": findings})
    else:
        typer.echo("\n".join(findings) or "all topics are as they should be")
    raise typer.Exit(3 if findings else 0)


def _topics(settings: Settings) -> list[Topic]:
    return all_topics(settings.topic_prefix, settings.topic(settings.group))
