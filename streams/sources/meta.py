"""Meta: rows of the Insights API as CSV or JSON lines (each element of `data` a line).

Moment: any part of the ad is on screen for the first time. Scrolling back to it is not a second impression; invalid
traffic and over-delivery are taken out, also afterwards.
Identity: none; a row is a day (date_start = date_stop, so time_increment=1), a campaign, and its breakdowns.
Time: days in the ad account's zone (--tz).
Money: spend in currency units of the account (account_currency, else --currency); cpm is spend x 1000 / impressions.
Viewability: none. An impression on screen is not one that the MRC's standard calls viewable.
Documented: developers.facebook.com/docs/marketing-api/insights.
"""

from typing import Final

from streams.sources.reports import Report, report

SYSTEM: Final = report(
    "meta",
    "any part on screen for the first time",
    Report(
        date=("date_start", "Reporting starts", "Day"),
        campaign=("campaign_id", "Campaign ID"),
        impressions=("impressions",),
        clicks=("clicks", "Clicks (all)"),
        spend=(("spend", "units"), ("Amount spent", "units")),
        last_day=("date_stop", "Reporting ends"),
        currency=("account_currency", "Currency", "currency"),
    ),
)
