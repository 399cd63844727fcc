"""Prebid.js: events of the browser as a collector logs them, {"eventType", "args", "timestamp"} a line.

Moment: adRenderSucceeded: the creative was put into the page without an error. bidWon comes before that and is no
render; staleRender says that a bid which was rendered is rendered again: a refresh without a new bid, nothing to bill.
Identity: auctionId with adId, the bid.
Time: `timestamp` of the event, ms UTC, by the viewer's clock; `received_at` of the collector.
Viewer and campaign: viewer_id and campaign_id, where the collector adds them; the campaign is else the bidder's code.
Money: cpm in `currency`.
Viewability: bidViewable.
Documented: docs.prebid.org/dev-docs/publisher-api-reference/getEvents.html, /dev-docs/modules/bidViewable.html.
"""

from collections.abc import Sequence
from typing import Any, Final

from streams.core.events import RENDERS, VIEWABILITY
from streams.sources.adapter import Event, Made, Options, Skipped, System, cpm, filled, needed
from streams.sources.lines import MadeOf, Object, json_lines, text_of, times_of, whole_of

_FORMATS: Final = {"banner": "display", "video": "video", "native": "native", "audio": "audio"}
_NO_RENDER: Final = {
    "bidwon": "bidWon: a won bid is no render",
    "stalerender": "staleRender: a refresh of a bid that was rendered before",
}


def _open(options: Options) -> MadeOf:
    def made_of(row: Object) -> Sequence[Made]:
        event = needed(text_of(row, "eventType", "event"), "eventType").casefold()
        if event not in ("adrendersucceeded", "bidviewable"):
            return (Skipped(_NO_RENDER.get(event, "an event of the auction")),)
        arguments = row.get("args")
        told: Object = arguments if isinstance(arguments, dict) else row
        bid = told["bid"] if isinstance(told.get("bid"), dict) else told
        ts, appended_ms = times_of(row, options, "timestamp", "ts")
        auction, ad = needed(text_of(bid, "auctionId"), "auctionId"), needed(text_of(bid, "adId"), "adId")
        viewer = text_of(row, "viewer_id", "user_id")
        ids = filled(impression_id=f"{auction}-{ad}", ts=ts, source=options.source, viewer_id=viewer)
        if event == "bidviewable":
            return (Event(VIEWABILITY, ids | {"kind": "viewable", "vendor": "prebid"}, appended_ms),)
        return (Event(RENDERS, ids | _render(row, bid, options), appended_ms),)

    return made_of


def _render(row: Object, bid: Object, options: Options) -> dict[str, Any]:
    fields = filled(
        campaign_id=text_of(row, "campaign_id") or text_of(bid, "meta.campaignId", "bidderCode", "bidder"),
        page_view_id=text_of(row, "page_view_id"),
        slot_id=text_of(bid, "adUnitCode"),
        creative_id=text_of(bid, "creativeId", "creative_id"),
        format=_FORMATS.get(text_of(bid, "mediaType")),
        width=whole_of(bid, "width"),
        height=whole_of(bid, "height"),
        device=text_of(row, "device"),
        country=text_of(row, "country"),
        user_agent=text_of(row, "user_agent"),
        ip=text_of(row, "ip"),
    )
    return fields | cpm(text_of(bid, "cpm"), text_of(bid, "currency"), options)


SYSTEM: Final = System(
    name="prebid",
    source="prebid",
    moment="adRenderSucceeded (bidWon and staleRender are none)",
    topics=(RENDERS, VIEWABILITY),
    open=json_lines(_open),
)
