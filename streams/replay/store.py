"""What a run has counted so far, in one SQLite file: so that a kill at any moment costs a few seconds, not the run.

Law: a checkpoint is one transaction. It holds the journal of every partition of viewers, as the worker writes it, and
the cells of the range with their figures as they were then: wholly in or wholly out.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import orjson

from streams.core.delta import Delta
from streams.core.panes import PANE_MS, Cell, Series, Touched
from streams.replay.tally import Refused
from streams.wire.records import RecordError, decode_delta, encode_delta

_FIGURES: Final = Cell.__struct_fields__
_COLUMNS: Final = ", ".join(_FIGURES)
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (partition, seq, delta BLOB, PRIMARY KEY (partition, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cells (
    campaign TEXT, currency TEXT, source TEXT, pane, partition, {_COLUMNS},
    PRIMARY KEY (campaign, currency, source, pane, partition)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS panes ON cells (pane);
CREATE TABLE IF NOT EXISTS refused (
    campaign TEXT, source TEXT, minute, outcome TEXT, count, PRIMARY KEY (campaign, source, minute, outcome)
) WITHOUT ROWID;
"""
# Here and below, what is put into a statement are names of our own; all values are bound.
_PUT_CELL: Final = f"INSERT OR REPLACE INTO cells VALUES ({', '.join('?' * (5 + len(_FIGURES)))})"  # noqa: S608 - ?s
_ORDER: Final = "ORDER BY campaign, currency, source, pane"
_ADD_REFUSED: Final = (
    "INSERT INTO refused VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
)


class StoreError(Exception):
    """A run whose file cannot be used or written; the message says why and what to do."""


class Store:
    """The file of one run; `path` None keeps it in a temporary one. Use as a context manager; raises StoreError."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._db = sqlite3.connect("" if path is None else path, timeout=0, isolation_level=None)
        with self._named_errors():
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def delete(self) -> None:
        """Delete the file: the run is done."""
        self._db.close()
        if self.path is not None:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            where = "a temporary file" if self.path is None else str(self.path)
            if "locked" in str(error):
                raise StoreError(f"{where}: another process is at work on this run") from None
            raise StoreError(f"{where}: {error}; nothing that was counted before is lost") from None
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path}: is no file of a run ({error}); delete it") from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that is put into it, or nothing."""
        with self._named_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # --- what is kept of the run itself ------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        """Return a value that was kept under a name, None without one."""
        with self._named_errors():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def keep(self, name: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        with self._named_errors():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, orjson.dumps(value)))

    def restart(self, kept: Iterable[str]) -> None:
        """Forget all that was counted, and all values but these."""
        values = {name: self.get(name) for name in kept}
        with self.transaction():
            for table in ("meta", "journal", "cells", "refused"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - a name of our own
            for name, value in values.items():
                if value is not None:
                    self.keep(name, value)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def put_cells(self, partition: int, cells: Iterable[Touched]) -> None:
        """Write cells of a partition of viewers with all their figures. Spend is text: it may be too long a number."""
        rows = (
            (one.series.campaign_id, one.series.currency, one.series.source, one.pane, partition, *_row(one.cell))
            for one in cells
        )
        self._db.executemany(_PUT_CELL, rows)

    def add_refused(self, counts: Iterable[tuple[Refused, int]]) -> None:
        """Add renders that did not count."""
        self._db.executemany(_ADD_REFUSED, ((*place, count) for place, count in counts))

    def put_delta(self, partition: int, delta: Delta, expired: Iterable[int]) -> None:
        """Write the next journal record of a partition, and delete those that nothing needs any more."""
        self._db.executemany("DELETE FROM journal WHERE partition = ? AND seq = ?", ((partition, n) for n in expired))
        self._db.execute("INSERT INTO journal VALUES (?, ?, ?)", (partition, delta.seq, encode_delta(delta)))

    def deltas(self, partition: int) -> Iterator[Delta]:
        """Yield the journal of a partition, oldest first."""
        rows = self._db.execute("SELECT delta FROM journal WHERE partition = ? ORDER BY seq", (partition,))
        for (data,) in rows:
            try:
                yield decode_delta(data)
            except RecordError as error:
                raise StoreError(f"{self.path}: {error}; begin anew with --restart") from None

    # --- what was counted --------------------------------------------------------------------------------------------

    def cells(self, since: int = 0, until: int = 1 << 62) -> Iterator[tuple[Series, int, Cell]]:
        """Yield the cells of all partitions together, by series and then by pane: of the panes between two times."""
        where = "WHERE pane >= ? AND pane < ?" if since else "WHERE +pane >= ? AND +pane < ?"  # an index only for few
        rows = self._db.execute(f"SELECT * FROM cells {where} {_ORDER}", (since, until))  # noqa: S608 - our own
        yield from _summed(rows)

    def cells_by_pane(self) -> Iterator[tuple[int, list[tuple[Series, Cell]]]]:
        """Yield the cells of all partitions together, a pane at a time, in order."""
        rows = self._db.execute("SELECT * FROM cells ORDER BY pane, campaign, currency, source")
        for pane, group in groupby(_summed(rows), key=lambda one: one[1]):
            yield pane, [(series, cell) for series, _, cell in group]

    def extent(self) -> tuple[int, int]:
        """Return the start of the first pane and the end of the last one that hold anything, in ms; 0, 0 of nothing."""
        first, last = self._db.execute("SELECT min(pane), max(pane) FROM cells").fetchone()
        return (0, 0) if first is None else (first, last + PANE_MS)

    def refused(self) -> Iterator[tuple[Refused, int]]:
        """Yield the renders that did not count, by campaign, source, minute and outcome."""
        for *place, count in self._db.execute("SELECT * FROM refused ORDER BY campaign, source, minute, outcome"):
            yield Refused(*place), count


def _row(cell: Cell) -> list[Any]:
    return [str(cell.spend) if name == "spend" else getattr(cell, name) for name in _FIGURES]


def _summed(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Series, int, Cell]]:
    """Add up what the partitions say of one series and pane: they lie beside each other."""
    for (campaign, currency, source, pane), group in groupby(rows, key=lambda row: row[:4]):
        total = Cell()
        for row in group:
            total.add(Cell(*map(int, row[5:])))
        yield Series(campaign, currency, source), pane, total
