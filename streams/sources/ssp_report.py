"""Report rows of an SSP or exchange.

Moment: on render or at the VAST impression, when the SSP bills (burl).
Identity: none; a row is a day, a campaign (or deal), and whatever else the report is cut by (those rows are added up).
Time: days in the zone of the report (--tz).
Money: the publisher's revenue in currency units (--currency where no column says); *_micros is 10^-6.
Documented: each SSP's own; say --source NAME for several SSPs.
"""

from typing import Final

from streams.sources.reports import Report, report

SYSTEM: Final = report(
    "ssp",
    "on render or VAST impression",
    Report(
        date=("date", "Day"),
        campaign=("campaign_id", "Campaign ID", "deal_id", "Deal ID", "campaign"),
        impressions=("impressions", "paid_impressions", "Paid Impressions", "ad_impressions"),
        measurable=("measurable_impressions", "measurable", "Measurable Impressions"),
        viewable=("viewable_impressions", "viewable", "Viewable Impressions"),
        clicks=("clicks",),
        spend=(
            ("revenue_micros", "micros"),
            ("spend_micros", "micros"),
            ("revenue", "units"),
            ("spend", "units"),
            ("publisher_revenue", "units"),
        ),
        currency=("currency", "currency_code"),
    ),
)
