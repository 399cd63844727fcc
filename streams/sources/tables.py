"""CSV files with a header: any delimiter, any order of columns, text before the header, and rows that are broken.

Law: a row is a line, and a broken one costs itself alone: a quote that is not closed in its line ends with it.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final

from streams.sources.adapter import BadRow, HeaderError, Made, Opened, Opener, Options, Row, RowError

DELIMITERS: Final = ",\t;^|\x01"
_WORDS: Final = {"unexpected end of data": "a quote is not closed in its line"}
"""What csv says, in words for somebody who looks at the line."""

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


def table(open_rows: Callable[[Columns, Options], MadeOf], *required: str | tuple[str, ...]) -> Opener:
    """Return how CSV files that have these columns are opened; `open_rows` says what to make of a row's cells."""

    def open_file(head: Sequence[str], file: str, options: Options) -> Opened:
        header, delimiter, columns = found_header(head, file, *required)
        made_of = open_rows(columns, options)

        def judge(lines: Iterable[str], first: int) -> Iterator[Row]:
            for line, cells in split(lines, delimiter, first, columns.width):
                if isinstance(cells, BadRow):
                    yield cells
                    continue
                try:
                    yield line, made_of(cells)
                except RowError as error:
                    yield error.at(line)

        return Opened(header, judge)

    return open_file


def found_header(head: Sequence[str], file: str, *required: str | tuple[str, ...]) -> tuple[int, str, Columns]:
    """Return how many lines the header ends after, the delimiter, and the columns. Raises HeaderError without one."""
    best: tuple[int, list[str]] | None = None
    for number, line in enumerate(head, 1):
        for delimiter in DELIMITERS:
            columns = Columns(_header_cells(line, delimiter), file)
            names = [(name,) if isinstance(name, str) else name for name in required]
            missing = [" or ".join(each) for each in names if not columns.has(*each)]
            if not missing:
                return number, delimiter, columns
            if best is None or len(missing) < best[0]:
                best = len(missing), missing
    if best is None:
        raise HeaderError("is empty: not even a header")
    raise HeaderError(f"has no header with the columns {', '.join(best[1])}")


def _header_cells(line: str, delimiter: str) -> Cells:
    try:
        return _cells(line, delimiter)
    except csv.Error:
        return []


def _cells(line: str, delimiter: str) -> Cells:
    """Return the cells of a line that has quotes, say. Raises csv.Error if they are not closed in it."""
    return next(csv.reader([line], delimiter=delimiter, strict=True), [])


def split(lines: Iterable[str], delimiter: str, first: int, width: int) -> Iterator[tuple[int, Cells | BadRow]]:
    """Yield rows of `width` cells and an empty one, with the number of their line; that of the first is `first`."""
    for number, ended in enumerate(lines, first):
        line = ended.rstrip("\r\n")
        if not line:
            continue
        try:
            # What has no quotes can be split in half the time.
            cells = _cells(line, delimiter) if '"' in line or "\r" in line else line.split(delimiter)
        except csv.Error as error:
            yield number, BadRow(number, "not_csv", _WORDS.get(str(error), str(error)))
            continue
        if len(cells) == width:
            cells.append("")
            yield number, cells
        else:
            yield number, BadRow(number, "wrong_columns", f"has {len(cells)} cells, and the header {width}")
