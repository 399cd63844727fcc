"""The effects of a whole journal record at once: what `Partition` does render by render and view by view, as columns.

Law: it gives the very same cells and rows. It is for recovery, where millions of impressions are remembered again.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streams.core.impressions import (
    COUNTED,
    CREDITS,
    DECLARED,
    INVALID,
    MEASURABLE,
    OVER_CAP,
    PER_CLICK,
    PER_VIEWABLE,
    VIEWABLE,
    Generation,
    Impressions,
    Rows,
)
from streams.core.panes import PANE_MS, Cell, Ledgers

FEW: Final = 100
"""So many rows or marks are dealt with faster one by one."""

_GAINS: Final = np.array([says | worth for says, worth in enumerate(CREDITS)], np.uint8)
_PANE_BITS: Final = 30
"""Panes have numbers below this power of two until the year 2300."""
_LARGEST: Final = 2**63 - 1

Numbers = NDArray[np.int64]


def count_rows(rows: Rows, groups: Sequence[Ledgers], bound: int) -> None:
    """Count the renders of a record; `groups` are the ledgers of each of its series."""
    born, ts = np.frombuffer(rows.born, np.uint8), np.frombuffer(rows.ts, np.int64)
    chosen = ((born & (COUNTED | INVALID)) != 0) & (ts >= bound)
    born, cost = born[chosen], np.frombuffer(rows.cost, np.int64)[chosen]
    cells = _Cells(np.frombuffer(rows.which, np.uint32)[chosen], ts[chosen])
    counted = (born & COUNTED) != 0
    served = cells.count(counted)
    cells.add_to(
        groups,
        served=served,
        spend=cells.total(cost, counted & ((born & (PER_VIEWABLE | PER_CLICK)) == 0)),
        gross=cells.count(born > 0),
        revision=served,
        declared=cells.count(counted & ((born & DECLARED) != 0)),
        over_cap=cells.count(counted & ((born & OVER_CAP) != 0)),
    )


def count_marks(impressions: Impressions, rows: bytes, says: bytes, bound: int) -> None:
    """Count views: the row of each, and what it says as bits of a row. Rows that are forgotten are passed over."""
    numbers, told = np.frombuffer(rows, np.uint64).astype(np.int64), np.frombuffer(says, np.uint8)
    for generation in impressions.generations:
        here = (numbers >= max(generation.start, impressions.first)) & (numbers < generation.end)
        if here.any():
            _mark(generation, numbers[here] - generation.start, told[here], bound)


def _mark(generation: Generation, positions: Numbers, says: NDArray[np.uint8], bound: int) -> None:
    bits = np.frombuffer(generation.bits, np.uint8)
    seen, which_seen = np.unique(positions, return_inverse=True)
    before = bits[seen]
    np.bitwise_or.at(bits, positions, _GAINS[says])
    views = np.bincount(which_seen)
    gained, ts = bits[seen] & ~before, np.frombuffer(generation.ts, np.int64)[seen]
    open_panes = ts >= bound
    seen, views, gained, ts = seen[open_panes], views[open_panes], gained[open_panes], ts[open_panes]
    cells = _Cells(np.frombuffer(generation.which, np.uint32)[seen], ts)
    born, cost = np.frombuffer(generation.born, np.uint8)[seen], np.frombuffer(generation.cost, np.int64)[seen]
    viewable = (gained & VIEWABLE) != 0
    cells.add_to(
        generation.groups,
        measurable=cells.count((gained & MEASURABLE) != 0),
        viewable=cells.count(viewable),
        spend=cells.total(cost, viewable & ((born & PER_VIEWABLE) != 0)),
        revision=cells.total(views, views > 0),
    )


class _Cells:
    """Which cell each of many rows belongs to, and sums over the rows of each cell."""

    def __init__(self, which: NDArray[np.uint32], ts: Numbers) -> None:
        places = (which.astype(np.int64) << _PANE_BITS) | ts // PANE_MS
        self._places, self._cell_of = np.unique(places, return_inverse=True)

    def count(self, chosen: NDArray[np.bool_]) -> Any:
        return np.bincount(self._cell_of[chosen], minlength=len(self._places))

    def total(self, values: Numbers, chosen: NDArray[np.bool_]) -> Any:
        values = values[chosen]
        exact = object if len(values) and int(values.max()) > _LARGEST // len(values) else np.int64
        totals = np.zeros(len(self._places), exact)
        np.add.at(totals, self._cell_of[chosen], values.astype(exact))
        return totals

    def add_to(self, groups: Sequence[Ledgers], **figures: Any) -> None:
        columns = [column.tolist() for column in figures.values()]
        for place, *values in zip(self._places.tolist(), *columns, strict=True):
            difference = Cell(**dict(zip(figures, values, strict=True)))
            pane = (place & ((1 << _PANE_BITS) - 1)) * PANE_MS
            for ledger in groups[place >> _PANE_BITS]:
                ledger.touch(pane).add(difference)
