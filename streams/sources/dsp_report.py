"""Report rows of a DSP, by the names that DSPs and Display & Video 360 use.

Moment: the won bid's impression as the DSP counts it: by its own pixel, or by the exchange's notice.
Identity: none; a row is a day, a campaign, and whatever else the report is cut by (those rows are added up).
Time: days in the zone of the report (--tz).
Money: what the advertiser pays, in currency units (Advertiser Currency, else --currency); *_micros is 10^-6.
Documented: support.google.com/displayvideo (report metrics), as an example; say --source NAME for several DSPs.
"""

from typing import Final

from streams.sources.reports import Report, report

SYSTEM: Final = report(
    "dsp",
    "won bid's impression, by pixel or notice",
    Report(
        date=("date", "Day"),
        campaign=("campaign_id", "Campaign ID", "Insertion Order ID", "campaign"),
        impressions=("impressions", "Billable Impressions"),
        measurable=(
            "measurable_impressions",
            "Active View: Measurable Impressions",
            "measurable",
            "Measured Impressions",
        ),
        viewable=("viewable_impressions", "Active View: Viewable Impressions", "viewable"),
        clicks=("clicks",),
        spend=(
            ("spend_micros", "micros"),
            ("cost_micros", "micros"),
            ("Revenue (Adv Currency)", "units"),
            ("Revenue (Advertiser Currency)", "units"),
            ("spend", "units"),
            ("cost", "units"),
            ("Total Media Cost (Advertiser Currency)", "units"),
        ),
        currency=("currency", "Advertiser Currency"),
    ),
)
