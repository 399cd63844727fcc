"""Small lines beside a figure: how it went over the last hour of event time, from the panes that the state holds.

Law: a line is a function of the state, so it is the same after a restart. What is undefined is a gap, not a 0.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from streams.core.panes import PANE_MS, Cell

WIDTH: Final = 96
HEIGHT: Final = 24
"""Of the box that a line is drawn in."""
_EDGE: Final = 2
_POINTS: Final = 30
_LONGEST_MS: Final = 3_600_000


class Span(NamedTuple):
    """The slices of event time that a line has its points from."""

    slice_ms: int
    slices: int

    @property
    def name(self) -> str:
        """How long the span is, in words."""
        seconds = self.slice_ms * self.slices // 1000
        minutes = seconds // 60
        return f"{minutes} min" if minutes else f"{seconds} s"


def span_of(longest_window_ms: int) -> Span:
    """Return up to an hour of what the longest window holds, in some 30 slices."""
    length = min(longest_window_ms, _LONGEST_MS)
    slice_ms = max(PANE_MS, length // _POINTS // PANE_MS * PANE_MS)
    return Span(slice_ms, -(-length // slice_ms))


def points(slices: Sequence[Cell], figure: Callable[[Cell], float | None]) -> list[float | None]:
    """Return a figure of each slice."""
    return [figure(cell) for cell in slices]


def line(values: Sequence[float | None], top: float) -> str:
    """Return values as an SVG path, 0 at the bottom and `top` at the top of the box. A lone value is a dot."""
    step = (WIDTH - 2 * _EDGE) / max(1, len(values) - 1)
    path, drawing = [], False
    for number, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        place = f"{_EDGE + number * step:.1f} {height(value, top):.1f}"
        path.append(f"L{place}" if drawing else f"M{place}h0")
        drawing = True
    return "".join(path)


def height(value: float, top: float) -> float:
    """Return how far from the upper edge of the box a value lies."""
    share = min(1.0, value / top) if top else 0.0
    return HEIGHT - _EDGE - share * (HEIGHT - 2 * _EDGE)


def in_words(name: str, values: Sequence[float | None], text: Callable[[float], str]) -> str:
    """Return what a line shows, for those who do not see it."""
    known = [value for value in values if value is not None]
    if not known:
        return f"{name}: nothing yet"
    return f"{name}: lowest {text(min(known))}, highest {text(max(known))}, newest {text(known[-1])}"
