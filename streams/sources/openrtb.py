"""OpenRTB: billing (burl) and win (nurl) notices, as an SSP or a DSP logs them: URLs, or JSON with the macros' names.

Moment: burl: the exchange bills the impression, on render or at the VAST impression. nurl: the bid was won, which
implies neither delivery nor viewability, so it is no render; nor is a loss notice (lurl).
Identity: AUCTION_ID (of the bid request) with AUCTION_IMP_ID: a request has several slots, and "1" is in each of them.
Time: AUCTION_IMP_TS, ms UTC, when the impression was fulfilled; else when the notice was received.
Money: AUCTION_PRICE is a CPM in AUCTION_CURRENCY; --price-in says if it is not in currency units. iPinYou's PayingPrice
is a CPM in fen, 1/100 CNY. With AUCTION_MULTIPLIER, one notice is so many impressions of an audience (screens out of
home): it counts as one render, which costs so many.
Who counts: `ssp`; say --source dsp for a DSP's own log. A macro that nobody filled in is an error.
Documented: OpenRTB 2.6, section 4.4 (substitution macros), 4.3 (events).
"""

from collections.abc import Sequence
from typing import Any, Final

from streams.core.events import RENDERS
from streams.sources.adapter import Event, Made, Options, RowError, Skipped, System, cpm, filled, needed, times
from streams.sources.lines import MadeOf, Object, event_of, json_lines, object_of, text_of, times_of, whole_of

_NOTICES: Final = {
    "burl": "burl",
    "bill": "burl",
    "imp": "burl",
    "nurl": "nurl",
    "win": "nurl",
    "lurl": "lurl",
    "loss": "lurl",
}
"""What a notice is called, or how its name or path begins -> which notice it is."""
_NO_RENDER: Final = {
    "nurl": "nurl: a won bid is no impression",
    "lurl": "lurl: a lost bid is no impression",
}
_AUCTION: Final = ("AUCTION_ID", "OPENRTB_ID", "auction_id", "request_id", "auction", "reqid")
_IMP: Final = ("AUCTION_IMP_ID", "OPENRTB_ITEM_ID", "imp_id", "impid", "imp")
_TIME: Final = ("AUCTION_IMP_TS", "imp_ts", "ts")
_PRICE: Final = ("AUCTION_PRICE", "OPENRTB_PRICE", "price")
_CURRENCY: Final = ("AUCTION_CURRENCY", "OPENRTB_CURRENCY", "currency", "cur")
_MULTIPLIER: Final = ("AUCTION_MULTIPLIER", "OPENRTB_ITEM_QTY", "multiplier", "mult")
_CAMPAIGN: Final = ("campaign_id", "cid", "campaign")


def _open(options: Options) -> MadeOf:
    def made_of(row: Object) -> Sequence[Made]:
        notice, row = _notice(row)
        if notice != "burl":
            return (Skipped(_NO_RENDER[notice]),)
        return (_render(row, options),)

    return made_of


def _notice(row: Object) -> tuple[str, Object]:
    """Return which notice it is, and its members with those of the URL that it may be told by."""
    for name in ("burl", "nurl", "lurl"):
        if isinstance(row.get(name), str):
            return name, object_of(row[name]) | row
    told = event_of(row, "type", "event", "notice")
    for start, notice in _NOTICES.items():
        if told.casefold().startswith(start):
            return notice, row
    raise RowError("missing_field", "type: says neither burl nor nurl")


def _render(row: Object, options: Options) -> Event:
    ts, appended_ms = times_of(row, options, *_TIME)
    auction, imp = needed(_filled_in(row, *_AUCTION), _AUCTION[0]), needed(_filled_in(row, *_IMP), _IMP[0])
    fields = filled(
        impression_id=f"{auction}-{imp}",
        ts=ts,
        source=options.source,
        campaign_id=_filled_in(row, *_CAMPAIGN),
        viewer_id=text_of(row, "viewer_id", "user_id", "buyeruid", "uid"),
        creative_id=_filled_in(row, "AUCTION_AD_ID", "OPENRTB_MEDIA_ID", "crid", "adid"),
        slot_id=text_of(row, "tagid", "slot_id"),
        device=text_of(row, "device"),
        country=text_of(row, "country"),
        width=whole_of(row, "w", "width"),
        height=whole_of(row, "h", "height"),
        user_agent=text_of(row, "user_agent", "ua"),
        ip=text_of(row, "ip"),
    )
    return Event(RENDERS, fields | _cost(row, options), appended_ms)


def _filled_in(row: Object, *names: str) -> str:
    text = text_of(row, *names)
    if text.startswith("${"):
        raise RowError("out_of_range", f"{names[0]}: the macro was not filled in")
    return text


def _cost(row: Object, options: Options) -> dict[str, Any]:
    price, multiplier = _filled_in(row, *_PRICE), _filled_in(row, *_MULTIPLIER)
    if price and multiplier not in ("", "1"):
        price = times(price, multiplier)
    if fen := text_of(row, "PayingPrice"):
        return {"price": times(fen, "0.01"), "price_unit": "cpm", "currency": "CNY"}
    return cpm(price, _filled_in(row, *_CURRENCY), options)


SYSTEM: Final = System(
    name="openrtb",
    source="ssp",
    moment="burl: billed on render or VAST impression (nurl, a won bid, is none)",
    topics=(RENDERS,),
    open=json_lines(_open),
)
