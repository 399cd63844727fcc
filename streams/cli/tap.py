"""`streams tap`: what becomes of events, as they come."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, Any, Final

import orjson
import typer

from streams.cli.explain import as_json_values
from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    campaigns_from,
    connection_from,
    fail,
    finish,
    settings_from,
)
from streams.cli.text import safe
from streams.core.campaigns import Campaigns
from streams.core.events import TOPICS
from streams.kafka.journal import JournalError, read_journal
from streams.kafka.reader import Reader
from streams.kafka.topics import JOURNAL, changelog
from streams.replay.explain import RULES, Finding, clock
from streams.replay.tap import BEFORE, Tap
from streams.settings import Settings
from streams.wire.records import journal_position

EPILOG: Final = (
    "Examples: [bold]streams tap[/bold] | [bold]streams tap --campaign shoes --outcome duplicate[/bold] "
    "| [bold]streams tap --outcome orphan --limit 20 --json[/bold]"
)


def command(
    campaign: Annotated[str | None, typer.Option(help="Only of this campaign.")] = None,
    outcome: Annotated[str | None, typer.Option(help=f"Only with this outcome: {', '.join(RULES)}.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="From the oldest records on, with a state of its own.")
    ] = False,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow events with what becomes of them, decided by the same code as the worker's. Ctrl-C ends it.

    It begins with what the workers know, their journal, and shows what comes after the journal's last record: so also
    what is a duplicate, a refresh or an orphan because of what came before. Where no worker has counted yet, it begins
    with the oldest records. A view that waits for its render is shown twice: as pending, and when that is settled. A
    view or click has the campaign of its render; as long as that has not come, and of a malformed record, it has none.
    How far workers lift silent topics from now on cannot be seen. Times are UTC; with --json, a line of JSON each.
    """
    if outcome not in (None, *RULES):
        fail(f"--outcome {outcome}: not one of {', '.join(RULES)}", 2)
    settings = settings_from(broker=broker, topic_prefix=topic_prefix)
    agreed = campaigns_from(settings)

    async def run() -> None:
        shown = 0
        async with aclosing(_findings(settings, agreed, from_beginning)) as found:
            async for finding in found:
                if campaign in (None, finding.campaign_id) and outcome in (None, finding.outcome):
                    typer.echo(_json(finding) if as_json else _line(finding))
                    shown += 1
                    if shown == limit:
                        return

    with suppress(BrokenPipeError):
        finish(_until_told(run()))


async def _until_told(work: Any) -> None:
    """Work until Ctrl-C or SIGTERM, which are a good end."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


async def _findings(settings: Settings, campaigns: Campaigns, from_beginning: bool) -> AsyncGenerator[Finding]:
    async with Reader(connection_from(settings), settings.topic_prefix) as reader:
        taps = [Tap(number, settings.rules, campaigns) for number in range(reader.partitions)]
        if not from_beginning:
            await _fold_journals(settings, taps)
        fences = {(topic, tap.number): tap.progress[topic].fence for tap in taps for topic in TOPICS}
        typer.echo(f"following {', '.join(map(settings.topic, TOPICS))} on {settings.broker}", err=True)
        async with aclosing(reader.follow(fences)) as polls:
            async for chunks in polls:
                for number, chunk in chunks:
                    taps[number].watch(chunk.batch, [record.value for record in chunk.records])
                    for finding in taps[number].told():
                        yield finding


async def _fold_journals(settings: Settings, taps: list[Tap]) -> None:
    """Bring each tap to where the journal of its partition ends. Raises JournalError."""
    journals: list[dict[Any, bytes]] = [{} for _ in taps]
    topic = changelog(settings.topic(settings.group), JOURNAL)
    async with Reader(connection_from(settings), "", (topic,)) as reader:
        async for _, number, records in reader.records(range(reader.partitions)):
            for record in records:
                _, position = journal_position(record.key)
                journals[number].pop(position, None)
                if record.value is not None:
                    journals[number][position] = record.value
    for tap in taps:
        read_journal(tap.number, journals[tap.number]).fold_into(tap)
        if changed := settings.rules.differences(tap.journaled_rules):
            raise JournalError(
                f"the workers count partition {tap.number} with other settings ({', '.join(changed)}): give this "
                "command the same, or --from-beginning"
            )


def _json(finding: Finding) -> str:
    values = as_json_values(finding, in_files=False)
    if values["refers_to"] and values["refers_to"]["offset"] == BEFORE:
        values["refers_to"]["offset"] = None
    return orjson.dumps(values | {"impression_id": finding.impression_id}).decode()


def _line(finding: Finding) -> str:
    when = clock(finding.ts) if finding.ts is not None else "-"
    place = f"{finding.place.topic} {finding.place.partition}/{finding.place.offset}"
    words = [when, place, safe(finding.impression_id or "-"), f"{finding.outcome}:"]
    if finding.kind:
        words.insert(3, f"({finding.kind})")
    if finding.campaign_id is not None:
        words.append(f"campaign {safe(finding.campaign_id)}")
    if finding.spend:
        words.append(f"spend +{finding.spend} {finding.currency};")
    words.append(safe(finding.reason))
    return " ".join(words)
