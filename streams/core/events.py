"""The words of the wire contract: what was rendered, what was measured, what was clicked.

Law: an event is a value. It carries all that a decision may look at and nothing that depends on when it is read.
Names, ranges and defaults are those of the README's event tables; a `null` on the wire is the same as an absent field.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

RENDERS: Final = "renders"
VIEWABILITY: Final = "viewability"
CLICKS: Final = "clicks"
TOPICS: Final = (RENDERS, VIEWABILITY, CLICKS)

Id = Annotated[str, Meta(min_length=1, max_length=256)]
TimestampMs = Annotated[int, Meta(ge=0, lt=4_102_444_800_000)]
Currency = Annotated[str, Meta(min_length=3, max_length=3)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Percent = Annotated[float, Meta(ge=0, le=100)]

PriceUnit = Literal["cpm", "impression", "micros_cpm", "micros_impression"]
Format = Literal["display", "video", "audio", "native"]
ViewabilityKind = Literal["measurable", "viewable", "not_viewable", "undetermined", "signal"]

DEFAULT_SOURCE: Final = "adserver"
DEFAULT_CURRENCY: Final = "USD"
NO_CURRENCY: Final = "none"
"""What a render without price and without pricing model is counted under."""


class Refresh(msgspec.Struct, frozen=True):
    """A refresh that the sender declares (OpenRTB 2.6 `refsettings`)."""

    type: Literal["user", "event", "time"]
    count: Count | None = None
    min_interval_s: Annotated[float, Meta(ge=0)] | None = None


class Render(msgspec.Struct, kw_only=True, gc=False):
    """One ad began to render in one slot of one page view. `ts` in ms since the epoch, `price` as its JSON text."""

    impression_id: Id
    campaign_id: Id
    ts: TimestampMs
    source: Id | None = None
    viewer_id: str | None = None
    page_view_id: str | None = None
    slot_id: str | None = None
    creative_id: str | None = None
    line_item_id: str | None = None
    price: msgspec.Raw = msgspec.Raw(b"null")
    price_unit: PriceUnit | None = None
    currency: Currency | None = None
    format: Format | None = None
    width: Count | None = None
    height: Count | None = None
    device: str | None = None
    country: str | None = None
    placement: str | None = None
    refresh: Refresh | None = None
    user_agent: str | None = None
    ip: str | None = None
    server_side: bool | None = None
    invalid: str | None = None


class Viewability(msgspec.Struct, kw_only=True, gc=False):
    """What a measuring tag says of one impression. `kind` "signal" carries the raw signal instead of a verdict."""

    impression_id: Id
    ts: TimestampMs
    kind: ViewabilityKind
    source: Id | None = None
    viewer_id: str | None = None
    in_view_pct: Percent | None = None
    continuous_ms: Count | None = None
    played_ms: Count | None = None
    in_focus: bool | None = None
    muted: bool | None = None
    vendor: str | None = None


class Click(msgspec.Struct, kw_only=True, gc=False):
    """A click on one impression."""

    impression_id: Id
    ts: TimestampMs
    source: Id | None = None
    viewer_id: str | None = None
    click_id: str | None = None


class Malformed(msgspec.Struct, frozen=True):
    """A record that is no event: `reason` from a closed list, `detail` in words that repeat nothing of the record."""

    reason: str
    detail: str


Event = Render | Viewability | Click
