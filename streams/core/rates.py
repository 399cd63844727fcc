"""Every ratio that the program shows, computed in this one place from integer figures.

Law: a ratio without a denominator is None, never 0. Three rates have three names (README, glossary): the viewable rate
is viewable / measurable (the MRC's), viewable of served is viewable / served, the measured rate is measurable / served.
"""

from streams.core.money import NANO, decimal_text
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


def per_thousand(nano: int, count: int) -> str | None:
    """Return nano-units x 1000 / count as decimal text, rounded once to a nano-unit, half to even."""
    return each(nano * 1000, count)


def each(nano: int, count: int) -> str | None:
    """Return nano-units / count as decimal text, rounded once to a nano-unit, half to even."""
    if not count:
        return None
    whole, rest = divmod(nano, count)
    return decimal_text(whole + (2 * rest > count or (2 * rest == count and whole % 2)))


def _per(nano: int, count: int, min_sample: int) -> float | None:
    return nano / (count * NANO) if count and count >= min_sample else None
