"""Equativ (Smart AdServer): rows of the reporting API, CSV with `;` between columns.

Moment: on load (default) or one pixel on screen, by the network's setting; in apps one pixel; video by VAST.
Identity: none; a row is a day, a campaign, and whatever else the report is cut by (those rows are added up).
Time: days in the network's zone (--tz).
Money: revenue or cost in currency units (--currency).
Viewability: large display ads have the threshold of 30 % only in desktop formats of more than 242,500 px.
Documented: help.smartadserver.com and equativ.helpjuice.com, Reporting API (dimensions, metrics).
"""

from typing import Final

from streams.sources.reports import Report, report

SYSTEM: Final = report(
    "equativ",
    "on load, or one pixel on screen",
    Report(
        date=("Day", "Date"),
        campaign=("CampaignId", "Campaign ID", "InsertionId", "CampaignName"),
        impressions=("Impressions",),
        measurable=("ViewabilityMeasuredImpressions", "MeasuredImpressions", "MeasurableImpressions"),
        viewable=("ViewableImpressions",),
        clicks=("Clicks",),
        spend=(("Revenue", "units"), ("TotalPaid", "units"), ("Cost", "units")),
        currency=("CurrencyCode", "Currency"),
    ),
)
