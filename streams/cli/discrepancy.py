"""`streams report --discrepancy`: what all sources count of each campaign and day, and why that differs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import typer

from streams.cli.files import counting, reading
from streams.cli.shared import connection_from, fail, finish, write_json
from streams.cli.text import aligned, listed, safe
from streams.core import rates
from streams.core.campaigns import Campaigns
from streams.core.discrepancy import BROKEN_PERCENT, USUAL_PERCENT
from streams.core.events import Malformed
from streams.core.money import decimal_text
from streams.core.panes import Cell
from streams.core.reported import REPORTED_COUNTS
from streams.kafka.reader import Reader
from streams.replay.audit import Auditor, Sayings
from streams.replay.discrepancy import Audit, Compared, Day, Reports, days_compared
from streams.replay.files import EventFile
from streams.replay.recount import CHUNK, Recount, Slicing, Sums, added, days_of, outcomes, recount
from streams.settings import Settings
from streams.wire.reported import decode_reported

FINDINGS: Final = 3
Row = dict[str, Any]


class _Read(NamedTuple):
    """All that was read: by time zone what events say, what reports say, and what became of every record."""

    audits: dict[str, Audit]
    reports: Reports
    told: Row


def command(
    paths: Mapping[str, Path | None], settings: Settings, campaigns: Campaigns, zone: str | None, as_json: bool
) -> None:
    """Compare what files say, or topics if none is named; end with exit code 3 if anything is above 15 %."""
    try:
        if any(paths.values()):
            read = _from_files(paths, settings, campaigns, zone)
        else:
            read = finish(_from_topics(settings, campaigns, zone))
    except OSError as error:
        fail(f"temporary files (TMPDIR says where): {error.strerror or error}")
    days = [
        day
        for name, audit in sorted(read.audits.items())
        for day in days_compared(name, audit, read.reports, campaigns, settings.min_sample)
    ]
    report = {"days": [_day(day) for day in days]} | read.told
    if as_json:
        write_json(report)
    else:
        _print(report)
    if any(one.band == "above" for day in days for one in day.compared):
        raise typer.Exit(FINDINGS)


# --- reading ----------------------------------------------------------------------------------------------------------


class _Auditing:
    """What events say in the days of several time zones, while they are read."""

    def __init__(self, stack: ExitStack, zones: set[str], settings: Settings, campaigns: Campaigns) -> None:
        self._sayings = {zone: stack.enter_context(Sayings()) for zone in zones}
        self.slicings: dict[str, Slicing] = {zone: days_of(ZoneInfo(zone)) for zone in zones}
        self.sums: dict[str, Sums] | None = None
        self._rules, self._campaigns = settings.rules, campaigns

    def partition(self) -> Auditor:
        told = [(self._sayings[zone], slicing) for zone, slicing in self.slicings.items()]
        return Auditor(self._rules, self._campaigns, told)

    def audits(self, sums: Mapping[str, Sums]) -> dict[str, Audit]:
        biller = self._campaigns.billing_source_of
        return {zone: Audit(sums[zone], sayings, biller) for zone, sayings in self._sayings.items()}


def _zones(asked: str | None, reports: Reports) -> set[str]:
    return reports.zones() | ({asked} if asked else set()) or {"UTC"}


def _from_files(paths: Mapping[str, Path | None], settings: Settings, campaigns: Campaigns, zone: str | None) -> _Read:
    with ExitStack() as stack:
        files, tell = stack.enter_context(reading(paths))
        reports, told = Reports(), Row()
        if REPORTED_COUNTS in files:
            lines = _values(files[REPORTED_COUNTS], tell)
            told["reported"] = _take_reports(lines, reports)
        auditing = _Auditing(stack, _zones(zone, reports), settings, campaigns)
        state = auditing.partition()
        sums = recount(state, files, auditing.slicings, tell)
        return _Read(auditing.audits(sums), reports, outcomes(state) | told)


def _values(file: EventFile, tell: Callable[[int], None]) -> Iterator[bytes]:
    for _, values in file.chunks(CHUNK):
        yield from values
        tell(len(values))


async def _from_topics(settings: Settings, campaigns: Campaigns, zone: str | None) -> _Read:
    reports, told = Reports(), Row()
    broker, prefix = connection_from(settings), settings.topic_prefix
    async with Reader(broker, prefix, (REPORTED_COUNTS,)) as reader:
        read: Row = {}
        async for _, _, records in reader.records(await reader.sizes()):
            values = (record.value for record in records if record.value is not None)
            read = added(read, _take_reports(values, reports))
    with ExitStack() as stack:
        auditing = _Auditing(stack, _zones(zone, reports), settings, campaigns)
        sums: dict[str, Sums] | None = None
        async with Reader(broker, prefix) as events:
            sizes = await events.sizes()
            tell = stack.enter_context(counting("Counting", sum(sizes.values())))
            for partition in range(events.partitions):
                state = auditing.partition()
                again = Recount(state, auditing.slicings, sums)
                async for chunk in events.chunks(partition):
                    again.apply(chunk.batch)
                    tell(len(chunk.records))
                again.end()
                sums, told = again.sums, added(told, outcomes(state))
        assert sums is not None
        return _Read(auditing.audits(sums), reports, told | {"reported": read})


def _take_reports(values: Iterable[bytes], reports: Reports) -> Row:
    """Take reported counts; return how many there were, and how many were none, by reason."""
    lines, malformed = 0, Counter[str]()
    for value in values:
        lines += 1
        count = decode_reported(value)
        if isinstance(count, Malformed):
            malformed[count.reason] += 1
        else:
            reports.add(count)
    return {"lines": lines, "malformed": dict(sorted(malformed.items()))}


# --- the report as values ---------------------------------------------------------------------------------------------


def _day(day: Day) -> Row:
    sizes = [one.count.impressions for one in day.compared]
    above = [None, *sizes]
    bills = [one for one in day.compared if one.who == day.billing]
    billing = bills[0].count.impressions if bills else None
    return {
        "campaign_id": day.campaign_id,
        "day": day.day.isoformat(),
        "tz": day.zone,
        "start": day.start,
        "end": day.end,
        "billing_source": day.billing_source,
        "sources": [
            _source(one, one.who == day.billing, billing, larger)
            for one, larger in zip(day.compared, above, strict=False)
        ],
    }


def _source(one: Compared, bills: bool, billing: int | None, larger: int | None) -> Row:
    count, total = one.count, one.count.figures()
    return {
        "source": one.who.source,
        "origin": one.who.origin,
        "bills": bills,
        "impressions": count.impressions,
        "difference": one.difference,
        "of_source": _share(one.difference, count.impressions),
        "of_billing": _share(one.difference, billing),
        "less_than_above": _share(_less(larger, count.impressions), larger),
        "band": one.band,
        "explained": None if one.parts is None else one.parts.explained,
        "only_source": None if one.parts is None else one.parts.only_source,
        "only_billing": None if one.parts is None else one.parts.only_billing,
        "unexplained": one.difference if one.parts is None else one.parts.unexplained,
        "at_most": dict(one.bounds),
        "refused": count.refused,
        "measurable": count.measurable,
        "viewable": count.viewable,
        "clicks": count.clicks,
        "viewable_rate": rates.viewable_rate(total),
        "ctr": None if count.clicks is None else rates.ctr(total),
        "money": [_money(currency, cell) for currency, cell in count.cells.items()],
    }


def _less(larger: int | None, impressions: int | None) -> int | None:
    return None if larger is None or impressions is None else larger - impressions


def _share(difference: int | None, base: int | None) -> float | None:
    return None if difference is None or base is None else rates.ratio(difference, base)


def _money(currency: str, cell: Cell) -> Row:
    return {
        "currency": currency,
        "spend": decimal_text(cell.spend),
        "cpm": rates.per_thousand(cell.spend, cell.served),
        "vcpm": rates.per_thousand(cell.spend, cell.viewable),
        "cpc": rates.each(cell.spend, cell.clicks),
    }


# --- the report for people --------------------------------------------------------------------------------------------

_WHERE: Final = ["Campaign", "Day", "Source", "Counted by"]
_COMPARED: Final = ["Impressions", "Difference", "Of source", "Of billing", "Less than above", "Band"]
_FIGURES: Final = ["Measurable", "Viewable", "Viewable rate", "Clicks", "CTR"]
_MONEY: Final = {"currency": "Currency", "spend": "Spend", "cpm": "CPM", "vcpm": "vCPM", "cpc": "CPC"}
_BANDS: Final = {
    "below": f"under {USUAL_PERCENT} %",
    "normal": f"{USUAL_PERCENT} to {BROKEN_PERCENT} %",
    "above": f"OVER {BROKEN_PERCENT} %",
}


def _print(report: Row) -> None:
    for zone in dict.fromkeys(day["tz"] for day in report["days"]):
        days = [day for day in report["days"] if day["tz"] == zone]
        rows = [(day, source) for day in days for source in day["sources"]]
        _print_table(f"Discrepancy, days of {zone}", [_WHERE + _COMPARED, *(_compared_line(*row) for row in rows)])
        _print_table("Performance", [_WHERE + _FIGURES + [*_MONEY.values()], *_performance_lines(rows)])
        typer.echo("\n".join(["Why", *(_why(*row) for row in rows if row[1]["difference"]), ""]))
    typer.echo("\n".join(_told(report)))


def _print_table(title: str, lines: list[list[str]]) -> None:
    typer.echo("\n".join([title, *aligned(lines, len(_WHERE)), ""]))


def _where(day: Row, source: Row) -> list[str]:
    return [safe(day["campaign_id"]), day["day"], safe(source["source"]), source["origin"]]


def _compared_line(day: Row, source: Row) -> list[str]:
    difference = source["difference"]
    band = "bills" if source["bills"] else _BANDS.get(source["band"], "-")
    shares = [_percent(source[name]) for name in ("of_source", "of_billing", "less_than_above")]
    told = "-" if difference is None else f"{difference:+,}"
    return [*_where(day, source), _number(source["impressions"]), told, *shares, band]


def _performance_lines(rows: Iterable[tuple[Row, Row]]) -> Iterator[list[str]]:
    for day, source in rows:
        figures = [_number(source["measurable"]), _number(source["viewable"]), _percent(source["viewable_rate"])]
        figures += [_number(source["clicks"]), _percent(source["ctr"])]
        for money in source["money"] or [{}]:
            yield [*_where(day, source), *figures, *(_amount(name, money.get(name)) for name in _MONEY)]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.6%}"


def _amount(name: str, value: str | None) -> str:
    if value is None or name == "currency":
        return value or "-"
    return f"{Decimal(value):,}" if name == "spend" else f"{Decimal(value):,.6f}"


def _why(day: Row, source: Row) -> str:
    """Say in one line what a difference is made of."""
    explained = source["explained"]
    if explained is None:
        parts = [f"{source['unexplained']:+,} not explained: no events of both with the same ids"]
    else:
        sides = {source["source"]: source["only_source"], day["billing_source"]: -source["only_billing"]}
        told = explained | {f"only {safe(name)}": count for name, count in sides.items()}
        parts = [f"{count:+,} {name.replace('_', ' ')}" for name, count in told.items() if count]
    limits = listed({name.replace("_", " "): count for name, count in source["at_most"].items()})
    at_most = f" (at most: {limits})" if source["at_most"] else ""
    where = " ".join(_where(day, source))
    return f"  {where}: {source['difference']:+,} = {' '.join(parts)}{at_most}"


def _told(report: Row) -> Iterator[str]:
    for topic, counts in report["events"].items():
        told = counts | {"pending": report["pending"][topic]}
        if sum(told.values()):
            yield f"{topic}: {sum(told.values()):,} records = {listed(told)}"
    for name, malformed in (("events", report.get("malformed")), ("reported counts", _refused(report))):
        if malformed:
            yield f"malformed {name}: {listed(malformed)}"
    if "reported" in report:
        yield f"{REPORTED_COUNTS}: {report['reported']['lines']:,} records"


def _refused(report: Row) -> Row:
    malformed: Row = report.get("reported", {}).get("malformed", {})
    return malformed
