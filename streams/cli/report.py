"""`streams report`: what the worker would count, from files of JSON lines and without Kafka."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.cells import cell_len

from streams.cli.shared import JsonOption, campaigns_from, fail, reading_bar, settings_from, write_json, zone_of
from streams.core import rates
from streams.core.campaigns import Campaigns
from streams.core.events import CLICKS, NO_CURRENCY, RENDERS, TOPICS, VIEWABILITY
from streams.core.money import decimal_text
from streams.core.panes import TUMBLING_MS, Cell, Series, minute_of
from streams.core.partition import Partition
from streams.core.rules import OUTCOME_NAMES
from streams.replay.files import STDIN, FileError, LineFile, opened
from streams.replay.recount import Slicing, Sums, day_of, days_of, end_of, recount

EPILOG: Final = (
    "Examples: [bold]streams report --renders renders.jsonl --viewability viewability.jsonl.gz[/bold] | "
    "[bold]zcat 2026-01-*.gz | streams report --renders - --json[/bold] | "
    "[bold]streams report --renders r.jsonl --clicks c.jsonl --by day --tz Europe/Berlin[/bold]"
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
    "viewable_rate": "Viewable rate",
    "viewable_of_served": "Viewable of served",
    "measured_rate": "Measured rate",
    "over_cap": "Over cap",
}
_PARTS: Final = {
    "campaigns": ["Campaigns"],
    "sources": ["Other sources", "source"],
    "days": ["Days", "day"],
    "windows": ["Windows of a minute, UTC", "start"],
}
"""Part of the report -> its title, and what names a row beside campaign and currency."""

RendersFile = Annotated[Path | None, typer.Option("--renders", metavar="FILE", help="Renders; - is standard input.")]
ViewabilityFile = Annotated[Path | None, typer.Option("--viewability", metavar="FILE", help="Views.")]
ClicksFile = Annotated[Path | None, typer.Option("--clicks", metavar="FILE", help="Clicks.")]
CampaignsFile = Annotated[
    Path | None, typer.Option("--campaigns", metavar="FILE", help="What is agreed for campaigns (STREAMS_CAMPAIGNS).")
]


class By(StrEnum):
    """Into which slices of time figures may be cut for billing."""

    DAY = "day"


def command(
    renders: RendersFile = None,
    viewability: ViewabilityFile = None,
    clicks: ClicksFile = None,
    campaigns: CampaignsFile = None,
    windows: Annotated[bool, typer.Option("--windows", help="Also each minute, as on campaign-windows.")] = False,
    by: Annotated[By | None, typer.Option(help="Also each billing day, in the zone of --tz.")] = None,
    tz: Annotated[str | None, typer.Option(metavar="ZONE", help="Such as Europe/Berlin.", show_default="UTC")] = None,
    as_json: JsonOption = False,
) -> None:
    """Count files again, by the same rules and the same code as the worker, without Kafka.

    A file has an event a line, in the order of its topic, and may be gzip; a topic without a file is empty. A line
    that is no event is counted as malformed and stops nothing. Settings (STREAMS_LATENESS and the like) are the
    worker's. Rule 2 (future) says nothing here: lines have no time of their own.

    With --json, money is decimal text, CPM and vCPM rounded half to even to at most 9 places; rates are numbers, times
    are ms since the epoch, and what is undefined is null. Only where there is something to tell: "sources" (counts of
    those that do not bill), "malformed" (lines by reason), and over_cap of a campaign.
    """
    if tz is not None and by is None:
        fail("--tz says in which zone days begin: it needs --by day", 2)
    zone = None if by is None else zone_of(tz)
    settings = settings_from(campaigns=campaigns)
    agreed = campaigns_from(settings)
    state = Partition(settings.rules, agreed)
    with reading({RENDERS: renders, VIEWABILITY: viewability, CLICKS: clicks}) as (files, tell):
        sums = recount(state, files, slicings(windows, zone), tell)
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


# --- reading files ----------------------------------------------------------------------------------------------------


@contextmanager
def reading(paths: Mapping[str, Path | None]) -> Iterator[tuple[dict[str, LineFile], Callable[[int], None]]]:
    """Open the files of topics and show on a terminal how far they are read; yield what to tell of lines.

    No file at all and two of standard input are usage errors; a file that cannot be read is one line and exit code 1.
    """
    given = [path for path in paths.values() if path is not None]
    if not given:
        fail("say at least one of --renders, --viewability and --clicks", 2)
    if given.count(STDIN) > 1:
        fail("- can be standard input for one topic only", 2)
    try:
        with opened(paths) as files:
            sizes = [file.size for file in files.values() if file.size is not None]
            total = sum(sizes) if len(sizes) == len(files) else None
            with reading_bar("Counting", total, lambda: sum(file.position for file in files.values())) as tell:
                yield files, tell
    except FileError as error:
        fail(str(error))


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
        "viewable_rate": rates.viewable_rate(cell),
        "viewable_of_served": rates.viewable_of_served(cell),
        "measured_rate": rates.measured_rate(cell),
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


def outcomes(state: Partition) -> Row:
    """Return by topic how many lines have each outcome and how many wait, and why lines were malformed."""
    events = {topic: dict(zip(OUTCOME_NAMES, state.progress[topic].outcomes, strict=True)) for topic in TOPICS}
    told: Row = {"events": events, "pending": dict(state.pending)}
    return told | ({"malformed": dict(sorted(state.reasons.items()))} if state.reasons else {})


# --- the report for people --------------------------------------------------------------------------------------------


def _print(report: Row) -> None:
    for part, (title, *names) in _PARTS.items():
        if part in report:
            typer.echo("\n".join([title, *_table(["campaign_id", "currency", *names], report[part]), ""]))
    for topic, outcome_counts in report["events"].items():
        counts = outcome_counts | {"pending": report["pending"][topic]}
        typer.echo(f"{topic}: {sum(counts.values()):,} lines = {_listed(counts)}")
    if "malformed" in report:
        typer.echo(f"malformed: {_listed(report['malformed'])}")


def _table(names: list[str], rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table as wide as it has to be. Windows are many, and rich would take a minute for them."""
    told = [name for name in _FIGURES if any(name in row for row in rows)]
    lines = [[*(_NAMES[name] for name in names), *(_FIGURES[name] for name in told)]]
    lines += [[_shown(name, row.get(name)) for name in (*names, *told)] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        gaps = [" " * (width - cell_len(text)) for width, text in zip(widths, line, strict=True)]
        padded = [
            text + gap if number < len(names) else gap + text
            for number, (text, gap) in enumerate(zip(line, gaps, strict=True))
        ]
        yield "  ".join(["", *padded])


def _shown(name: str, value: Any) -> str:
    """Return a value as people read it; CPM and vCPM to 6 places, what is undefined as a dash."""
    if value is None:
        return "-"
    if name in ("cpm", "vcpm"):
        return f"{Decimal(value):,.6f}"
    if name == "spend":
        return f"{Decimal(value):,}"
    if name == "start":
        return f"{datetime.fromtimestamp(value // 1000, UTC):%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else safe(value)


def safe(text: str) -> str:
    """Return a sender's text so that a terminal obeys nothing in it."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
