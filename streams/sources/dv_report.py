"""DoubleVerify: report rows. For its event pixels see `doubleverify`.

Moment: the tag runs; "Monitored Ads" are the impressions that it saw.
Identity: none; a row is a day, a campaign, and whatever else the report is cut by (those rows are added up).
Time: days in the account's zone (--tz).
Money: none.
Viewability: measured and viewable impressions, by the MRC's standards.
Documented: DV Pinnacle, report metrics (to its customers).
"""

from typing import Final

from streams.sources.reports import Report, report

SYSTEM: Final = report(
    "dv-report",
    "its tag runs",
    Report(
        date=("date", "Day"),
        campaign=("Campaign ID", "campaign_id", "Campaign Code", "Campaign"),
        impressions=("Monitored Ads", "Monitored Impressions", "impressions"),
        measurable=("Measured Impressions", "measured", "Viewability Measured Impressions", "measurable"),
        viewable=("Viewable Impressions", "in_view", "viewable"),
        clicks=(),
    ),
)
