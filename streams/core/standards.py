"""When an ad counts as seen (MRC), and what a raw signal says of it.

Law: a threshold is met by reaching it. A signal says "viewable" if it meets all that the render's standard asks,
"not viewable" (so measurable) if it misses any of it, and is undetermined if what it leaves out could decide.
Which standard holds belongs to the render, so a signal that comes first is judged by each of them.
"""

from typing import Final, NamedTuple

from streams.core.events import Render, Viewability, ViewabilityKind


class Standard(NamedTuple):
    """What has to be reached; None asks for nothing. Times in ms, the share of the ad in view in percent."""

    in_view_pct: float | None = None
    continuous_ms: int | None = None
    played_ms: int | None = None
    audible: bool = False


STANDARDS: Final = (
    Standard(in_view_pct=50, continuous_ms=1_000),
    Standard(in_view_pct=30, continuous_ms=1_000),
    Standard(in_view_pct=50, continuous_ms=2_000, played_ms=2_000),
    Standard(played_ms=2_000, audible=True),
)
"""The standards by the numbers below."""
DISPLAY: Final = 0
LARGE_DISPLAY: Final = 1
VIDEO: Final = 2
AUDIO: Final = 3

LARGE_PX: Final = 242_500
"""Area from which on a display ad on desktop is a large one: 970 x 250."""


def standard_of(render: Render) -> int:
    """Return the number of the standard that holds for a render. Native ads are display ads."""
    if render.format == "video":
        return VIDEO
    if render.format == "audio":
        return AUDIO
    if render.device == "desktop" and (render.width or 0) * (render.height or 0) >= LARGE_PX:
        return LARGE_DISPLAY
    return DISPLAY


def verdict(standard: Standard, signal: Viewability) -> ViewabilityKind:
    """Return what a raw signal says under a standard. Focus and sound only count against it, where they are told."""
    answers = [
        _reaches(signal.in_view_pct, standard.in_view_pct),
        _reaches(signal.continuous_ms, standard.continuous_ms),
        _reaches(signal.played_ms, standard.played_ms),
        signal.in_focus is not False,
        not (standard.audible and signal.muted),
    ]
    if False in answers:
        return "not_viewable"
    return "undetermined" if None in answers else "viewable"


def _reaches(told: float | None, asked: float | None) -> bool | None:
    """Say whether a figure reaches what is asked; None if it is asked for and not told."""
    if asked is None:
        return True
    return None if told is None else told >= asked
