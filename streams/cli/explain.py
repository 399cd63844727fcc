"""`streams explain`: why an impression counted or not, from the topics or from files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from streams.cli.files import CampaignsFile, ClicksFile, RendersFile, ViewabilityFile, counting, reading
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
from streams.cli.text import safe
from streams.core.campaigns import Campaigns
from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.core.rules import Rules
from streams.kafka.reader import Reader
from streams.replay.explain import Finding, Place, Search, Witness, clock
from streams.replay.files import STDIN
from streams.replay.recount import merged
from streams.settings import Settings

EPILOG: Final = (
    "Examples: [bold]streams explain imp-4711[/bold] | [bold]streams explain imp-4711 --source adserver --json[/bold] "
    "| [bold]streams explain imp-4711 --renders renders.jsonl.gz --viewability viewability.jsonl[/bold]"
)

Files = dict[str, Path | None]


def command(
    impression_id: Annotated[str, typer.Argument(metavar="IMPRESSION_ID", help="The id as the events have it.")],
    source: Annotated[str | None, typer.Option(help="Only of this source; without it, each apart.")] = None,
    renders: RendersFile = None,
    viewability: ViewabilityFile = None,
    clicks: ClicksFile = None,
    campaigns: CampaignsFile = None,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of every event of an impression what became of it, by which rule, and what it changed.

    Reads the topics, or files if any is named, from their beginning, and decides them again by the same code as the
    worker. What Kafka has deleted cannot be seen, nor how far a silent topic was lifted (README, windows). Times are
    UTC; with --json, ms since the epoch. Exit code 1 if there is no such event.
    """
    settings = settings_from(campaigns=campaigns, broker=broker, topic_prefix=topic_prefix)
    agreed = campaigns_from(settings)
    search = Search(impression_id, source)
    files: Files = {RENDERS: renders, VIEWABILITY: viewability, CLICKS: clicks}
    in_files = any(files.values())
    if in_files:
        findings = _from_files(files, search, settings.rules, agreed)
    else:
        findings = finish(_from_topics(settings, search, agreed))
    if not findings:
        where = "in these files" if in_files else f"on the topics of {settings.broker}"
        of_source = f" of source {safe(source)}" if source else ""
        fail(f"no event of impression {safe(impression_id)}{of_source} is {where}")
    if as_json:
        events = [as_json_values(finding, in_files) for finding in findings]
        write_json({"impression_id": impression_id, "events": events})
    else:
        _print(impression_id, findings, in_files)


def _from_files(files: Files, search: Search, rules: Rules, campaigns: Campaigns) -> list[Finding]:
    if STDIN in files.values():
        fail("- cannot be standard input here: files are read twice", 2)
    with reading(files) as (opened, tell):
        for batch, lines in merged(opened):
            search.look(batch.topic, 0, lines)
            tell(len(lines))
    witness = Witness(search, 0, rules, campaigns)
    if search.partitions:
        with reading(files) as (opened, tell):
            for batch, lines in merged(opened):
                witness.watch(batch, lines)
                tell(len(lines))
    return witness.findings()


async def _from_topics(settings: Settings, search: Search, campaigns: Campaigns) -> list[Finding]:
    findings: list[Finding] = []
    async with Reader(connection_from(settings), settings.topic_prefix) as reader:
        sizes = await reader.sizes()
        with counting("Looking", sum(sizes.values())) as tell:
            async for topic, partition, records in reader.records(sizes):
                search.look(topic, partition, [record.value for record in records])
                tell(len(records))
        with counting("Deciding", sum(sizes[partition] for partition in search.partitions)) as tell:
            for partition in sorted(search.partitions):
                witness = Witness(search, partition, settings.rules, campaigns)
                async for chunk in reader.chunks(partition):
                    witness.watch(chunk.batch, [record.value for record in chunk.records])
                    tell(len(chunk.records))
                findings += witness.findings()
    return findings


# --- what was found, as values and for people -------------------------------------------------------------------------


def as_json_values(finding: Finding, in_files: bool) -> dict[str, Any]:
    """Return a finding with its place in plain words; in a file, that is a line."""
    other = finding.refers_to
    refers_to = other and _place(other.place, in_files) | {"ts": other.ts, "apart_ms": other.apart_ms}
    number, wants = finding.rule
    values = {name: value for name, value in vars(finding).items() if name not in ("place", "impression_id")}
    return _place(finding.place, in_files) | values | {"rule": number, "wants": wants, "refers_to": refers_to}


def _place(place: Place, in_files: bool) -> dict[str, Any]:
    if in_files:
        return {"topic": place.topic, "line": place.offset}
    return {"topic": place.topic, "partition": place.partition, "offset": place.offset}


def _print(impression_id: str, findings: list[Finding], in_files: bool) -> None:
    partitions = sorted({finding.place.partition for finding in findings})
    if len(partitions) > 1:
        typer.echo(
            f"Its events lie in partitions {', '.join(map(str, partitions))}. Those of different ones never meet: key "
            "all of them alike (README, keys).\n"
        )
    for source in dict.fromkeys(finding.source for finding in findings):
        who = f"of source {safe(source)}" if source else "in records that are no events"
        typer.echo(f"impression {safe(impression_id)} {who}")
        for finding in findings:
            if finding.source == source:
                typer.echo("\n".join(_lines(finding, in_files)))
        typer.echo("")


def _lines(finding: Finding, in_files: bool) -> Iterator[str]:
    number, wants = finding.rule
    when = clock(finding.ts) if finding.ts is not None else "-"
    kind = f" ({finding.kind})" if finding.kind else ""
    yield f"  {when}  {_where(finding.place, in_files)}{kind}: {finding.outcome}"
    yield f"      rule {number} wants it to be {wants}"
    if finding.reason:
        other = finding.refers_to
        yield f"      {safe(finding.reason)}" + (f" ({_where(other.place, in_files)})" if other else "")
    if finding.window is not None:
        yield f"      {_figures(finding)}"


def _where(place: Place, in_files: bool) -> str:
    spot = f"line {place.offset}" if in_files else f"{place.partition}/{place.offset}"
    return f"{place.topic} {spot}"


def _figures(finding: Finding) -> str:
    campaign, currency = safe(finding.campaign_id or ""), finding.currency or ""
    minute = clock(finding.window or 0)[:16]
    return f"campaign {campaign}, window {minute}, spend +{finding.spend} {currency}"
