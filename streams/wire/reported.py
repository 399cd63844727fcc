"""Reported counts on the wire: JSON objects as `ReportedCount`, with `spend` as decimal text of currency units.

The key is `campaign|source|date|currency`, so that a report that is read again replaces itself in the compacted topic.
The partition is that of the campaign id, as for all that belongs to a campaign.
"""

from datetime import date
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.structs import asdict, replace

from streams.core.events import Malformed
from streams.core.money import PriceError, decimal_text, is_currency, nano_of
from streams.core.reported import ReportedCount
from streams.wire.events import malformed


class _Wire(ReportedCount, kw_only=True, frozen=True, omit_defaults=True):
    spend: str | None = None  # type: ignore[assignment]  # money is text on the wire


_DECODE: Final = msgspec.json.Decoder(_Wire).decode
_ENCODE: Final = msgspec.json.Encoder().encode


def reported_key(count: ReportedCount) -> bytes:
    """Return the key of its record. Escaped, so that no campaign's name can pass for two parts."""
    parts = (count.campaign_id, count.source, count.date, count.currency or "")
    return "|".join(part.replace("\\", "\\\\").replace("|", "\\|") for part in parts).encode()


def encode_reported(count: ReportedCount) -> bytes:
    """Return the value of its record."""
    told = asdict(count) | {"spend": None if count.spend is None else decimal_text(count.spend)}
    return _ENCODE(_Wire(**told))


def decode_reported(value: bytes) -> ReportedCount | Malformed:
    """Return what a record says, or why it is none."""
    try:
        told = _DECODE(value)
        date.fromisoformat(told.date)
        spend = None if told.spend is None else nano_of(told.spend)
    except (PriceError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return malformed(error)
    except ValueError:
        return Malformed("out_of_range", "date: no such day")
    return _checked(ReportedCount(**asdict(replace(told, spend=None)) | {"spend": spend}))


def _checked(count: ReportedCount) -> ReportedCount | Malformed:
    if not is_time_zone(count.time_zone):
        return Malformed("out_of_range", "time_zone: no such time zone")
    if (count.spend is None) != (count.currency is None):
        return Malformed("missing_field", "spend and currency: neither is there without the other")
    if count.currency is not None and not is_currency(count.currency):
        return Malformed("out_of_range", "currency: three capital letters are needed")
    if count.spend is not None and count.spend < 0:
        return Malformed("out_of_range", "spend: is negative")
    return count


@lru_cache(maxsize=1_024)
def is_time_zone(name: str) -> bool:
    """Say whether a name is one of the IANA time zones."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
