"""VAST: the tracking calls of video ads, in players, on connected TV, or stitched by a server (SSAI).

Moment: <Impression>, at the first frame. start, quartiles, complete, mute, pause, skip and the like are no impressions.
Identity: impression_id, else ADSERVINGID, else TRANSACTIONID or a session; with PODSEQUENCE and the ad's id where they
are told: a pod is one request with several ads, and each ad is one impression. All calls of an ad carry the same ones.
Time: TIMESTAMP (ISO 8601, as its macro is filled in); else when the call was received.
SSAI: SERVERSIDE 1 or 2, or `ssai`: a server called, so its address says nothing of the viewer; DEVICEIP, DEVICEUA do.
Viewability: <ViewableImpression>: Viewable, NotViewable, ViewUndetermined. ClickTracking is a click.
Money: PRICE or `cpm` as CPM, where the URL was made with it.
Documented: VAST 4.3, sections 2.3.1 (impression), 3.5 (viewable impression), 3.14 (tracking events), 6 (macros).
"""

from collections.abc import Sequence
from typing import Any, Final

from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.sources.adapter import Event, Made, Options, RowError, Skipped, System, cpm, filled
from streams.sources.lines import MadeOf, Object, event_of, json_lines, said, text_of, times_of, whole_of

_VIEWS: Final = {"viewable": "viewable", "notviewable": "not_viewable", "viewundetermined": "undetermined"}
_CLICKS: Final = frozenset(("click", "clicktracking", "clickthrough"))
_TRACKING: Final = frozenset(
    (
        "start", "creativeview", "loaded", "firstquartile", "midpoint", "thirdquartile", "complete", "mute", "unmute",
        "pause", "resume", "rewind", "skip", "progress", "fullscreen", "exitfullscreen", "playerexpand",
        "playercollapse", "expand", "collapse", "close", "closelinear", "acceptinvitation", "acceptinvitationlinear",
        "adexpand", "adcollapse", "minimize", "overlayviewduration", "otheradinteraction", "timespentviewing", "error",
        "interactivestart", "verificationnotexecuted", "notused", "breakstart", "breakend",
    )
)  # fmt: skip


def _open(options: Options) -> MadeOf:
    def made_of(row: Object) -> Sequence[Made]:
        name = event_of(row, "event", "ev", "type").casefold()
        if name in _TRACKING:
            return (Skipped("a tracking event that is no impression"),)
        if name != "impression" and name not in _VIEWS and name not in _CLICKS:
            raise RowError("out_of_range", "event: is none of VAST's")
        ts, appended_ms = times_of(row, options, "TIMESTAMP", "ts")
        ids = filled(
            impression_id=_identity(row),
            ts=ts,
            source=options.source,
            viewer_id=text_of(row, "viewer_id", "user_id", "IFA", "uid"),
        )
        if name in _VIEWS:
            return (Event(VIEWABILITY, ids | {"kind": _VIEWS[name]}, appended_ms),)
        if name in _CLICKS:
            return (Event(CLICKS, ids | filled(click_id=text_of(row, "click_id")), appended_ms),)
        return (Event(RENDERS, ids | _render(row, options), appended_ms),)

    return made_of


def _identity(row: Object) -> str:
    served = text_of(row, "impression_id", "impid", "ADSERVINGID", "TRANSACTIONID", "session_id", "sid")
    if not served:
        raise RowError("missing_field", "impression_id: there is none, nor ADSERVINGID, TRANSACTIONID or session_id")
    parts = (served, text_of(row, "PODSEQUENCE", "pod_sequence", "seq"), text_of(row, "ad_id", "adid"))
    return "-".join(part for part in parts if part)


def _render(row: Object, options: Options) -> dict[str, Any]:
    server_side = text_of(row, "SERVERSIDE") in ("1", "2") or said(row, "ssai", "server_side")
    fields = filled(
        campaign_id=text_of(row, "campaign_id", "campaign", "cid"),
        creative_id=text_of(row, "creative_id", "UNIVERSALADID", "crid"),
        line_item_id=text_of(row, "line_item_id"),
        slot_id=text_of(row, "slot_id", "BREAKPOSITION"),
        format="audio" if text_of(row, "format", "PLACEMENTTYPE") in ("audio", "4") else "video",
        width=whole_of(row, "width", "w"),
        height=whole_of(row, "height", "h"),
        device=text_of(row, "device"),
        country=text_of(row, "country"),
        user_agent=text_of(row, "DEVICEUA", "x_device_user_agent", "user_agent", "ua"),
        ip=text_of(row, "DEVICEIP", "x_device_ip", "ip"),
        server_side=server_side or None,
    )
    return fields | cpm(text_of(row, "PRICE", "cpm"), text_of(row, "currency"), options)


SYSTEM: Final = System(
    name="vast",
    source="vast",
    moment="<Impression>, at the first frame (quartiles are none)",
    topics=(RENDERS, VIEWABILITY, CLICKS),
    open=json_lines(_open),
)
