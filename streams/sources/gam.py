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
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final

from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.sources.adapter import (
    BadRow,
    Event,
    HeaderError,
    Made,
    Options,
    RowError,
    Skipped,
    System,
    filled,
    ms_of_us,
    needed,
)
from streams.sources.tables import Cells, Columns, Row, opened, table

_IDENTITY: Final = ("KeyPart", "TimeUsec2", "EventTimeUsec2", "UserId")
_RENDER: Final = (
    "OrderId",
    "LineItemId",
    "CreativeId",
    ("AdUnitId", "AdUnit"),
    "DeviceCategory",
    ("Country", "CountryId"),
    ("CreativeSizeDelivered", "CreativeSize"),
    "EstimatedBackfillRevenue",
)
_MEASURABLE: Final = (
    ("ActiveViewMeasurableCount", "MeasurableImpression"),
    ("ActiveViewViewableCount", "ViewableImpression"),
)
_TYPES: Final = {
    "activeviews": VIEWABILITY,
    "clicks": CLICKS,
    "impressions": RENDERS,
}
"""What a file's name says, such as NetworkBackfillImpressions_1234_20260131_05.gz."""
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})(v?)")
_NOTHING: Final = frozenset(("", "0", "null"))


def _open(columns: Columns, options: Options) -> Row:
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


def _ids(columns: Columns, options: Options) -> Callable[[Cells], dict[str, object]]:
    pick, source = columns.pick(*_IDENTITY), options.source

    def ids(cells: Cells) -> dict[str, object]:
        key_part, request_us, event_us, viewer = pick(cells)
        if not key_part or not request_us:
            raise RowError("missing_field", "KeyPart or TimeUsec2: is empty")
        found: dict[str, object] = {
            "impression_id": f"{key_part}-{request_us}",
            "ts": ms_of_us(event_us or request_us, "EventTimeUsec2"),
            "source": source,
        }
        if viewer not in _NOTHING:
            found["viewer_id"] = viewer
        return found

    return ids


def _renders(columns: Columns, options: Options) -> Row:
    ids, pick, price = _ids(columns, options), columns.pick(*_RENDER), _price(columns, options)
    first_says = columns.pick(("ActiveViewMeasurableCount", "ActiveViewEligibleImpression"), "KeyPart")

    def row(cells: Cells) -> Iterator[Made]:
        fields = ids(cells)
        order, line_item, creative, slot, device, country, size, revenue = pick(cells)
        width, height, form = _sized(size)
        yield Event(
            RENDERS,
            fields
            | price(line_item, revenue)
            | filled(
                campaign_id="0" if order.casefold() in _NOTHING else order,
                line_item_id=line_item,
                creative_id=creative,
                slot_id=slot,
                device=device.casefold(),
                country=country,
                width=width,
                height=height,
                format=form,
            ),
        )
        if first_says(cells)[0] in ("1", "Y"):
            yield Event(VIEWABILITY, fields | {"kind": "measurable", "vendor": "active view"})

    return row


@lru_cache(maxsize=1_024)
def _sized(text: str) -> tuple[int | None, int | None, str | None]:
    """Return width, height and format of a size such as 300x250, or 640x480v of a video."""
    match = _SIZE.fullmatch(text)
    return (int(match[1]), int(match[2]), "video" if match[3] else None) if match else (None, None, None)


def _price(columns: Columns, options: Options) -> Callable[[str, str], dict[str, object]]:
    """Return what says the price. What is backfill earns its revenue; what is direct costs what its line item does."""
    backfill = "backfill" in columns.file.casefold()
    prices, currency = options.prices, options.currency

    def price(line_item: str, revenue: str) -> dict[str, object]:
        if not backfill and line_item in prices:
            return {"price": prices[line_item], "price_unit": "cpm", "currency": currency}
        if revenue.casefold() in ("", "null") or (not backfill and float_is_0(revenue)):
            return {}
        return {"price": revenue, "price_unit": "impression", "currency": currency}

    return price


def float_is_0(text: str) -> bool:
    """Say whether a decimal text means 0, in whatever form."""
    return not text.strip("0.")


def _views(columns: Columns, options: Options) -> Row:
    ids, pick = _ids(columns, options), columns.pick(*_MEASURABLE)
    if not columns.has(*(name for names in _MEASURABLE for name in names)):
        raise HeaderError("has neither ActiveViewMeasurableCount nor ActiveViewViewableCount: it says nothing of views")

    def row(cells: Cells) -> Iterator[Made]:
        measurable, viewable = pick(cells)
        if viewable in ("1", "Y"):
            kind = "viewable"
        elif measurable in ("1", "Y"):
            kind = "measurable"
        elif measurable in ("-1", "N"):
            kind = "undetermined"
        else:
            yield Skipped("says nothing new of viewability")
            return
        yield Event(VIEWABILITY, ids(cells) | {"kind": kind, "vendor": "active view"})

    return row


def _clicks(columns: Columns, options: Options) -> Row:
    ids, pick = _ids(columns, options), columns.pick("EventKeyPart", "EventTimeUsec2")

    def row(cells: Cells) -> Iterator[Made]:
        event_key, event_us = pick(cells)
        yield Event(CLICKS, ids(cells) | {"click_id": f"{event_key}-{needed(event_us, 'EventTimeUsec2')}"})

    return row


_OPENERS: Final = {RENDERS: _renders, VIEWABILITY: _views, CLICKS: _clicks}

SYSTEM: Final = System(
    name="gam",
    source="gam",
    moment="creative begins to load (web), one pixel on screen (app)",
    topics=(RENDERS, VIEWABILITY, CLICKS),
    read=table(_open, "KeyPart", "TimeUsec2"),
)


# --- the line item table ----------------------------------------------------------------------------------------------


def line_item_prices(lines: Iterable[bytes]) -> dict[str, str]:
    """Return line item -> CPM as decimal text, of a line item table. Those that are not paid by CPM are left out.

    Raises HeaderError if it is no such table: half of the prices would be worse than none.
    """
    texts = (line.decode("utf-8", "replace") for line in lines)
    columns, rows = opened(texts, "", ("LineItemId", "Id"), ("CostPerUnitInNetworkCurrency", "CostPerUnit"))
    pick = columns.pick(("LineItemId", "Id"), ("CostPerUnitInNetworkCurrency", "CostPerUnit"), "CostType")
    prices = {}
    for line, cells in rows:
        if isinstance(cells, BadRow):
            raise HeaderError(f"line {line}: {cells.detail}")
        line_item, cost, cost_type = pick(cells)
        if line_item and cost and cost_type.casefold() in ("", "cpm"):
            prices[line_item] = cost
    return prices
