"""DoubleVerify: event pixels of its tag. For its report rows see `dv-report`.

Moment: the tag runs; what it measures belongs to an impression that another system counted.
Identity: that impression's id, which the tag is given as a custom parameter: impression_id or dvp_impid.
Who counted it: the billing source, unless --source says otherwise; a view finds only renders of its own source.
Time: `ts` of the call, ms UTC; else when it was received.
Viewer: the tag does not know it: key topics by impression (STREAMS_KEY=impression), or add viewer_id to its parameters.
Viewability: measured -> measurable, viewable -> viewable, notViewable -> not viewable, unmeasured -> undetermined; or
raw signals (event=signal with in_view_pct, continuous_ms, ...), which the worker judges by the MRC's standards.
Documented: doubleverify.com (measured and viewable impressions, by the MRC's standards); parameters are the tag's own.
"""

from typing import Final

from streams.sources.pixels import pixels

SYSTEM: Final = pixels("doubleverify", "no count of its own: measured, viewable", "impression_id", "dvp_impid", "impid")
