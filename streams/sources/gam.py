"""Google Ad Manager: Data Transfer files, one an hour and type.

Moment: the creative was downloaded and begins to load (web), or one of its pixels is on screen (app).
Identity: KeyPart with TimeUsec2. Not ImpressionId: it is "1-0" on every row of real files.
Time: EventTimeUsec2 and TimeUsec2 are microseconds UTC. `Time` is text in the network's zone; the hour in a file's name
is US Pacific. Neither is used. Rows are in no order.
Money: EstimatedBackfillRevenue is what the one impression earned, in the network's currency, not a CPM. Direct line
items have no price in these files: CostPerUnitInNetworkCurrency of the line item table is a CPM where CostType is CPM.
Campaign: the order. A field that does not apply is empty, "Null" or 0: such an order is campaign "0".
Viewability: ActiveViewMeasurableCount is 1 in the impressions file if it is measurable at first, 1 in the active views
file if that was found later (video), -1 there if it was not measurable after all. A view that was told cannot be taken
back: -1 is told as `undetermined`. ActiveViewViewableCount is 1 if it was viewable. Files of before the counts have
ActiveViewEligibleImpression, MeasurableImpression, ViewableImpression with Y or N in their place.
Documented: support.google.com/admanager/table/7401123 (fields), answer/6328497 (viewability), answer/1733124 (files).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.sources.adapter import (
    HEADER_WITHIN,
    BadRow,
    Event,
    HeaderError,
    Made,
    Options,
    RowError,
    Skipped,
    System,
    ms_of_us,
    needed,
)
from streams.sources.tables import Cells, Columns, MadeOf, found_header, split, table

Fields = dict[str, Any]

_RENDER: Final = (
    "OrderId",
    "LineItemId",
    "CreativeId",
    ("AdUnitId", "AdUnit"),
    "DeviceCategory",
    ("Country", "CountryId"),
    ("CreativeSizeDelivered", "CreativeSize"),
    "EstimatedBackfillRevenue",
    ("ActiveViewMeasurableCount", "ActiveViewEligibleImpression"),
)
_VIEW: Final = (
    ("ActiveViewMeasurableCount", "MeasurableImpression"),
    ("ActiveViewViewableCount", "ViewableImpression"),
)
_MEASURABLE: Final = {"kind": "measurable", "vendor": "active view"}
_TYPES: Final = {
    "activeviews": VIEWABILITY,
    "clicks": CLICKS,
    "impressions": RENDERS,
}
"""What a file's name says, such as NetworkBackfillImpressions_1234_20260131_05.gz."""
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})(v?)")
_NOTHING: Final = frozenset(("", "0", "0.0", "Null", "null", "NULL"))
_YES: Final = ("1", "Y")
_NO_LONGER: Final = ("-1", "N")


def _open(columns: Columns, options: Options) -> MadeOf:
    return _OPENERS[_kind(columns, options)](columns, options)


def _kind(columns: Columns, options: Options) -> str:
    name = columns.file.rpartition("/")[2].casefold()
    told = options.kind or next((topic for part, topic in _TYPES.items() if part in name), None)
    if told is None:
        raise HeaderError(
            "has no name such as NetworkImpressions_..., NetworkActiveViews_... or NetworkClicks_...: say what it holds"
            " with --kind renders, viewability or clicks"
        )
    return told


def _ids(columns: Columns, options: Options) -> Callable[[Cells], Fields]:
    pick, source = columns.pick("KeyPart", "TimeUsec2", "EventTimeUsec2", "UserId"), options.source

    def ids(cells: Cells) -> Fields:
        key_part, request_us, event_us, viewer = pick(cells)
        if not key_part or not request_us:
            raise RowError("missing_field", "KeyPart or TimeUsec2: is empty")
        fields: Fields = {
            "impression_id": f"{key_part}-{request_us}",
            "ts": ms_of_us(event_us or request_us, "EventTimeUsec2"),
            "source": source,
        }
        if viewer not in _NOTHING:
            fields["viewer_id"] = viewer
        return fields

    return ids


def _renders(columns: Columns, options: Options) -> MadeOf:
    ids, pick, price = _ids(columns, options), columns.pick(*_RENDER), _price(columns, options)

    def made_of(cells: Cells) -> Sequence[Made]:
        fields = ids(cells)
        order, line_item, creative, slot, device, country, size, revenue, measurable = pick(cells)
        view = fields | _MEASURABLE if measurable in _YES else None
        fields["campaign_id"] = "0" if order in _NOTHING else order
        if line_item not in _NOTHING:
            fields["line_item_id"] = line_item
        if creative not in _NOTHING:
            fields["creative_id"] = creative
        if slot:
            fields["slot_id"] = slot
        if device:
            fields["device"] = device.casefold()
        if country:
            fields["country"] = country
        fields |= _sized(size)
        fields |= price(line_item, revenue)
        render = Event(RENDERS, fields)
        return (render,) if view is None else (render, Event(VIEWABILITY, view))

    return made_of


@lru_cache(maxsize=1_024)
def _sized(text: str) -> Fields:
    """Return what a size such as 300x250 says, or 640x480v of a video."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return {}
    return {"width": int(match[1]), "height": int(match[2])} | ({"format": "video"} if match[3] else {})


def _price(columns: Columns, options: Options) -> Callable[[str, str], Fields]:
    """Return what says the price. What is backfill earns its revenue; what is direct costs what its line item does."""
    backfill = "backfill" in columns.file.casefold()
    prices, currency = options.prices, options.currency

    def price(line_item: str, revenue: str) -> Fields:
        if not backfill and line_item in prices:
            return {"price": prices[line_item], "price_unit": "cpm", "currency": currency}
        if revenue in _NOTHING and not (backfill and revenue == "0"):
            return {}
        return {"price": revenue, "price_unit": "impression", "currency": currency}

    return price


def _views(columns: Columns, options: Options) -> MadeOf:
    ids, pick = _ids(columns, options), columns.pick(*_VIEW)
    if not any(columns.has(*names) for names in _VIEW):
        raise HeaderError("has neither ActiveViewMeasurableCount nor ActiveViewViewableCount: it says nothing of views")

    def made_of(cells: Cells) -> Sequence[Made]:
        measurable, viewable = pick(cells)
        if viewable in _YES:
            kind = "viewable"
        elif measurable in _YES:
            kind = "measurable"
        elif measurable in _NO_LONGER:
            kind = "undetermined"
        else:
            return (Skipped("says nothing new of viewability"),)
        return (Event(VIEWABILITY, ids(cells) | {"kind": kind, "vendor": "active view"}),)

    return made_of


def _clicks(columns: Columns, options: Options) -> MadeOf:
    ids, pick = _ids(columns, options), columns.pick("EventKeyPart", "EventTimeUsec2")

    def made_of(cells: Cells) -> Sequence[Made]:
        event_key, event_us = pick(cells)
        return (Event(CLICKS, ids(cells) | {"click_id": f"{event_key}-{needed(event_us, 'EventTimeUsec2')}"}),)

    return made_of


_OPENERS: Final = {RENDERS: _renders, VIEWABILITY: _views, CLICKS: _clicks}

SYSTEM: Final = System(
    name="gam",
    source="gam",
    moment="creative begins to load (web), one pixel on screen (app)",
    topics=(RENDERS, VIEWABILITY, CLICKS),
    open=table(_open, "KeyPart", "TimeUsec2"),
)


# --- the line item table ----------------------------------------------------------------------------------------------


def line_item_prices(lines: Iterable[bytes]) -> dict[str, str]:
    """Return line item -> CPM as decimal text, of a line item table. Those that are not paid by CPM are left out.

    Raises HeaderError if it is no such table: half of the prices would be worse than none.
    """
    texts = [line.decode("utf-8", "replace") for line in lines]
    names = ("LineItemId", "Id"), ("CostPerUnitInNetworkCurrency", "CostPerUnit")
    header, delimiter, columns = found_header(texts[:HEADER_WITHIN], "", *names)
    pick = columns.pick(*names, "CostType")
    prices = {}
    for line, cells in split(texts[header:], delimiter, header + 1, columns.width):
        if isinstance(cells, BadRow):
            raise HeaderError(f"line {line}: {cells.detail}")
        line_item, cost, cost_type = pick(cells)
        if line_item and cost and cost_type.casefold() in ("", "cpm"):
            prices[line_item] = cost
    return prices
