"""Every ratio that the program shows, computed in this one place from integer figures.

Law: a ratio without a denominator is None, never 0. Three rates have three names (README, glossary): the viewable rate
is viewable / measurable (the MRC's), viewable of served is viewable / served, the measured rate is measurable / served.
"""

from collections.abc import Collection
from operator import attrgetter
from typing import Final

from streams.core.money import NANO, decimal_text
from streams.core.panes import Cell


def ratio(numerator: int, denominator: int, min_sample: int = 1) -> float | None:
    """Return the correctly rounded quotient; None while the denominator is 0 or below the smallest sample."""
    return numerator / denominator if denominator and denominator >= min_sample else None


class Rate:
    """A ratio of two figures of a cell, so many times the numerator over so many times the denominator.

    Call it for that of one cell; None while the denominator is 0 or below the smallest sample.
    """

    def __init__(self, numerator: str, denominator: str, times: int = 1, over: int = 1) -> None:
        self._numerator, self._denominator = attrgetter(numerator), attrgetter(denominator)
        self._times, self._over = times, over

    def __call__(self, cell: Cell, min_sample: int = 1) -> float | None:
        """Return it of a cell."""
        denominator = self._denominator(cell) * self._over
        return ratio(self._numerator(cell) * self._times, denominator, min_sample * self._over)

    def of_all(self, cells: Collection[Cell], min_sample: int = 1) -> list[float | None]:
        """Return it of each of many cells: `ratio`, written out, as a call for each would take twice as long."""
        times, over, least = self._times, self._over, max(1, min_sample)
        return [
            numerator * times / (denominator * over) if denominator >= least else None
            for numerator, denominator in zip(map(self._numerator, cells), map(self._denominator, cells), strict=True)
        ]


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
