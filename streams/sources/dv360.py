"""Display & Video 360 and Campaign Manager 360: Data Transfer v2, one file an hour and type (impression, click).

Moment: the ad server's. Impression rows have Event Type VIEW, click rows CLICK; conversions are skipped.
Identity: Impression ID; a click row carries that of its impression.
Time: Event Time is microseconds UTC. Rows are in no order, and may lie in the file of another hour. Where an hour has
two files, the newer replaces the older: given both, what is in both counts once.
Viewer: User ID; it may be zeroed for privacy, in part of the files or in all, and is then nobody's.
Money: costs of DV360 fields (formerly DBM) are 10^-9 of the currency that their name says, for the one impression.
Viewability: Active View: Eligible, Measurable, Viewable Impressions are 0 or 1, on the impression's own row. One that
was eligible and could not be measured is `undetermined`.
Documented: developers.google.com/doubleclick-advertisers/dtv2/reference/file-format.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.sources.adapter import Event, Made, Options, Skipped, System, filled, ms_of_us
from streams.sources.tables import Cells, Columns, MadeOf, table

_IDS: Final = (
    "Event Type",
    "Impression ID",
    "Event Time",
    "User ID",
    ("Campaign ID", "DV360 Insertion Order ID", "DBM Insertion Order ID"),
)
_MORE: Final[dict[str, str | tuple[str, ...]]] = {
    "slot_id": "Placement ID",
    "creative_id": ("Rendering ID", "DV360 Creative ID", "DBM Creative ID"),
    "line_item_id": ("DV360 Line Item ID", "DBM Line Item ID"),
    "country": ("Country Code", "DV360 Country Code", "DBM Country Code"),
}
_VIEWS: Final = (
    "Active View: Eligible Impressions",
    "Active View: Measurable Impressions",
    "Active View: Viewable Impressions",
)
_COSTS: Final = ("Revenue", "Billable Cost", "Total Media Cost", "Media Cost")
"""In order of preference: what the advertiser pays comes first."""
_CURRENCY: Final = ("DV360 Advertiser Currency", "DBM Advertiser Currency", "Advertiser Currency")


def _open(columns: Columns, options: Options) -> MadeOf:
    pick, more, views = columns.pick(*_IDS), columns.pick(*_MORE.values()), columns.pick(*_VIEWS)
    price = _price(columns, options)
    source = options.source

    def made_of(cells: Cells) -> Sequence[Made]:
        event_type, impression_id, event_us, viewer, campaign = pick(cells)
        if event_type not in ("VIEW", "CLICK"):
            return (Skipped("neither VIEW nor CLICK"),)
        ids = {"impression_id": impression_id, "ts": ms_of_us(event_us, "Event Time"), "source": source}
        if viewer.strip("0"):
            ids["viewer_id"] = viewer
        if event_type == "CLICK":
            return (Event(CLICKS, ids | {"click_id": event_us}),)
        told = filled(**dict(zip(_MORE, more(cells), strict=True)))
        render = Event(RENDERS, ids | {"campaign_id": campaign} | told | price(cells))
        kind = _kind(*views(cells))
        if kind is None:
            return (render,)
        return (render, Event(VIEWABILITY, ids | {"kind": kind, "vendor": "active view"}))

    return made_of


def _kind(eligible: str, measurable: str, viewable: str) -> str | None:
    if viewable == "1":
        return "viewable"
    if measurable == "1":
        return "not_viewable"
    return "undetermined" if eligible == "1" else None


def _price(columns: Columns, options: Options) -> Callable[[Cells], dict[str, Any]]:
    """Return what says the price: the first of the costs in the file, in the advertiser's currency if it is there."""
    named = [(f"{cost} (Advertiser Currency)", options.currency) for cost in _COSTS]
    named += [(f"{cost} (USD)", "USD") for cost in _COSTS]
    forms = [((f"DV360 {name}", f"DBM {name}"), currency) for name, currency in named]
    found = next(((names, currency) for names, currency in forms if columns.has(*names)), None)
    if found is None:
        return lambda cells: {}
    names, unnamed = found
    pick = columns.pick(names, _CURRENCY if "Advertiser" in names[0] else "")

    def price(cells: Cells) -> dict[str, Any]:
        nano, currency = pick(cells)
        if not nano:
            return {}
        return {"price": f"{nano}e-9", "price_unit": "impression", "currency": currency or unnamed}

    return price


SYSTEM: Final = System(
    name="dv360",
    source="dv360",
    moment="ad server's count of the impression",
    topics=(RENDERS, VIEWABILITY, CLICKS),
    open=table(_open, "Event Type", "Event Time", "Impression ID"),
)
