"""Many renders or views at once, as columns: what becomes of the plain ones, and all that they add to the cells.

Law: it gives the very same rows and cells as one event after the other. A column costs what one event costs alone.
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
)
from streams.core.lookup import Numbers
from streams.core.panes import PANE_MS, Cell, Ledgers

WORTH: Final = np.array([says | worth for says, worth in enumerate(CREDITS)], np.uint8)
"""By what a view says, as bits of a row, all the bits that the row has by it."""
_PANE_BITS: Final = 30
"""Panes have numbers below this power of two until the year 2300."""
_LARGEST: Final = 2**63 - 1


def count_rows(generation: Generation, begin: int, end: int, bound: int) -> None:
    """Add the renders at positions [begin, end) to the cells, but for those before the bound."""
    born, ts = np.frombuffer(generation.born, np.uint8)[begin:end], generation.times[begin:end]
    chosen = ((born & (COUNTED | INVALID)) != 0) & (ts >= bound)
    born, cost = born[chosen], np.frombuffer(generation.cost, np.int64)[begin:end][chosen]
    cells = _Cells(np.frombuffer(generation.which, np.uint32)[begin:end][chosen], ts[chosen])
    counted = (born & COUNTED) != 0
    served = cells.count(counted)
    cells.add_to(
        generation.groups,
        served=served,
        spend=cells.total(cost, counted & ((born & (PER_VIEWABLE | PER_CLICK)) == 0)),
        gross=cells.count(born > 0),
        revision=served,
        declared=cells.count(counted & ((born & DECLARED) != 0)),
        over_cap=cells.count(counted & ((born & OVER_CAP) != 0)),
    )


def count_views(generation: Generation, positions: Numbers, gains: NDArray[np.uint8], bound: int) -> None:
    """Add counted views to the cells: the position of each, and the bits that its row gained by it."""
    ts = generation.times.take(positions)
    held = ts >= bound
    positions, gains, ts = positions[held], gains[held], ts[held]
    cells = _Cells(np.frombuffer(generation.which, np.uint32).take(positions), ts)
    born = np.frombuffer(generation.born, np.uint8).take(positions)
    viewable = (gains & VIEWABLE) != 0
    cells.add_to(
        generation.groups,
        measurable=cells.count((gains & MEASURABLE) != 0),
        viewable=cells.count(viewable),
        spend=cells.total(
            np.frombuffer(generation.cost, np.int64).take(positions), viewable & ((born & PER_VIEWABLE) != 0)
        ),
        revision=cells.count(np.ones(len(positions), np.bool_)),
    )


def mark(generation: Generation, positions: Numbers, says: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give rows what counted views say of them; return the bits that each row gained by each of its views.

    Of several views of one row, the first is told to have gained what all of them did.
    """
    bits = np.frombuffer(generation.bits, np.uint8)
    seen, first = np.unique(positions, return_index=True)
    before = bits[seen]
    np.bitwise_or.at(bits, positions, WORTH[says])
    gains = np.zeros(len(positions), np.uint8)
    gains[first] = bits[seen] & ~before
    return gains


def repeated(values: Numbers) -> NDArray[np.bool_]:
    """Say of each value whether it is there more than once."""
    order, found = values.argsort(), np.zeros(len(values), np.bool_)
    ordered = values.take(order)
    same = (ordered[1:] == ordered[:-1]).nonzero()[0]
    found[order.take(same)] = found[order.take(same + 1)] = True
    return found


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
        nothing = np.zeros(len(self._places), np.int64)
        columns = [figures.get(name, nothing).tolist() for name in Cell.__struct_fields__]
        for place, *values in zip(self._places.tolist(), *columns, strict=True):
            difference = Cell(*values)
            pane = (place & ((1 << _PANE_BITS) - 1)) * PANE_MS
            for ledger in groups[place >> _PANE_BITS]:
                ledger.add(pane, difference)
