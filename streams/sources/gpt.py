"""Google Publisher Tag: events of the browser as a collector logs them, a JSON object a line with the event's members.

Moment: slotRenderEnded: the creative's code was put into the slot. With isEmpty nothing was; slotRequested,
slotResponseReceived, slotOnload and slotVisibilityChanged are no renders.
Identity: queryId (slot.getEscapedQemQueryId()) with slotElementId; without it page_view_id, slotElementId and `count`,
the number of the slot's render on that page view, which the collector adds.
Time: `timestamp` of the event, ms UTC, by the viewer's clock; `received_at` of the collector.
Campaign: campaignId, the order of Ad Manager; it is null for backfill, which is campaign "0" as in Data Transfer.
Money: none.
Viewability: impressionViewable, by the MRC's standard.
Documented: developers.google.com/publisher-tag/reference (SlotRenderEndedEvent, ImpressionViewableEvent).
"""

from collections.abc import Sequence
from typing import Any, Final

from streams.core.events import RENDERS, VIEWABILITY
from streams.sources.adapter import Event, Made, Options, RowError, Skipped, System, filled, needed
from streams.sources.lines import MadeOf, Object, json_lines, said, text_of, times_of

_SLOT: Final = ("slotElementId", "slot.slotElementId", "slot")


def _open(options: Options) -> MadeOf:
    def made_of(row: Object) -> Sequence[Made]:
        event = needed(text_of(row, "eventType", "event"), "eventType").casefold()
        if event not in ("slotrenderended", "impressionviewable"):
            return (Skipped("an event of a slot that is no render"),)
        if event == "slotrenderended" and said(row, "isEmpty"):
            return (Skipped("isEmpty: nothing was rendered"),)
        ts, appended_ms = times_of(row, options, "timestamp", "ts")
        viewer = text_of(row, "viewer_id", "user_id")
        ids = filled(impression_id=_identity(row), ts=ts, source=options.source, viewer_id=viewer)
        if event == "impressionviewable":
            return (Event(VIEWABILITY, ids | {"kind": "viewable", "vendor": "gpt"}, appended_ms),)
        return (Event(RENDERS, ids | _render(row), appended_ms),)

    return made_of


def _identity(row: Object) -> str:
    slot = needed(text_of(row, *_SLOT), "slotElementId")
    query = text_of(row, "queryId", "escapedQemQueryId")
    if query:
        return f"{query}-{slot}"
    page, count = text_of(row, "page_view_id"), text_of(row, "count")
    if not page or not count:
        raise RowError("missing_field", "queryId: there is none, nor page_view_id with count")
    return f"{page}-{slot}-{count}"


def _render(row: Object) -> dict[str, Any]:
    size = row.get("size")
    width, height = size if isinstance(size, list) and len(size) == 2 else (None, None)  # noqa: PLR2004  width, height
    return filled(
        campaign_id=text_of(row, "campaignId", "campaign_id") or "0",
        line_item_id=text_of(row, "lineItemId", "sourceAgnosticLineItemId"),
        creative_id=text_of(row, "creativeId", "sourceAgnosticCreativeId"),
        page_view_id=text_of(row, "page_view_id"),
        slot_id=text_of(row, *_SLOT),
        placement=text_of(row, "adUnitPath", "slot.adUnitPath"),
        width=width if isinstance(width, int) else None,
        height=height if isinstance(height, int) else None,
        device=text_of(row, "device"),
        country=text_of(row, "country"),
        user_agent=text_of(row, "user_agent"),
        ip=text_of(row, "ip"),
    )


SYSTEM: Final = System(
    name="gpt",
    source="gpt",
    moment="slotRenderEnded, unless isEmpty",
    topics=(RENDERS, VIEWABILITY),
    open=json_lines(_open),
)
