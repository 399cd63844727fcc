"""What somebody's report says of one campaign and day: compared with what was counted, and never counted itself."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from streams.core.events import Count, Currency, Id

REPORTED_COUNTS: Final = "reported-counts"
"""The topic. A later record of the same key (campaign, source, date, currency) replaces the one before it."""


class ReportedCount(msgspec.Struct, kw_only=True, frozen=True):
    """The figures of one source for one campaign on one calendar day; None where the report does not say.

    `date` is ISO 8601, and the day is that of `time_zone` (IANA): days of two reports may begin at different moments.
    `spend` is in nano-units of `currency`; neither is there without the other.
    """

    source: Id
    campaign_id: Id
    date: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    time_zone: Id = "UTC"
    impressions: Count | None = None
    measurable: Count | None = None
    viewable: Count | None = None
    clicks: Count | None = None
    spend: int | None = None
    currency: Currency | None = None
