"""Event pixels of a measurement vendor: calls with the id of an impression that another system counted -> views."""

from collections.abc import Sequence
from typing import Final

from streams.core.events import VIEWABILITY
from streams.sources.adapter import Event, Made, Options, RowError, Skipped, System, filled, needed
from streams.sources.lines import MadeOf, Object, event_of, json_lines, said, text_of, times_of, whole_of

_KINDS: Final = {
    "measured": "measurable",
    "measurable": "measurable",
    "inview": "viewable",
    "viewable": "viewable",
    "outofview": "not_viewable",
    "notinview": "not_viewable",
    "notviewable": "not_viewable",
    "unmeasured": "undetermined",
    "unmeasurable": "undetermined",
    "notmeasured": "undetermined",
    "undetermined": "undetermined",
    "signal": "signal",
}
"""What the pixel says, in lower case and letters only -> kind."""


def pixels(name: str, moment: str, *impression: str) -> System:
    """Return the system of a vendor in whose pixels the impression's id has one of these names."""

    def open_rows(options: Options) -> MadeOf:
        def made_of(row: Object) -> Sequence[Made]:
            event = "".join(mark for mark in event_of(row, "event", "ev", "type").casefold() if mark.isalpha())
            if event in ("load", "impression", "tag", "start"):
                return (Skipped("the tag began: nothing is measured yet"),)
            if event not in _KINDS:
                raise RowError("out_of_range", "event: is neither measured nor in view nor their opposites")
            ts, appended_ms = times_of(row, options, "ts", "timestamp")
            fields = filled(
                impression_id=needed(text_of(row, *impression), impression[0]),
                ts=ts,
                source=options.source,
                viewer_id=text_of(row, "viewer_id", "user_id"),
                kind=_KINDS[event],
                vendor=name,
                continuous_ms=whole_of(row, "continuous_ms"),
                played_ms=whole_of(row, "played_ms"),
                in_focus=said(row, "in_focus"),
                muted=said(row, "muted"),
                in_view_pct=_percent(text_of(row, "in_view_pct")),
            )
            return (Event(VIEWABILITY, fields, appended_ms),)

        return made_of

    return System(name, "", moment, (VIEWABILITY,), json_lines(open_rows), knows_viewer=False)


def _percent(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise RowError("wrong_type", "in_view_pct: is no number") from None
