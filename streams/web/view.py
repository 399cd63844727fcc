"""What one reader of the page wants to see: a window, an order, a search, and which rows of that.

Law: a view is what the address of the page says, so it can be linked to; what an address cannot mean is ignored.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from streams.core import rates
from streams.core.events import NO_CURRENCY
from streams.core.money import NANO
from streams.core.panes import Cell
from streams.metrics.reading import Line
from streams.web.snapshot import AT_ONCE, Snapshot, Steps

ROWS: Final = 50
"""Rows of a page."""
_LONGEST_SEARCH: Final = 256
_PAGE: Final = re.compile("[1-9][0-9]{0,5}")


class Entry(NamedTuple):
    """A campaign and currency in the window of a view. Without cells, only totals are left of it."""

    line: Line
    name: str
    cell: Cell | None
    counts: Cell | None
    """Over all currencies of the campaign."""
    min_sample: int


class Column(NamedTuple):
    """A column that rows can be ordered by."""

    title: str
    about: str
    value: Callable[[Entry], Any]
    """What rows are ordered by; None where it is undefined."""
    text: Callable[[Any], str]


def _of_cell(figure: Callable[[Cell], Any]) -> Callable[[Entry], Any]:
    return lambda entry: None if entry.cell is None else figure(entry.cell)


def _rate(rate: Callable[[Cell, int], float | None]) -> Callable[[Entry], float | None]:
    return lambda entry: None if entry.counts is None else rate(entry.counts, entry.min_sample)


def _price(rate: Callable[[Cell, int], float | None]) -> Callable[[Entry], float | None]:
    def value(entry: Entry) -> float | None:
        is_priced = entry.cell is not None and entry.line.series.currency != NO_CURRENCY
        return rate(entry.cell, entry.min_sample) if entry.cell is not None and is_priced else None

    return value


def _of_total(figure: Callable[[Cell], int]) -> Callable[[Entry], int | None]:
    return lambda entry: figure(entry.line.total) if entry.line.series.source else None


def _count(value: int) -> str:
    return f"{value:,}"


def percent(value: float) -> str:
    """Return a ratio as people read it."""
    return f"{value:.2%}"


def price(value: float) -> str:
    """Return a CPM or vCPM as people read it."""
    return f"{value:,.3f}"


def _money(nano: int) -> str:
    return f"{Decimal(nano) / NANO:,.2f}"


COLUMNS: Final[Mapping[str, Column]] = {
    "campaign": Column("Campaign", "", lambda entry: entry.name.casefold(), str),
    "currency": Column("Currency", "", lambda entry: entry.line.series.currency, str),
    "viewable_rate": Column("Viewable rate", "viewable / measurable", _rate(rates.viewable_rate), percent),
    "vcpm": Column("vCPM", "spend x 1000 / viewable", _price(rates.vcpm), price),
    "cpm": Column("CPM", "spend x 1000 / served", _price(rates.cpm), price),
    "spend": Column("Spend", "in the window", _of_cell(lambda cell: cell.spend), _money),
    "served": Column("Served", "impressions that count, in the window", _of_cell(lambda cell: cell.served), _count),
    "measurable": Column("Measurable", "in the window", _of_cell(lambda cell: cell.measurable), _count),
    "viewable": Column("Viewable", "in the window", _of_cell(lambda cell: cell.viewable), _count),
    "clicks": Column("Clicks", "in the window", _of_cell(lambda cell: cell.clicks), _count),
    "viewable_of_served": Column("Viewable of served", "viewable / served", _rate(rates.viewable_of_served), percent),
    "measured_rate": Column("Measured rate", "measurable / served", _rate(rates.measured_rate), percent),
    "total_served": Column("Served in all", "since counting began", _of_total(lambda cell: cell.served), _count),
    "total_spend": Column("Spend in all", "since counting began", _of_total(lambda cell: cell.spend), _money),
}
TEXTS: Final = frozenset({"campaign", "currency"})
"""Columns that begin with the first letter when they are chosen; the others with the largest figure."""


class View(NamedTuple):
    """What is shown: see the module."""

    window: str
    sort: str = "served"
    descending: bool = True
    find: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str], windows: tuple[str, ...]) -> "View":
        """Return what an address means."""
        window, sort, page = (query.get(name, "") for name in ("window", "sort", "page"))
        sort = sort if sort in COLUMNS else "served"
        order = query.get("order", "asc" if sort in TEXTS else "desc")
        return cls(
            window if window in windows else windows[0],
            sort,
            order != "asc",
            query.get("find", "").strip()[:_LONGEST_SEARCH],
            int(page) if _PAGE.fullmatch(page) else 1,
        )

    def sorted_by(self, column: str) -> "View":
        """Return the view that somebody wants who chooses a column: the same column again turns the order."""
        descending = not self.descending if column == self.sort else column not in TEXTS
        return self._replace(sort=column, descending=descending, page=1)

    @property
    def order(self) -> str:
        """The order, as an address says it."""
        return "desc" if self.descending else "asc"

    def address(self) -> str:
        """Return the address of the view, relative to the page."""
        values = {"window": self.window, "sort": self.sort, "order": self.order}
        optional = {"find": self.find, "page": "" if self.page == 1 else str(self.page)}
        return "?" + urlencode(values | {name: value for name, value in optional.items() if value})


class Selected(NamedTuple):
    """The rows of a view, and where they lie among all that are found."""

    entries: list[Entry]
    first: int
    """Number of the first one, from 0."""
    found: int
    """How many there are on all pages."""


def select(snapshot: Snapshot, view: View) -> Steps[Selected]:
    """Return the rows of a view: ordered, equals by id, what is undefined last; a page beyond the end is the last."""
    value = COLUMNS[view.sort].value
    wanted = view.find.casefold()
    known: list[tuple[Any, Entry]] = []
    unknown: list[Entry] = []
    entries = iter(_entries(snapshot, view.window))
    while some := list(islice(entries, AT_ONCE)):
        for entry in some:
            if wanted in entry.name.casefold() or wanted in entry.line.series.campaign_id.casefold():
                figure = value(entry)
                if figure is None:
                    unknown.append(entry)
                else:
                    known.append((figure, entry))
        yield None
    known.sort(key=lambda one: one[0], reverse=view.descending)
    yield None
    found = len(known) + len(unknown)
    first = min(view.page - 1, max(0, found - 1) // ROWS) * ROWS
    entries_in_order = [entry for _, entry in known] + unknown
    return Selected(entries_in_order[first : first + ROWS], first, found)


def _entries(snapshot: Snapshot, window: str) -> Iterator[Entry]:
    number = snapshot.settings.windows.index(window)
    name_of, min_sample = snapshot.reading.campaigns.name_of, snapshot.settings.min_sample
    for line in snapshot.lines:
        campaign = line.series.campaign_id
        counts = snapshot.counts.get(campaign)
        yield Entry(
            line,
            name_of(campaign) or campaign,
            line.windows[number] if line.windows else None,
            counts[number] if counts else None,
            min_sample,
        )
