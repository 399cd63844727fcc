"""Every ratio that the program shows, computed in this one place from integer figures.

Law: a ratio without a denominator is None, never 0. Three rates have three names (README, glossary): the viewable rate
is viewable / measurable (the MRC's), viewable of served is viewable / served, the measured rate is measurable / served.
"""

from streams.core.money import NANO
from streams.core.panes import Cell


def ratio(numerator: int, denominator: int, min_sample: int = 1) -> float | None:
    """Return the correctly rounded quotient; None while the denominator is 0 or below the smallest sample."""
    return numerator / denominator if denominator and denominator >= min_sample else None


def cpm(cell: Cell, min_sample: int = 1) -> float | None:
    """Return spend x 1000 / served, in currency units."""
    return _per(cell.spend * 1000, cell.served, min_sample)


def vcpm(cell: Cell, min_sample: int = 1) -> float | None:
    """Return spend x 1000 / viewable, in currency units: all spend, over what was seen."""
    return _per(cell.spend * 1000, cell.viewable, min_sample)


def cpc(cell: Cell, min_sample: int = 1) -> float | None:
    """Return spend / clicks, in currency units."""
    return _per(cell.spend, cell.clicks, min_sample)


def viewable_rate(cell: Cell, min_sample: int = 1) -> float | None:
    """Return viewable / measurable."""
    return ratio(cell.viewable, cell.measurable, min_sample)


def viewable_of_served(cell: Cell, min_sample: int = 1) -> float | None:
    """Return viewable / served."""
    return ratio(cell.viewable, cell.served, min_sample)


def measured_rate(cell: Cell, min_sample: int = 1) -> float | None:
    """Return measurable / served."""
    return ratio(cell.measurable, cell.served, min_sample)


def ctr(cell: Cell, min_sample: int = 1) -> float | None:
    """Return clicks / served."""
    return ratio(cell.clicks, cell.served, min_sample)


def _per(nano: int, count: int, min_sample: int) -> float | None:
    return nano / (count * NANO) if count and count >= min_sample else None
