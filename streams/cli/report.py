"""`streams report`: what the worker would count, from files of JSON lines and without Kafka."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from streams.cli import discrepancy
from streams.cli.files import CampaignsFile, ClicksFile, RendersFile, ReportedFile, ViewabilityFile, reading
from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    campaigns_from,
    fail,
    settings_from,
    write_json,
    zone_of,
)
from streams.cli.text import aligned, listed, safe
from streams.core import rates
from streams.core.campaigns import Campaigns
from streams.core.events import CLICKS, NO_CURRENCY, RENDERS, VIEWABILITY
from streams.core.money import decimal_text
from streams.core.panes import TUMBLING_MS, Cell, Series, minute_of
from streams.core.partition import Partition
from streams.core.reported import REPORTED_COUNTS
from streams.replay.recount import Slicing, Sums, day_of, days_of, end_of, outcomes, recount

EPILOG: Final = (
    "Examples: [bold]streams report --renders renders.jsonl --viewability viewability.jsonl.gz[/bold] | "
    "[bold]zcat 2026-01-*.gz | streams report --renders - --json[/bold] | "
    "[bold]streams report --renders r.jsonl --clicks c.jsonl --by day --tz Europe/Berlin[/bold] | "
    "[bold]streams report --discrepancy[/bold] | "
    "[bold]streams report --discrepancy --renders r.jsonl --reported counts.jsonl[/bold]"
)

Row = dict[str, Any]

_NAMES: Final = {
    "campaign_id": "Campaign",
    "currency": "Currency",
    "source": "Source",
    "day": "Day",
    "start": "Start",
}
_FIGURES: Final = {
    "served": "Served",
    "measurable": "Measurable",
    "viewable": "Viewable",
    "clicks": "Clicks",
    "spend": "Spend",
    "cpm": "CPM",
    "vcpm": "vCPM",
    "cpc": "CPC",
    "viewable_rate": "Viewable rate",
    "viewable_of_served": "Viewable of served",
    "measured_rate": "Measured rate",
    "ctr": "CTR",
    "over_cap": "Over cap",
}
_PARTS: Final = {
    "campaigns": ["Campaigns"],
    "sources": ["Other sources", "source"],
    "days": ["Days", "day"],
    "windows": ["Windows of a minute, UTC", "start"],
}
"""Part of the report -> its title, and what names a row beside campaign and currency."""


class By(StrEnum):
    """Into which slices of time figures may be cut for billing."""

    DAY = "day"


def command(
    renders: RendersFile = None,
    viewability: ViewabilityFile = None,
    clicks: ClicksFile = None,
    reported: ReportedFile = None,
    campaigns: CampaignsFile = None,
    windows: Annotated[bool, typer.Option("--windows", help="Also each minute, as on campaign-windows.")] = False,
    by: Annotated[By | None, typer.Option(help="Also each billing day, in the zone of --tz.")] = None,
    discrepancies: Annotated[
        bool, typer.Option("--discrepancy", help="Instead, each day: what all sources count, and why it differs.")
    ] = False,
    tz: Annotated[str | None, typer.Option(metavar="ZONE", help="Such as Europe/Berlin.", show_default="UTC")] = None,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count files again, by the same rules and the same code as the worker, without Kafka.

    A file has an event a line, in the order of its topic, and may be gzip; a topic without a file is empty. A line
    that is no event is counted as malformed and stops nothing. Settings (STREAMS_LATENESS and the like) are the
    worker's. Rule 2 (future) says nothing here: lines have no time of their own.

    With --json, money is decimal text, CPM, vCPM and CPC rounded half to even to at most 9 places; rates are numbers,
    times are ms since the epoch, and what is undefined is null. Only where there is something to tell: "sources"
    (counts of those that do not bill), "malformed" (lines by reason), and over_cap of a campaign.

    With --discrepancy, each campaign and day has the impressions that every source counts, by its events and by its
    reports (--reported, as `streams ingest` writes them), how far that is from what the billing source counts, and how
    much of it is explained (README, discrepancy). Days are those of the reports' time zones, and of --tz. Without any
    file, the topics of --broker are read instead. Exit code 3 if anything differs by more than 15 %.
    """
    settings = settings_from(campaigns=campaigns, broker=broker, topic_prefix=topic_prefix)
    agreed = campaigns_from(settings)
    files = {RENDERS: renders, VIEWABILITY: viewability, CLICKS: clicks}
    if discrepancies:
        if windows or by is not None:
            fail("--discrepancy is a report of days by itself: leave out --windows and --by", 2)
        asked = None if tz is None else str(zone_of(tz))
        discrepancy.command(files | {REPORTED_COUNTS: reported}, settings, agreed, asked, as_json)
        return
    if reported is not None:
        fail("--reported counts are compared with others: they need --discrepancy", 2)
    if tz is not None and by is None:
        fail("--tz says in which zone days begin: it needs --by day", 2)
    zone = None if by is None else zone_of(tz)
    state = Partition(settings.rules, agreed)
    with reading(files) as (opened, tell):
        sums = recount(state, opened, slicings(windows, zone), tell)
    report = as_json_values(sums, agreed, zone) | outcomes(state)
    if as_json:
        write_json(report)
    else:
        _print(report)


def slicings(windows: bool, zone: tzinfo | None) -> dict[str, Slicing]:
    """Return by what the figures of each part of the report are cut."""
    cut: dict[str, Slicing] = {"campaigns": lambda pane: 0}
    if windows:
        cut["windows"] = minute_of
    if zone is not None:
        cut["days"] = days_of(zone)
    return cut


# --- the report as values ---------------------------------------------------------------------------------------------


def as_json_values(sums: Mapping[str, Sums], campaigns: Campaigns, zone: tzinfo | None) -> Row:
    """Return the figures of the report, by campaign and currency in order."""
    totals = sums["campaigns"]
    report = {"campaigns": [figures(series, cell) for series, _, cell in _billed(totals, campaigns)]}
    if others := [(series, cell) for (series, _), cell in sorted(totals.items()) if not campaigns.is_billed(series)]:
        report["sources"] = [_named(series) | {"source": series.source} | _counts(cell) for series, cell in others]
    if "windows" in sums:
        report["windows"] = [_window(*place) for place in _billed(sums["windows"], campaigns)]
    if zone is not None:
        report["days"] = [_day(*place, zone) for place in _billed(sums["days"], campaigns)]
    return report


def _billed(sums: Sums, campaigns: Campaigns) -> Iterator[tuple[Series, int, Cell]]:
    for (series, start), cell in sorted(sums.items()):
        if campaigns.is_billed(series):
            yield series, start, cell


def figures(series: Series, cell: Cell) -> Row:
    """Return what a cell says: money as decimal text, rates as numbers, None where undefined."""
    priced = series.currency != NO_CURRENCY
    row = _named(series) | _counts(cell)
    row |= {
        "spend": decimal_text(cell.spend),
        "cpm": rates.per_thousand(cell.spend, cell.served) if priced else None,
        "vcpm": rates.per_thousand(cell.spend, cell.viewable) if priced else None,
        "cpc": rates.each(cell.spend, cell.clicks) if priced else None,
        "viewable_rate": rates.viewable_rate(cell),
        "viewable_of_served": rates.viewable_of_served(cell),
        "measured_rate": rates.measured_rate(cell),
        "ctr": rates.ctr(cell),
    }
    return row | ({"over_cap": cell.over_cap} if cell.over_cap else {})


def _named(series: Series) -> Row:
    return {"campaign_id": series.campaign_id, "currency": series.currency}


def _counts(cell: Cell) -> Row:
    return {name: getattr(cell, name) for name in ("served", "measurable", "viewable", "clicks")}


def _window(series: Series, start: int, cell: Cell) -> Row:
    row = figures(series, cell) | {"start": start, "end": start + TUMBLING_MS, "revision": cell.revision}
    return {name: value for name, value in row.items() if name not in ("viewable_of_served", "over_cap")}


def _day(series: Series, start: int, cell: Cell, zone: tzinfo) -> Row:
    day = day_of(start, zone)
    return figures(series, cell) | {"day": day.isoformat(), "start": start, "end": end_of(day, zone)}


# --- the report for people --------------------------------------------------------------------------------------------


def _print(report: Row) -> None:
    for part, (title, *names) in _PARTS.items():
        if part in report:
            typer.echo("\n".join([title, *table(["campaign_id", "currency", *names], report[part]), ""]))
    for topic, outcome_counts in report["events"].items():
        counts = outcome_counts | {"pending": report["pending"][topic]}
        typer.echo(f"{topic}: {sum(counts.values()):,} lines = {listed(counts)}")
    if "malformed" in report:
        typer.echo(f"malformed: {listed(report['malformed'])}")


def table(names: list[str], rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table of figures; each row is named by some of its values."""
    told = [name for name in _FIGURES if any(name in row for row in rows)]
    lines = [[*(_NAMES[name] for name in names), *(_FIGURES[name] for name in told)]]
    lines += [[shown(name, row.get(name)) for name in (*names, *told)] for row in rows]
    return aligned(lines, len(names))


def shown(name: str, value: Any) -> str:
    """Return a value as people read it; CPM, vCPM and CPC to 6 places, what is undefined as a dash."""
    if value is None:
        return "-"
    if name in ("cpm", "vcpm", "cpc"):
        return f"{Decimal(value):,.6f}"
    if name == "spend":
        return f"{Decimal(value):,}"
    if name == "start":
        return f"{datetime.fromtimestamp(value // 1000, UTC):%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else safe(value)
