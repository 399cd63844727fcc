"""Integral Ad Science: report rows. For its event pixels see `ias`.

Moment: the tag runs; "Total Unblocked Impressions" are those that it let through and saw.
Identity: none; a row is a day, a campaign, and whatever else the report is cut by (those rows are added up).
Time: days in the team's zone (--tz).
Money: none.
Viewability: measured and in-view impressions.
Documented: helpcenter.integralplatform.com, Reporting API (dimensions, metrics).
"""

from typing import Final

from streams.sources.reports import Report, report

SYSTEM: Final = report(
    "ias-report",
    "its tag runs",
    Report(
        date=("date", "Day"),
        campaign=("Campaign Id", "campaign_id", "DSP Campaign ID", "Campaign"),
        impressions=("Total Unblocked Impressions", "Total Impressions", "impressions", "Total Tracked Ads"),
        measurable=("Measured Impressions", "measured", "Total Measured Impressions", "measurable"),
        viewable=("In-View Impressions", "in_view", "Total In-View Impressions", "viewable"),
        clicks=(),
    ),
)
