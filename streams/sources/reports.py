"""Report rows of any system: CSV as it is exported, or a JSON object a line as an API gives it -> reported counts.

Law: a report is whole for the days and campaigns in it. Its rows of one day and campaign (by ad, device, hour) are
added up; what a later file says of the same day and campaign replaces it, so a report that is read twice counts once.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from typing import Any, Final, Literal, NamedTuple

from streams.core.money import PriceError, nano_of, parse_decimal
from streams.core.reported import REPORTED_COUNTS, ReportedCount
from streams.sources.adapter import BadRow, Made, Opened, Options, Row, RowError, Skipped, System, needed
from streams.sources.lines import json_lines
from streams.sources.tables import Columns, plain, table

Names = tuple[str, ...]
Pick = Callable[[Any], tuple[str, ...]]
Unit = Literal["units", "micros"]
_Key = tuple[str, str, str | None]

_GROUPED: Final = re.compile(r"\d{1,3}(,\d{3})+(\.\d*)?")
_TOTAL: Final = re.compile(r"(grand )?totals?(:.*)?", re.IGNORECASE)
_UNDEFINED: Final = frozenset(("", "-", "--", "n/a", "null"))
_DAYS: Final = ("%Y%m%d", "%Y/%m/%d", "%b %d, %Y")
_FIGURES: Final = ("impressions", "measurable", "viewable", "clicks", "spend")


class Report(NamedTuple):
    """The names that columns (or members, as paths) can have; the first one that is there is taken."""

    date: Names
    campaign: Names
    impressions: Names
    measurable: Names = ()
    viewable: Names = ()
    clicks: Names = ("clicks",)
    spend: tuple[tuple[str, Unit], ...] = ()
    currency: Names = ("currency",)
    last_day: Names = ()
    """Where a row can be of several days: such rows are no counts of a day."""


def report(name: str, moment: str, columns: Report) -> System:
    """Return the system whose reports have these columns."""

    def open_file(head: Sequence[str], file: str, options: Options) -> Opened:
        first = next((line for line in head if not line.isspace()), "")
        if first.lstrip().startswith("{"):
            return of_objects(head, file, options)._replace(over_all=added_up)
        return of_table(head, file, options)._replace(over_all=lambda rows: added_up(_without_notes(rows)))

    of_objects = json_lines(lambda options: _made_of(_pick_members(columns), columns, options))
    of_table = table(
        lambda found, options: _made_of(_pick_cells(found, columns), columns, options), columns.date, columns.campaign
    )
    return System(name, name, moment, (REPORTED_COUNTS,), open_file)


def _without_notes(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows. What is no row of the table and stands after a blank line under it is one of the report's notes."""
    expected = 0
    for row in rows:
        line = row[0]
        under = expected and line > expected
        expected = line if under else line + 1
        yield (line, (Skipped("a note under the table"),)) if under and isinstance(row, BadRow) else row


def _wanted(columns: Report) -> list[Names]:
    told = [columns.date, columns.last_day, columns.campaign, columns.currency]
    told += [columns.impressions, columns.measurable, columns.viewable, columns.clicks]
    return told + [(name,) for name, _ in columns.spend]


def _pick_cells(found: Columns, columns: Report) -> Pick:
    return found.pick(*_wanted(columns))


def _pick_members(columns: Report) -> Pick:
    wanted = [[plain(name) for name in names] for names in _wanted(columns)]

    def pick(row: dict[str, Any]) -> tuple[str, ...]:
        members = dict(_flat("", row))
        return tuple(next((members[name] for name in names if name in members), "") for names in wanted)

    return pick


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the members of an object and of those in it, each under its path and under its own name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}", inner)
    elif value is not None and not isinstance(value, list | bool):
        yield plain(path), str(value)
        yield plain(path.rpartition(".")[2]), str(value)


def _made_of(pick: Pick, columns: Report, options: Options) -> Callable[[Any], Sequence[Made]]:
    units = [unit for _, unit in columns.spend]

    def made_of(cells: Any) -> Sequence[Made]:
        day, last_day, campaign, currency, impressions, measurable, viewable, clicks, *spends = pick(cells)
        if _is_total(day) or _is_total(campaign):
            return (Skipped("has no day or no campaign: a total"),)
        if _told(last_day) and _day(last_day) != _day(day):
            raise RowError("out_of_range", "date: the row is of several days; have the report broken down by day")
        spend = next((_nano(text, unit) for text, unit in zip(spends, units, strict=True) if _told(text)), None)
        count = ReportedCount(
            source=options.source,
            campaign_id=needed(campaign, "campaign"),
            date=_day(day),
            time_zone=options.zone_name,
            impressions=_count(impressions, "impressions"),
            measurable=_count(measurable, "measurable"),
            viewable=_count(viewable, "viewable"),
            clicks=_count(clicks, "clicks"),
            spend=spend,
            currency=None if spend is None else currency or options.currency,
        )
        nothing = all(getattr(count, name) is None for name in _FIGURES)
        return (Skipped("has no figures") if nothing else count,)

    return made_of


def _told(text: str) -> bool:
    return text.strip().casefold() not in _UNDEFINED


def _is_total(text: str) -> bool:
    return not _told(text) or _TOTAL.fullmatch(text.strip()) is not None


def _day(text: str) -> str:
    stripped = text.strip()
    for form in _DAYS:
        try:
            return datetime.strptime(stripped, form).date().isoformat()  # noqa: DTZ007  a day, not a moment
        except ValueError:
            continue
    try:
        return date.fromisoformat(stripped[:10]).isoformat()
    except ValueError:
        raise RowError("wrong_type", "date: is no day such as 2026-01-31") from None


def _number(text: str) -> str:
    stripped = text.strip()
    return stripped.replace(",", "") if _GROUPED.fullmatch(stripped) else stripped


def _count(text: str, name: str) -> int | None:
    """Return a count, which some exports write as 5,200,000 or 5200000.0."""
    if not _told(text):
        return None
    try:
        number = parse_decimal(_number(text))
    except PriceError:
        raise RowError("wrong_type", f"{name}: is no number") from None
    if number != int(number) or number < 0:
        raise RowError("out_of_range", f"{name}: is no count")
    return int(number)


def _nano(text: str, unit: Unit) -> int:
    try:
        return nano_of(_number(text) + ("e-6" if unit == "micros" else ""))
    except PriceError as error:
        raise RowError("bad_price", f"spend: {error}") from None


def added_up(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows of one day and campaign as one, at the end, with the line of their first; others as they come."""
    firsts: dict[_Key, tuple[int, ReportedCount]] = {}
    sums: dict[_Key, list[int | None]] = {}
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        line, (count,) = row
        if not isinstance(count, ReportedCount):
            yield row
            continue
        key = (count.campaign_id, count.date, count.currency)
        firsts.setdefault(key, (line, count))
        figures = [getattr(count, name) for name in _FIGURES]
        sums[key] = [_plus(*pair) for pair in zip(sums.get(key, [None] * len(_FIGURES)), figures, strict=True)]
    for key, (line, count) in firsts.items():
        yield line, (_with(count, dict(zip(_FIGURES, sums[key], strict=True))),)


def _plus(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other


def _with(count: ReportedCount, figures: dict[str, int | None]) -> ReportedCount:
    return ReportedCount(
        source=count.source,
        campaign_id=count.campaign_id,
        date=count.date,
        time_zone=count.time_zone,
        currency=count.currency,
        **figures,
    )
