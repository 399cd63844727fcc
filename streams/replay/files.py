"""Files as topics: a file is one partition, a line is a record, its number from 1 on is the offset.

Law: only the lines of a file count, in their order: not its compression, nor in what pieces it is read. A row of
Parquet is what a line of JSON with its columns is, those that are null left out; times may be timestamps.
"""

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

STDIN: Final = Path("-")
_GZIP: Final = b"\x1f\x8b"
_PARQUET: Final = ".parquet"
_BUFFER: Final = 1 << 18
_CHARACTER: Final = 4
"""Bytes of the longest character: JSON in UTF-16 or UTF-32 has a NUL among the first so many, UTF-8 has none."""


class FileError(Exception):
    """A file that cannot be read to its end as lines of UTF-8; the message names the file and says why."""


class Lines(NamedTuple):
    """Consecutive lines; `first` is the number of the first one."""

    first: int
    values: list[bytes]


class LineFile:
    """One file, gzip or not, open from the start on: raises FileError if it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = "standard input" if path == STDIN else str(path)
        with self._named_errors():
            raw: Any = sys.stdin.buffer if path == STDIN else path.open("rb", 0)
            self._file: io.BufferedReader = io.BufferedReader(raw, _BUFFER)
            self.size = path.stat().st_size if path.is_file() else None
            """Bytes that there are to read, as they lie there; None where that is not known, as of a pipe."""

    @property
    def position(self) -> int:
        """Bytes read so far, as they lie there; 0 where there is no size to compare it with."""
        return 0 if self.size is None else self._file.tell()

    def chunks(self, length: int) -> Iterator[Lines]:
        """Yield, once, all lines in pieces of so many. Raises FileError where the file cannot be read on."""
        with self._named_errors():
            lines = self._text()
            first = 1
            while piece := list(islice(lines, length)):
                yield Lines(first, piece)
                first += len(piece)

    def close(self) -> None:
        """Close the file; standard input is not ours to close."""
        if self.path == STDIN:
            self._file.detach()
        else:
            self._file.close()

    def _text(self) -> io.BufferedReader:
        text = self._unpacked()
        start = text.peek(_CHARACTER)[:_CHARACTER]
        if b"\0" in start:
            raise FileError(f"{self.name}: is not UTF-8")
        if start.startswith(codecs.BOM_UTF8):
            text.read(len(codecs.BOM_UTF8))
        return text

    def _unpacked(self) -> io.BufferedReader:
        start = self._file.peek(len(_GZIP))
        if self.path.suffix != ".gz" and not start.startswith(_GZIP):
            return self._file
        if not start:
            raise EOFError
        return io.BufferedReader(gzip.GzipFile(fileobj=self._file), _BUFFER)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except gzip.BadGzipFile:
            raise FileError(f"{self.name}: is not gzip, or damaged") from None
        except (EOFError, zlib.error):
            raise FileError(f"{self.name}: gzip that is damaged or cut off") from None
        except OSError as error:
            raise FileError(f"{self.name}: {error.strerror or error}") from None


class ParquetFile:
    """One file, open from the start on: raises FileError if it cannot be, or without the extra `parquet`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        try:
            from pyarrow import parquet  # noqa: PLC0415 - an extra, and half a second
        except ImportError:
            raise FileError(f"{path}: Parquet wants pyarrow: pip install 'impression-streams[parquet]'") from None
        with self._named_errors():
            self._file: Any = parquet.ParquetFile(path)
        self.size: int | None = path.stat().st_size
        self._rows = 0

    @property
    def position(self) -> int:
        """Bytes read so far, as far as the share of rows tells."""
        rows: int = self._file.metadata.num_rows
        return (self.size or 0) * self._rows // max(1, rows)

    def chunks(self, length: int) -> Iterator[Lines]:
        """Yield, once, all rows as lines of JSON in pieces of so many. Raises FileError where it cannot be read on."""
        with self._named_errors():
            for batch in self._file.iter_batches(length):
                values = [_line(row) for row in batch.to_pylist()]
                yield Lines(self._rows + 1, values)
                self._rows += len(values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(f"{self.name}: {error.strerror or 'is damaged'}") from None
        except ValueError:  # pyarrow's own errors are some, too
            raise FileError(f"{self.name}: is not Parquet, or damaged") from None


def _line(row: dict[str, Any]) -> bytes:
    fields = {name: value for name, value in row.items() if value is not None}
    try:
        return orjson.dumps(fields, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except (orjson.JSONEncodeError, UnicodeError):
        return b""  # what JSON cannot say is no event


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError


EventFile = LineFile | ParquetFile


@contextmanager
def opened(paths: Mapping[str, Path | None]) -> Iterator[dict[str, EventFile]]:
    """Open the file of each topic that has one. Raises FileError."""
    with ExitStack() as stack:
        yield {topic: stack.enter_context(closing(_open(path))) for topic, path in paths.items() if path is not None}


def _open(path: Path) -> EventFile:
    return ParquetFile(path) if path.suffix == _PARQUET else LineFile(path)
