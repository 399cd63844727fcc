"""What a run counted, as a report: for programs as JSON, each window as `campaign-windows` has it.

Law: a report is a function of what was counted and by which parameters; equal input gives equal bytes.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import orjson

from streams.core.campaigns import Campaigns
from streams.core.panes import Cell, minute_of
from streams.core.rollup import Window, figures_of, window_of
from streams.replay.store import Store
from streams.replay.tally import REFUSED
from streams.wire.records import encode_window

FORMAT: Final = 1
Row = dict[str, Any]


class DocumentError(Exception):
    """A file that is no report of a replay."""


class Document:
    """The report of a run that is counted."""

    def __init__(self, store: Store, campaigns: Campaigns) -> None:
        self._store = store
        self._campaigns = campaigns
        self.parameters: Row = store.get("parameters")
        self.summary: Row = store.get("summary")

    def campaigns(self) -> Iterator[Row]:
        """Yield what each campaign and currency has in the range, as its windows together."""
        for series, group in groupby(self._store.cells(), key=lambda one: one[0]):
            if self._campaigns.is_billed(series):
                yield figures_of(series, _sum(cell for _, _, cell in group))

    def windows(self) -> Iterator[Window]:
        """Yield the windows by campaign and currency and then by time."""
        return windows(self._store, self._campaigns, self.summary["final_before"])

    def refused(self) -> Iterator[Row]:
        """Yield, by campaign and minute, the renders of its billing source that did not count, by outcome."""
        own = (
            (place, count)
            for place, count in self._store.refused()
            if place.source == self._campaigns.billing_source_of(place.campaign_id)
        )
        for (campaign, minute), group in groupby(own, key=lambda one: (one[0].campaign_id, one[0].minute)):
            outcomes = {place.outcome: count for place, count in group}
            told = {name: outcomes[name] for name in REFUSED if name in outcomes}
            yield {"campaign_id": campaign, "start": minute} | told

    def write(self, file: IO[bytes]) -> None:
        """Write all of it as JSON, a window a line."""
        head = {"format": FORMAT, "parameters": self.parameters} | self.summary
        file.write(orjson.dumps(head, option=orjson.OPT_INDENT_2)[:-2])
        parts = {
            "campaigns": map(orjson.dumps, self.campaigns()),
            "refused": map(orjson.dumps, self.refused()),
            "windows": map(encode_window, self.windows()),
        }
        for name, lines in parts.items():
            file.write(b',\n  "%s": [' % name.encode())
            for number, line in enumerate(lines):
                file.write((b",\n    " if number else b"\n    ") + line)
            file.write(b"\n  ]")
        file.write(b"\n}\n")


def windows(
    store: Store, campaigns: Campaigns, final_before: int, since: int = 0, until: int = 1 << 62
) -> Iterator[Window]:
    """Yield the windows of billing sources between two times in ms, by campaign and currency and then by time."""
    for (series, minute), group in groupby(store.cells(since, until), key=lambda one: (one[0], minute_of(one[1]))):
        if campaigns.is_billed(series):
            yield window_of(series, minute, _sum(cell for _, _, cell in group), final_before)


def _sum(cells: Iterator[Cell]) -> Cell:
    total = Cell()
    for cell in cells:
        total.add(cell)
    return total


class Report(NamedTuple):
    """A report that was read: its windows and outcomes by their places."""

    name: str
    parameters: Row
    windows: dict[tuple[str, str, int], Row]
    refused: dict[tuple[str, int], Row]


def read(path: Path) -> Report:
    """Return what a report says. Raises DocumentError."""
    try:
        told = orjson.loads(path.read_bytes())
        windows = {(row["campaign_id"], row["currency"], row["start"]): row for row in told["windows"]}
        refused = {(row["campaign_id"], row["start"]): row for row in told["refused"]}
        report = Report(path.name, told["parameters"], windows, refused)
        known = told["format"] == FORMAT
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror}") from None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise DocumentError(f"{path}: is no report of streams replay (JSON)") from None
    if not known:
        raise DocumentError(f"{path}: is a report in another format ({told['format']}), made by another version")
    return report
