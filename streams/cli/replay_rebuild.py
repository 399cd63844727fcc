"""`streams replay rebuild`: events into new topics, with other keys or in another number of partitions."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from enum import StrEnum
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console

from streams.cli.replay_count import Job, Plan, plan_of, progress, refuse_deleted
from streams.cli.replay_options import FromOption, ToOption, file_of, one_line_errors, run_name
from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    campaigns_from,
    connection_from,
    fail,
    finish,
    settings_from,
    write_json,
)
from streams.core.events import TOPICS
from streams.kafka.produce import PacedProducer
from streams.kafka.reader import Reader
from streams.kafka.rebuild import Copy, Source, Target, partition_for
from streams.replay.scope import Scope, reach_ms
from streams.replay.store import Store

EPILOG: Final = (
    "Examples: [bold]streams replay rebuild --run wider --into wide- --partitions 16[/bold] | "
    "[bold]streams replay rebuild --run rekeyed --into rekeyed- --key viewer --from 2026-11-24T00:00[/bold]"
)


class KeyName(StrEnum):
    """What events are keyed by."""

    VIEWER = "viewer"
    IMPRESSION = "impression"


def command(
    into: Annotated[str, typer.Option(metavar="PREFIX", help="Goes before the names of the new topics.")],
    run: Annotated[str, typer.Option(metavar="NAME", help="Name of the run.")],
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of each new topic.", show_default="as many as before")
    ] = None,
    replication: Annotated[int, typer.Option(min=1, help="Replicas of each new partition.")] = 1,
    key: Annotated[
        KeyName | None, typer.Option(help="Key events anew by viewer_id or impression_id.", show_default="as before")
    ] = None,
    start: FromOption = None,
    stop: ToOption = None,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write events again into new topics: the way to another number of partitions, or to other keys.

    The topics are PREFIXrenders, PREFIXviewability and PREFIXclicks; a worker with STREAMS_TOPIC_PREFIX=PREFIX counts
    them, in a group of its own. Records keep when they were first appended in the header `appended`. With --from and
    --to, all is written that decides what counts between them. Interrupted, the same command goes on where it was.
    """
    settings = settings_from(broker=broker, topic_prefix=topic_prefix)
    if into == settings.topic_prefix:
        fail("--into is the prefix of the topics that are read: rebuilt topics want another one", 2)
    if start is not None and stop is not None and start >= stop:
        fail("--from lies not before --to", 2)
    name = f"rebuild-{run_name(run, None)}"
    job = Job(name, settings, campaigns_from(settings), Scope(start, stop), 0.0, False, False, {})
    asked = [into, partitions, key, start, stop, settings.topic_prefix, settings.rules.plain()]
    with one_line_errors(run), Store(file_of(name)) as store:
        if store.get("begun") not in (None, orjson.loads(orjson.dumps(asked))):
            fail(f"run {run} was begun with other parameters: take another --run", 2)
        store.keep("begun", asked)
        written = finish(_rebuild(job, store, into, partitions, replication, key))
    if as_json:
        write_json({"run": run, "written": written})
    else:
        typer.echo(f"{written:,} events written to {', '.join(into + topic for topic in TOPICS)}")


async def _rebuild(
    job: Job, store: Store, into: str, partitions: int | None, replication: int, key: KeyName | None
) -> int:
    """Write what is not written yet; return how many. Raises TopicsError, ProduceError."""
    connection, rules = connection_from(job.settings), job.settings.rules
    async with Reader(connection, job.settings.topic_prefix) as reader:
        plan = await _kept_plan(job, store, reader)
        digest = hashlib.sha256(orjson.dumps([store.get("begun"), plan.plain()])).hexdigest()[:12]
        target = Target(connection, into, digest)
        await target.prepare(partitions or reader.partitions, replication)
        stops = {topic: job.scope.reads_to(topic, rules) for topic in TOPICS}
        source = Source(reader, plan.starts, stops, rules.future_ms, key.value if key else None, digest)
        with progress(Console(stderr=True), plan.records, verb="Writing") as tell:
            producer = PacedProducer[Copy](connection, into, lambda copy, partition: None, partition=partition_for)
            await producer.send_batches(_missing(source, target, tell), asyncio.Event())
        return producer.sending.sent


async def _kept_plan(job: Job, store: Store, reader: Reader) -> Plan:
    """Return what to read: as it was planned when the run began, so that the order is the same."""
    if (kept := store.get("plan")) is None:
        plan = await plan_of(job, reader, reach_ms(job.settings.rules))
        store.keep("plan", plan.plain())
        return plan
    plan = Plan.of(kept)
    reader.end_at(plan.ends)
    refuse_deleted(await reader.extents(0), plan.starts)
    return plan


async def _missing(source: Source, target: Target, tell: Callable[[int], None]) -> AsyncIterator[Iterable[Copy]]:
    async for copies in source.copies():
        tell(len(copies))
        yield target.missing(copies)
