"""What `streams top` shows, and what its keys do.

Law: a screen is a value of what workers said and which keys were pressed; it reads no clock and asks nobody.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streams.cli.text import safe
from streams.metrics.fleet import Fleet, Row, ordered


class Column(NamedTuple):
    """A column of figures: its title, of two lines at most, its width, and how a figure reads."""

    title: str
    width: int
    form: str


COLUMNS: Final = {
    "viewable_rate": Column("Viewable\nrate", 8, ".2%"),
    "vcpm": Column("\nvCPM", 9, ",.3f"),
    "served": Column("\nServed", 10, ",.0f"),
    "cpm": Column("\nCPM", 9, ",.3f"),
    "spend": Column("\nSpend", 12, ",.2f"),
    "measurable": Column("\nMeasurable", 11, ",.0f"),
    "viewable": Column("\nViewable", 10, ",.0f"),
    "measured_rate": Column("Measured\nrate", 8, ".2%"),
    "viewable_of_served": Column("Viewable\nof served", 10, ".2%"),
    "clicks": Column("\nClicks", 8, ",.0f"),
    "total_served": Column("Served\nin all", 12, ",.0f"),
    "total_spend": Column("Spend\nin all", 14, ",.2f"),
}
"""What is shown of a campaign, most important first: what has no room is left out."""
ORDERS: Final = ("campaign", *COLUMNS)
TRENDS: Final = ("viewable_rate", "vcpm")
"""Columns with a line of what they were since the start."""
KEYS: Final = "q quit  s S sort  r reverse  w window  / find  arrows, PgUp, PgDn scroll"

_LOOKS: Final = 12
_ROOM_FOR_LINES: Final = 110
"""Columns of a terminal that is wide enough for lines; in a narrower one figures are worth more."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_NAME: Final = 16
"""Least width of a name."""
_LONGEST_NAME: Final = 40
_GAP: Final = 2
_LINE: Final = " line"
"""Ends the name of the column of a line."""
_ENTER, _ESCAPE, _ERASE = "\r\n", "\x1b", "\x7f\b"
_SCROLL: Final = {"\x1b[A": -1, "\x1b[B": 1, "\x1b[5~": -20, "\x1b[6~": 20, "\x1b[H": -(10**9), "\x1b[F": 10**9}


class Said(NamedTuple):
    """What came of one look at all workers."""

    fleet: Fleet
    problems: Sequence[str]
    """A line for each worker that said nothing."""
    rate: float | None
    """Events a second since the look before; None where that cannot be told."""
    windows: Sequence[str]


class Screen:
    """What is shown, in what order; keys change it."""

    def __init__(self, sort: str = "served", reverse: bool = False, find: str = "", window: str = "") -> None:
        self.sort = sort
        self.descending = (sort != "campaign") != reverse
        self.find = find
        self.window = window
        self.is_typing = False
        self.is_done = False
        self.first = 0
        self._history: dict[tuple[str, str], deque[Row]] = defaultdict(lambda: deque(maxlen=_LOOKS))

    def note(self, fleet: Fleet) -> None:
        """Remember a look, for the lines beside figures."""
        self._history = defaultdict(
            lambda: deque(maxlen=_LOOKS),
            {place: self._history[place] for row in fleet.rows if (place := (row.campaign, row.currency))},
        )
        for row in fleet.rows:
            self._history[row.campaign, row.currency].append(row)

    # --- keys -----------------------------------------------------------------------------------------------------

    def press(self, key: str, windows: Sequence[str]) -> None:
        """Do what a key asks for."""
        if self.is_typing:
            self._type(key)
        elif key in _SCROLL:
            self.first = max(0, self.first + _SCROLL[key])
        elif key in ("s", "S"):
            self._sort_by(ORDERS[(ORDERS.index(self.sort) + (1 if key == "s" else -1)) % len(ORDERS)])
        elif key == "r":
            self.descending = not self.descending
        elif key == "w" and self.window in windows:
            self.window = windows[(windows.index(self.window) + 1) % len(windows)]
            self._history.clear()
        elif key == "/":
            self.is_typing, self.find = True, ""
        elif key == _ESCAPE:
            self.find = ""
        elif key == "q":
            self.is_done = True

    def _sort_by(self, column: str) -> None:
        self.sort, self.descending, self.first = column, column != "campaign", 0

    def _type(self, key: str) -> None:
        self.first = 0
        if key in _ENTER:
            self.is_typing = False
        elif key == _ESCAPE:
            self.is_typing, self.find = False, ""
        elif key in _ERASE:
            self.find = self.find[:-1]
        elif key.isprintable():
            self.find += key

    # --- drawing --------------------------------------------------------------------------------------------------

    def rows(self, fleet: Fleet) -> list[Row]:
        """Return what is searched for, in order."""
        wanted = self.find.casefold()
        found = [row for row in fleet.rows if wanted in row.campaign.casefold()]
        return ordered(found, self.sort, self.descending)

    def drawn(self, said: Said, width: int, height: int, now_s: float) -> RenderableType:
        """Return the screen, as large as there is room."""
        head = [*self._head(said, now_s)]
        room = max(1, height - len(head) - 5)
        rows = self.rows(said.fleet)
        self.first = min(self.first, max(0, len(rows) - room))
        shown = rows[self.first : self.first + room]
        where = f"{self.first + 1:,} to {self.first + len(shown):,} of {len(rows):,}" if rows else "no campaign"
        find = Text(f"find: {safe(self.find)}{'_' if self.is_typing else ''}" if self.find or self.is_typing else "")
        foot = Text(f"{where}   {KEYS}", style="dim", no_wrap=True, overflow="ellipsis")
        return Group(*head, find, self.table(shown, width, trends=width >= _ROOM_FOR_LINES), foot)

    def _head(self, said: Said, now_s: float) -> Iterator[Text]:
        fleet = said.fleet
        rate = "" if said.rate is None else f"   {said.rate:,.0f} events/s"
        state = "up to date" if fleet.up_to_date else "not up to date"
        title = Text(no_wrap=True, overflow="ellipsis")
        title.append("streams top", style="bold")
        title.append(f"   window {self.window or '-'}   {_many(fleet.workers, 'worker')}, ")
        title.append(f"{_many(fleet.partitions, 'partition')}   {state}{rate}")
        yield title
        for line in stream_lines(fleet, now_s):
            yield Text(line, no_wrap=True, overflow="ellipsis")
        for problem in said.problems:
            yield Text(safe(problem), style="bold red", no_wrap=True, overflow="ellipsis")

    def table(self, rows: Sequence[Row], width: int, *, trends: bool) -> Table:
        """Return rows as a table, with the columns that have room."""
        columns, left = _fitting(width, trends)
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        table.add_column(self._title("campaign", "\nCampaign"), width=left, no_wrap=True, overflow="ellipsis")
        table.add_column("\nCur.", width=4)
        for name in columns:
            figure = COLUMNS.get(name)
            if figure is None:
                table.add_column("", width=_LOOKS, justify="right", no_wrap=True)
            else:
                table.add_column(self._title(name, figure.title), width=figure.width, justify="right", no_wrap=True)
        for row in rows:
            cells = [self._cell(row, name) for name in columns]
            table.add_row(Text(safe(row.campaign)), Text(safe(row.currency)), *cells)
        return table

    def _title(self, name: str, title: str) -> Text:
        if name != self.sort:
            return Text(title, style="bold")
        first, last = title.split("\n")
        return Text(f"{first}\n{'↓' if self.descending else '↑'}{last}", style="bold cyan")

    def _cell(self, row: Row, name: str) -> Text:
        if name not in COLUMNS:
            figure = name.removesuffix(_LINE)
            past = [getattr(one, figure) for one in self._history[row.campaign, row.currency]]
            return Text(bars(past, 1.0 if figure == "viewable_rate" else None), style="cyan")
        value = getattr(row, name)
        return Text("-" if value is None else format(value, COLUMNS[name].form))


def _fitting(width: int, trends: bool) -> tuple[list[str], int]:
    """Return the columns that have room beside the name, and how wide the name is."""
    wanted: list[tuple[str, int]] = []
    for name, column in COLUMNS.items():
        wanted.append((name, column.width))
        if trends and name in TRENDS:
            wanted.append((name + _LINE, _LOOKS))
    left = width - _NAME - _GAP - 4 - _GAP
    columns = []
    for name, needed in wanted:
        if left < needed + _GAP:
            break
        columns.append(name)
        left -= needed + _GAP
    return columns, min(_LONGEST_NAME, _NAME + left)


def bars(values: Sequence[float | None], top: float | None) -> str:
    """Return values as bars from 0 to `top`, or to twice their median; a gap where nothing is defined."""
    known = [value for value in values if value is not None]
    top = top or 2 * median(known or [0]) or 1.0
    return "".join(
        " " if value is None else _BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in values
    )


def stream_lines(fleet: Fleet, now_s: float) -> Iterator[str]:
    """Yield how the stream does."""
    yield (
        f"{fleet.lag:,} behind   {fleet.dead_letters:,} dead letters   {fleet.remembered:,} impressions remembered   "
        f"stream time {_moment(fleet.stream_time_s, now_s)}"
    )
    for topic, outcomes in fleet.events.items():
        told = [f"{count:,} {name.replace('_', ' ')}" for name, count in outcomes.items() if count]
        yield f"{topic}: {', '.join(reversed(told)) or 'none'}"


def _moment(at_s: float | None, now_s: float) -> str:
    if at_s is None:
        return "-"
    return f"{datetime.fromtimestamp(at_s, UTC):%H:%M:%S} UTC, {max(0.0, now_s - at_s):,.0f} s ago"


def _many(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"
