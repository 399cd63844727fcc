"""CSV files with a header: any delimiter, any order of columns, text before the header, and rows that are broken.

Law: a row is a line, and a broken one costs itself alone. What a quote that is not closed in its line has swallowed is
read again, line by line.
"""

import csv
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final

from streams.sources.adapter import BadRow, HeaderError, Made, Options, Reader, Row, RowError

DELIMITERS: Final = ",\t;^|\x01"
HEADER_WITHIN: Final = 50
"""Reports begin with lines about themselves; a header is looked for in so many."""

Cells = list[str]
MadeOf = Callable[[Cells], Sequence[Made]]
"""What to make of a row."""


def plain(name: str) -> str:
    """Return a column's name without what systems and exports write differently: case, spaces, marks other than %."""
    return "".join(mark for mark in name.casefold() if mark.isalnum() or mark == "%")


class Columns:
    """Where the columns of a file are. A row is given to `pick` with one empty cell more: what is missing is empty."""

    def __init__(self, header: Cells, file: str) -> None:
        self.file = file
        self.width = len(header)
        self._at: dict[str, int] = {}
        for index, name in enumerate(header):
            self._at.setdefault(plain(name), index)

    def has(self, *names: str) -> bool:
        """Say whether there is a column of one of these names."""
        return any(plain(name) in self._at for name in names)

    def index(self, *names: str) -> int:
        """Return where the first of these names is that there is; -1, the empty cell, where none is."""
        return next((self._at[plain(name)] for name in names if plain(name) in self._at), -1)

    def pick(self, *columns: str | tuple[str, ...]) -> Callable[[Cells], tuple[str, ...]]:
        """Return a function that takes these cells out of a row. A tuple is one column under several names."""
        names = [(column,) if isinstance(column, str) else column for column in columns]
        return itemgetter(*(self.index(*each) for each in names))


def table(open_rows: Callable[[Columns, Options], MadeOf], *required: str | tuple[str, ...]) -> Reader:
    """Return a reader of CSV files that have these columns; `open_rows` says what to make of a row's cells."""

    def read(lines: Iterator[str], file: str, options: Options) -> Iterator[Row]:
        columns, rows = opened(lines, file, *required)
        made_of = open_rows(columns, options)
        for line, cells in rows:
            if isinstance(cells, BadRow):
                yield cells
                continue
            try:
                yield line, made_of(cells)
            except RowError as error:
                yield error.at(line)

    return read


def opened(
    lines: Iterator[str], file: str, *required: str | tuple[str, ...]
) -> tuple[Columns, Iterator[tuple[int, Cells | BadRow]]]:
    """Return the columns of a file, and its rows as `pick` takes them. Raises HeaderError without those required."""
    start = list(islice(lines, HEADER_WITHIN))
    number, delimiter, columns = _header(start, file, required)
    return columns, split(chain(start[number:], lines), delimiter, number + 1, columns.width)


def _header(start: list[str], file: str, required: tuple[Any, ...]) -> tuple[int, str, Columns]:
    """Return how many lines the header ends after, the delimiter, and the columns."""
    best: tuple[int, list[str]] | None = None
    for number, line in enumerate(start, 1):
        for delimiter in DELIMITERS:
            columns = Columns(_cells(line, delimiter), file)
            names = [(name,) if isinstance(name, str) else name for name in required]
            missing = [" or ".join(each) for each in names if not columns.has(*each)]
            if not missing:
                return number, delimiter, columns
            if best is None or len(missing) < best[0]:
                best = len(missing), missing
    if best is None:
        raise HeaderError("is empty: not even a header")
    raise HeaderError(f"has no header with the columns {', '.join(best[1])}")


def _cells(line: str, delimiter: str) -> Cells:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def split(lines: Iterable[str], delimiter: str, first: int, width: int) -> Iterator[tuple[int, Cells | BadRow]]:
    """Yield rows of `width` cells and an empty one, with the number of their first line, which begins at `first`."""
    held = _Held(lines, first)
    its_lines = held.lines
    while True:
        reader = csv.reader(held.feed(), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if len(its_lines) > 1:
                    break
                if len(cells) == width:
                    cells.append("")
                    yield held.first, cells
                elif cells:
                    yield held.first, _uneven(held.first, cells, width)
                held.first += 1
                its_lines.clear()
            else:
                return
        except csv.Error as error:
            if len(its_lines) == 1:
                yield held.first, BadRow(held.first, "not_csv", str(error))
                held.done(1)
                continue
        yield held.first, BadRow(held.first, "not_csv", "a quote is not closed in its line")
        held.again()


class _Held:
    """Lines, and the memory of those that the row being read consists of: they can be had again but for the first."""

    def __init__(self, lines: Iterable[str], first: int) -> None:
        self.first = first
        self.lines: list[str] = []
        self._coming = iter(lines)
        self._again: deque[str] = deque()

    def feed(self) -> Iterator[str]:
        """Yield lines, first those that come again."""
        while self._again:
            self.lines.append(self._again.popleft())
            yield self.lines[-1]
        hold = self.lines.append
        for line in self._coming:
            hold(line)
            yield line

    def done(self, lines: int) -> None:
        """Go on to the next row."""
        self.first += lines
        self.lines.clear()

    def again(self) -> None:
        """Give up the first line of the row, and read what else was taken for it once more."""
        self._again.extendleft(reversed(self.lines[1:]))
        self.done(1)


def _uneven(line: int, cells: Cells, width: int) -> BadRow:
    return BadRow(line, "wrong_columns", f"has {len(cells)} cells, and the header {width}")
