"""Whose figures an impression goes to: its campaign's, and of each dimension one segment's.

Law: a ledger is held as long as it has a pane that is not forgotten, and every impression that can still change a pane
finds the same ledger.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from streams.core.events import DEFAULT_SOURCE, Render
from streams.core.panes import Ledger, Ledgers, Series, Touched

DIMENSIONS: Final[Mapping[str, Callable[[Render], str | None]]] = {
    "country": lambda render: render.country,
    "creative": lambda render: render.creative_id,
    "device": lambda render: render.device,
    "format": lambda render: render.format or "display",
    "line_item": lambda render: render.line_item_id,
    "placement": lambda render: render.placement,
}
"""By what a campaign can be cut into segments."""

UNKNOWN: Final = "unknown"
"""The segment of impressions that say nothing of a dimension."""


class Books:
    """The ledgers of one partition, by series."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self.ledgers: dict[Series, Ledger] = {}
        self._dimensions = [(name, DIMENSIONS[name]) for name in dimensions]
        self._found: dict[tuple[str | None, ...], Ledgers] = {}

    def of(self, render: Render, currency: str) -> Ledgers:
        """Return where a render is counted."""
        place = (render.campaign_id, currency, render.source, *[value_of(render) for _, value_of in self._dimensions])
        found = self._found.get(place)
        if found is None:
            found = self._found[place] = self._look_up(render, currency)
        return found

    def _look_up(self, render: Render, currency: str) -> Ledgers:
        whose = (render.campaign_id, currency, render.source or DEFAULT_SOURCE)
        segments = [Series(*whose, name, value_of(render) or UNKNOWN) for name, value_of in self._dimensions]
        return self.open(Series(*whose), segments)

    def open(self, series: Series, segments: Sequence[Series]) -> Ledgers:
        """Return the ledgers of a campaign's series and of its segments."""
        return tuple(self._ledger(one) for one in (series, *segments))

    def _ledger(self, series: Series) -> Ledger:
        ledger = self.ledgers.get(series)
        if ledger is None:
            ledger = self.ledgers[series] = Ledger(series)
        return ledger

    def touched(self) -> list[Touched]:
        """Return the cells that changed since the last `close`."""
        return [
            Touched(ledger.series, pane, ledger.panes[pane])
            for ledger in self.ledgers.values()
            for pane in sorted(ledger.touched)
        ]

    def cells(self) -> list[Touched]:
        """Return every cell."""
        return [
            Touched(ledger.series, pane, cell)
            for ledger in self.ledgers.values()
            for pane, cell in sorted(ledger.panes.items())
        ]

    def close(self) -> None:
        """Begin to note changes anew. What was found by name is looked for again: it may be forgotten meanwhile."""
        self._found = {}
        for ledger in self.ledgers.values():
            ledger.touched.clear()

    def forget(self, start: int, stop: int) -> None:
        """Forget the panes in [start, stop), and ledgers without any."""
        for series, ledger in list(self.ledgers.items()):
            ledger.forget(start, stop)
            if not ledger.panes:
                del self.ledgers[series]
