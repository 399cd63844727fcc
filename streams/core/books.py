"""Whose figures an impression goes to: its campaign's, and of each dimension one segment's.

Law: a ledger is held as long as it has a pane that is not forgotten, and every impression that can still change a pane
finds the same ledger.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from streams.core.events import DEFAULT_SOURCE, Render
from streams.core.panes import Ledger, Ledgers, Series, Touched

DIMENSIONS: Final[Mapping[str, str]] = {
    "country": "country",
    "creative": "creative_id",
    "device": "device",
    "format": "format",
    "line_item": "line_item_id",
    "placement": "placement",
}
"""By what a campaign can be cut into segments, and the field of a render that says it."""

UNKNOWN: Final = "unknown"
"""The segment of impressions that say nothing of a dimension."""
_DEFAULTS: Final = {"format": "display"}


class Books:
    """The ledgers of one partition, by series."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self.ledgers: dict[Series, Ledger] = {}
        self._changed: list[Ledger] = []
        """Those with changes since the last `close`."""
        self._dimensions = tuple(dimensions)
        self.fields = ("campaign_id", "source", *(DIMENSIONS[name] for name in dimensions))
        """The fields of a render that say, with its currency, where it is counted."""

    def of(self, render: Render, currency: str) -> Ledgers:
        """Return where a render is counted."""
        whose = (render.campaign_id, currency, render.source or DEFAULT_SOURCE)
        values = [getattr(render, DIMENSIONS[name]) or _DEFAULTS.get(name, UNKNOWN) for name in self._dimensions]
        segments = [Series(*whose, *segment) for segment in zip(self._dimensions, values, strict=True)]
        return self.open(Series(*whose), segments)

    def open(self, series: Series, segments: Sequence[Series]) -> Ledgers:
        """Return the ledgers of a campaign's series and of its segments."""
        return tuple(self._ledger(one) for one in (series, *segments))

    def _ledger(self, series: Series) -> Ledger:
        ledger = self.ledgers.get(series)
        if ledger is None:
            own = series.shared()
            ledger = self.ledgers[own] = Ledger(own, self._changed)
        return ledger

    def touched(self) -> list[Touched]:
        """Return the cells that changed since the last `close`."""
        return [
            Touched(ledger.series, pane, ledger.at(pane)) for ledger in self._changed for pane in sorted(ledger.touched)
        ]

    def cells(self) -> list[Touched]:
        """Return every cell."""
        return [Touched(ledger.series, pane, cell) for ledger in self.ledgers.values() for pane, cell in ledger.cells()]

    def close(self) -> None:
        """Begin to note changes anew."""
        for ledger in self._changed:
            ledger.close()
        self._changed.clear()

    def forget(self, start: int, stop: int) -> bool:
        """Forget the panes in [start, stop), and ledgers without any; say whether some have to be looked for again."""
        before = len(self.ledgers)
        for series, ledger in list(self.ledgers.items()):
            ledger.forget(start, stop)
            if ledger.is_empty():
                del self.ledgers[series]
        return len(self.ledgers) < before
