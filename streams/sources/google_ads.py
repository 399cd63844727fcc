"""Google Ads: rows of the reporting API (`SearchGoogleAdsStream`) as CSV or JSON lines, or a report as exported.

Moment: the ad begins to render. Under vCPM bidding only viewable impressions cost.
Identity: none; a row is a day, a campaign, and whatever else the report is cut by (those rows are added up).
Time: days in the account's zone (--tz).
Money: cost_micros, 10^-6 of the account's currency; exports have `Cost` in currency units.
Viewability: active_view_impressions are the viewable ones, active_view_measurable_impressions the measurable.
Documented: developers.google.com/google-ads/api/fields (segments, metrics).
"""

from typing import Final

from streams.sources.reports import Report, report

SYSTEM: Final = report(
    "google-ads",
    "begins to render",
    Report(
        date=("segments.date", "date", "Day"),
        campaign=("campaign.id", "campaign_id", "Campaign ID", "campaign"),
        impressions=("metrics.impressions", "impressions", "Impr."),
        measurable=(
            "metrics.active_view_measurable_impressions",
            "active_view_measurable_impressions",
            "Measurable impr.",
        ),
        viewable=("metrics.active_view_impressions", "active_view_impressions", "Viewable impr."),
        clicks=("metrics.clicks", "clicks"),
        spend=(("metrics.cost_micros", "micros"), ("cost_micros", "micros"), ("Cost", "units")),
        currency=("customer.currency_code", "currency_code", "Currency code", "currency"),
    ),
)
