"""`campaigns.toml` to the core's words, with every error named by where it stands.

README, campaigns, has an example.
"""

import re
import tomllib
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from streams.core.campaigns import Campaign, Campaigns, Cap, Model, Terms, flat, priced
from streams.core.events import Currency, Id
from streams.core.money import PriceError, is_currency

_PERIODS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PERIOD = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_LONGEST_PERIOD_MS: Final = 31 * 86_400_000

T = TypeVar("T")

Number = str | int
"""A number as its text: TOML's floats are never read as binary fractions."""


class CampaignsError(Exception):
    """A file of campaigns that cannot be used; the message says where and why, in one line."""


class _Cap(msgspec.Struct, forbid_unknown_fields=True):
    impressions: Annotated[int, Meta(ge=1)]
    period: str


class _Pricing(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    since: datetime | None = msgspec.field(default=None, name="from")
    model: Model
    price: Number | None = None
    cost: Number | None = None
    booked: Annotated[int, Meta(ge=1)] | None = None


class _Campaign(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str = ""
    currency: Currency = "USD"
    billing_source: Id | None = None
    frequency_cap: _Cap | None = None
    viewability_target: Number | None = None
    pricing: list[_Pricing] = []


class _File(msgspec.Struct, forbid_unknown_fields=True):
    campaigns: dict[Id, Any] = {}


def load_campaigns(file: Path, billing_source: str) -> Campaigns:
    """Return the campaigns of a file; `billing_source` bills those that name none. Raises CampaignsError."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CampaignsError(f"{file}: cannot be read: {error}") from None
    try:
        return parse_campaigns(text, billing_source)
    except CampaignsError as error:
        raise CampaignsError(f"{file}: {error}") from None


def parse_campaigns(text: str, billing_source: str) -> Campaigns:
    """Return the campaigns of a text. Raises CampaignsError."""
    try:
        table = tomllib.loads(text, parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise CampaignsError(str(error)) from None
    file = _converted("file", table, _File)
    return Campaigns({name: _campaign(name, told) for name, told in file.campaigns.items()}, billing_source)


def _converted(where: str, told: Any, form: type[T]) -> T:
    try:
        return msgspec.convert(told, form)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise CampaignsError(f"{where}{path.rstrip('`')}: {problem}") from None


def _campaign(name: str, table: Any) -> Campaign:
    told = _converted(f"campaigns.{name}", table, _Campaign)
    if not is_currency(told.currency):
        raise CampaignsError(f"campaigns.{name}.currency: three capital letters are needed")
    return Campaign(
        name=told.name,
        currency=told.currency,
        billing_source=told.billing_source,
        cap=None if told.frequency_cap is None else _cap(f"campaigns.{name}.frequency_cap", told.frequency_cap),
        viewability_target=_target(f"campaigns.{name}.viewability_target", told.viewability_target),
        terms=_all_terms(f"campaigns.{name}.pricing", told.pricing),
    )


def _cap(where: str, told: _Cap) -> Cap:
    match = _PERIOD.fullmatch(told.period)
    period_ms = int(match[1]) * _PERIODS_MS[match[2]] if match else 0
    if not 0 < period_ms <= _LONGEST_PERIOD_MS:
        raise CampaignsError(f"{where}.period: a duration such as 30m, 1h or 7d is needed, up to 31d")
    return Cap(told.impressions, period_ms)


def _target(where: str, told: Number | None) -> float | None:
    try:
        target = None if told is None else float(told)
    except ValueError:
        target = -1.0
    if target is not None and not 0 <= target <= 1:
        raise CampaignsError(f"{where}: a share from 0 to 1 is needed")
    return target


def _all_terms(where: str, told: list[_Pricing]) -> tuple[Terms, ...]:
    terms = sorted((_terms(f"{where}[{number}]", one) for number, one in enumerate(told)), key=lambda one: one.since_ms)
    for one, other in pairwise(terms):
        if one.since_ms == other.since_ms:
            raise CampaignsError(f"{where}: two entries begin at the same time")
    return tuple(terms)


def _terms(where: str, told: _Pricing) -> Terms:
    if told.since is not None and told.since.tzinfo is None:
        raise CampaignsError(f"{where}.from: a time with its zone is needed, such as 2026-09-01T00:00:00Z")
    since_ms = 0 if told.since is None else round(told.since.timestamp() * 1000)
    needed = {"cost": told.cost, "booked": told.booked} if told.model == "flat" else {"price": told.price}
    told_of = {"price": told.price, "cost": told.cost, "booked": told.booked}
    if wrong := sorted(name for name, value in told_of.items() if (value is None) == (name in needed)):
        raise CampaignsError(f"{where}: model {told.model} needs {' and '.join(needed)}; wrong: {', '.join(wrong)}")
    try:
        if told.model == "flat":
            assert told.booked is not None
            return flat(since_ms, str(told.cost), told.booked)
        return priced(since_ms, told.model, str(told.price))
    except PriceError as error:
        raise CampaignsError(f"{where}: {'cost' if told.model == 'flat' else 'price'}: {error}") from None
