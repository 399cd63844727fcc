"""Every ratio that the program shows, computed in this one place from integer figures.

Law: a ratio without a denominator is None, never 0. Three rates have three names (README, glossary): the viewable rate
is viewable / measurable (the MRC's), viewable of served is viewable / served, the measured rate is measurable / served.
"""

from collections.abc import Callable, Collection, Iterable
from itertools import compress
from math import gcd
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streams.core.money import NANO, decimal_text
from streams.core.panes import Cell

Column = NDArray[Any]
"""One figure of many cells: int64, or Python's integers where one of them does not fit; ratios are float64."""


class Columns:
    """The figures of many cells by their names, each read from the cells when it is first asked for."""

    def __init__(self, cells: Collection[Cell]) -> None:
        self._cells = cells
        self._known: dict[str, Column] = {}

    def __getitem__(self, figure: str) -> Column:
        """Return a figure of each cell."""
        column = self._known.get(figure)
        if column is None:
            column = self._known[figure] = _column(self._cells, attrgetter(figure))
        return column

    def only(self, there: Iterable[bool]) -> "Columns":
        """Return those of a part of the cells."""
        return Columns([*compress(self._cells, there)])


def _column(cells: Collection[Cell], figure: Callable[[Cell], int]) -> Column:
    try:
        return np.fromiter(map(figure, cells), np.int64, len(cells))
    except OverflowError:
        return np.array([*map(figure, cells)], object)


def ratio(numerator: int, denominator: int, min_sample: int = 1) -> float | None:
    """Return the correctly rounded quotient; None while the denominator is 0 or below the smallest sample."""
    return numerator / denominator if denominator and denominator >= min_sample else None


class Rate:
    """A ratio of two figures of a cell, so many times the numerator over so many times the denominator.

    Call it for that of one cell; None while the denominator is 0 or below the smallest sample.
    """

    def __init__(self, numerator: str, denominator: str, times: int = 1, over: int = 1) -> None:
        self._numerator, self._denominator = numerator, denominator
        common = gcd(times, over)  # the smaller both are, the larger figures are exact as floats
        self._times, self._over = times // common, over // common

    def __call__(self, cell: Cell, min_sample: int = 1) -> float | None:
        """Return it of a cell."""
        denominator = getattr(cell, self._denominator) * self._over
        return ratio(getattr(cell, self._numerator) * self._times, denominator, min_sample * self._over)

    def of_all(self, columns: Columns, min_sample: int = 1) -> Column:
        """Return it of each of many cells, NaN where it is None of one."""
        numerators, denominators = columns[self._numerator], columns[self._denominator]
        there = denominators >= max(1, min_sample)
        ratios = np.full(len(there), np.nan)
        ratios[there] = _quotients(numerators[there], self._times, denominators[there], self._over)
        return ratios


def spend(columns: Columns) -> Column:
    """Return what each of many cells cost in currency units, correctly rounded."""
    return _quotients(columns["spend"], 1, np.ones(1, np.int64), NANO)


def _quotients(numerators: Column, times: int, denominators: Column, over: int) -> Column:
    """Return correctly rounded quotients: numpy's where both are exact as floats, else those of Python's integers."""
    if _is_beyond_floats(numerators, times) or _is_beyond_floats(denominators, over):
        numerators, denominators = numerators.astype(object), denominators.astype(object)
    return np.asarray(numerators * times / (denominators * over), np.float64)


_EXACT: Final = 2**53
"""Every integer up to it is a float."""


def _is_beyond_floats(figures: Column, times: int) -> bool:
    return int(np.abs(figures).max(initial=0)) * times > _EXACT


cpm: Final = Rate("spend", "served", 1000, NANO)
"""Spend x 1000 / served, in currency units."""
vcpm: Final = Rate("spend", "viewable", 1000, NANO)
"""Spend x 1000 / viewable, in currency units: all spend, over what was seen."""
cpc: Final = Rate("spend", "clicks", 1, NANO)
"""Spend / clicks, in currency units."""
viewable_rate: Final = Rate("viewable", "measurable")
"""Viewable / measurable, the MRC's."""
viewable_of_served: Final = Rate("viewable", "served")
measured_rate: Final = Rate("measurable", "served")
ctr: Final = Rate("clicks", "served")


def per_thousand(nano: int, count: int) -> str | None:
    """Return nano-units x 1000 / count as decimal text, rounded once to a nano-unit, half to even."""
    return each(nano * 1000, count)


def each(nano: int, count: int) -> str | None:
    """Return nano-units / count as decimal text, rounded once to a nano-unit, half to even."""
    if not count:
        return None
    whole, rest = divmod(nano, count)
    return decimal_text(whole + (2 * rest > count or (2 * rest == count and whole % 2)))
