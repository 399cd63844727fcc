"""Kevel (Adzerk): the Data Shipping logs of impressions and clicks, or a log of calls of its impression and click URLs.

Moment: the impression URL was called. It is valid for 24 h: later calls are answered with 200 too, and count nothing.
Identity: Id, of a click ImpressionId. Kevel does not de-duplicate: each call of a URL is an impression in its reports.
Time: CreatedOn is "/Date(1581038413783)/", ms UTC. `ts` in a URL's shim (`e`, base64 JSON) is when the ad was decided.
Viewer: UserKey.
Money: Price is a CPM where the rate type is 2 (CPM); other rate types say nothing of the one impression.
Invalid traffic: Datacenter true (in TAG's list), IsValidUA false (in IAB's list of bots and spiders).
Documented: dev.kevel.com/docs/standard-logs-1 (fields), /docs/tracking-overview (24 h, duplicates).
"""

import re
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from typing import Any, Final

import orjson

from streams.core.events import CLICKS, RENDERS
from streams.sources.adapter import Event, Made, Options, RowError, Skipped, System, cpm, filled, ms_of_text, whole
from streams.sources.lines import PATH, RECORDED, MadeOf, Object, json_lines, said, text_of, times_of

VALID_MS: Final = 24 * 3_600_000
_CPM: Final = "2"
_DATE: Final = re.compile(r"/Date\((\d+)(?:[+-]\d{4})?\)/")


def _open(options: Options) -> MadeOf:
    def made_of(row: Object) -> Sequence[Made]:
        return _of_call(row, options) if text_of(row, "e") and text_of(row, PATH) else _of_log(row, options)

    return made_of


def _of_log(row: Object, options: Options) -> Sequence[Made]:
    created = text_of(row, "CreatedOn")
    match = _DATE.fullmatch(created)
    ts = whole(match[1], "CreatedOn") if match else ms_of_text(created, "CreatedOn", options.zone)
    impression = text_of(row, "ImpressionId")
    ids = filled(source=options.source, ts=ts, viewer_id=text_of(row, "UserKey", "User.Key"))
    if impression:
        return (Event(CLICKS, ids | {"impression_id": impression} | filled(click_id=text_of(row, "Id"))),)
    fields = filled(
        impression_id=text_of(row, "Id"),
        campaign_id=text_of(row, "CampaignId"),
        creative_id=text_of(row, "CreativeId"),
        line_item_id=text_of(row, "FlightId"),
        slot_id=text_of(row, "PlacementName", "ZoneId", "SiteId"),
        country=text_of(row, "Device.CountryCode", "Location.CountryCode", "CountryCode"),
        invalid=_invalid(said(row, "Datacenter"), said(row, "IsValidUA")),
    )
    price = _price(text_of(row, "Price"), text_of(row, "RateType", "RateTypeId"), options)
    return (Event(RENDERS, ids | fields | price),)


def _invalid(datacenter: bool | None, valid_agent: bool | None) -> str | None:
    if datacenter:
        return "kevel: data centre"
    return "kevel: user agent" if valid_agent is False else None


def _price(price: str, rate_type: str, options: Options) -> dict[str, Any]:
    return cpm(price, "", options) if rate_type in ("", _CPM) else {}


def _of_call(row: Object, options: Options) -> Sequence[Made]:
    """Return what a call of a URL is: by its shim, and by when it was called."""
    if not text_of(row, *RECORDED):
        raise RowError("missing_field", "time: without it nobody knows whether the URL was still valid")
    ts, appended_ms = times_of(row, options, *RECORDED)
    shim = _shim(text_of(row, "e"))
    decided = whole(text_of(shim, "ts"), "ts of the shim")
    ids = filled(source=options.source, ts=ts, impression_id=text_of(shim, "ii"), viewer_id=text_of(shim, "uk"))
    path = text_of(row, PATH)
    if path.endswith("/r"):
        return (Event(CLICKS, ids, appended_ms),)
    if not path.endswith("i.gif"):
        return (Skipped("neither an impression nor a click URL"),)
    if ts - decided > VALID_MS:
        return (Skipped("called after 24 h: answered with 200, and no impression"),)
    fields = filled(
        campaign_id=text_of(shim, "cm"),
        creative_id=text_of(shim, "cr"),
        line_item_id=text_of(shim, "fl"),
        slot_id=text_of(shim, "zn", "st"),
        user_agent=text_of(row, "user_agent"),
        ip=text_of(row, "ip"),
    )
    return (Event(RENDERS, ids | fields | _price(text_of(shim, "pc"), text_of(shim, "rt"), options), appended_ms),)


def _shim(text: str) -> dict[str, Any]:
    try:
        shim = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        shim = None
    if not isinstance(shim, dict):
        raise RowError("not_json", "e: the URL's shim is not base64 of a JSON object")
    return shim


SYSTEM: Final = System(
    name="kevel",
    source="kevel",
    moment="impression URL called, within 24 h",
    topics=(RENDERS, CLICKS),
    open=json_lines(_open),
)
