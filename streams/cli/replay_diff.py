"""`streams replay diff`: in which campaigns and windows two counts differ, by how much, and why."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer

from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    connection_from,
    fail,
    finish,
    settings_from,
    write_json,
)
from streams.cli.text import safe
from streams.kafka.connection import Broker
from streams.kafka.reader import Reader
from streams.kafka.topics import WINDOWS
from streams.replay.differences import Difference, Place, differences
from streams.replay.document import DocumentError, Report, Row, read

EPILOG: Final = (
    "Examples: [bold]streams replay diff yesterday.json other.json[/bold] | "
    "[bold]streams replay diff yesterday.json live[/bold]"
)
LIVE: Final = "live"
FINDINGS: Final = 3
_SHOWN: Final = 40


def command(
    before: Annotated[Path, typer.Argument(metavar="A", help="A JSON report of streams replay.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one, or live: the topic campaign-windows.")],
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which windows of which campaigns differ, by how much, and from which outcomes of renders.

    Exit code 3 if any does. Against the live topic only windows are compared that are final on both sides.
    """
    try:
        one = read(before)
        if after == LIVE:
            settings = settings_from(broker=broker, topic_prefix=topic_prefix)
            live = finish(_live_windows(connection_from(settings), settings.topic_prefix, one))
            one, second, unsettled = _final(one, live)
        else:
            second, unsettled = read(Path(after)), 0
    except DocumentError as error:
        fail(str(error), 2)
    found = [*differences(one.windows, second.windows, one.refused, second.refused)]
    compared = len(one.windows.keys() | second.windows.keys())
    if as_json:
        windows = [difference.as_json_values() for difference in found]
        write_json({"compared": compared, "not_final": unsettled, "windows": windows})
    else:
        typer.echo("\n".join(_lines(found, compared, unsettled)))
    if found:
        raise typer.Exit(FINDINGS)


async def _live_windows(broker: Broker, prefix: str, report: Report) -> dict[Place, Row]:
    """Return the last record of each window in the range of a report."""
    start, stop = report.parameters["from"] or 0, report.parameters["to"] or 1 << 62
    found: dict[Place, Row] = {}
    async with Reader(broker, prefix, [WINDOWS]) as reader:
        async for _, _, records in reader.records(range(reader.partitions)):
            for record in records:
                row = orjson.loads(record.value) if record.value else {}
                if "start" in row and start <= row["start"] < stop:
                    found[row["campaign_id"], row["currency"], row["start"]] = row
    return found


def _final(report: Report, live: dict[Place, Row]) -> tuple[Report, Report, int]:
    """Return what to compare, of both, and how many windows are not final yet on either side.

    The live topic does not say what became of renders that did not count.
    """
    open_ones = {place for one in (report.windows, live) for place, row in one.items() if not row["final"]}
    mine, other = (
        {place: row for place, row in one.items() if place not in open_ones} for one in (report.windows, live)
    )
    told = report._replace(windows=mine, refused={})
    return told, Report(LIVE, report.parameters, other, {}), len(open_ones)


def _lines(found: list[Difference], compared: int, unsettled: int) -> Iterator[str]:
    for one in found[:_SHOWN]:
        when = f"{datetime.fromtimestamp(one.start / 1000, UTC):%Y-%m-%d %H:%M}"
        figures = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in one.figures.items())
        yield f"{safe(one.campaign_id)} {safe(one.currency)} {when}: {figures}"
        if one.outcomes:
            yield "    from " + ", ".join(f"{name} {count:+}" for name, count in one.outcomes.items())
    if len(found) > _SHOWN:
        yield f"and {len(found) - _SHOWN:,} more (--json has all)"
    campaigns = len({one.campaign_id for one in found})
    yield f"{len(found):,} of {compared:,} windows differ" + (f", of {campaigns:,} campaigns" if found else "")
    if unsettled:
        yield f"{unsettled:,} windows are not final yet and were not compared"
