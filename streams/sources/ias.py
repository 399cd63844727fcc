"""Integral Ad Science: event pixels of its tag. For its report rows see `ias-report`.

Moment: the tag runs; what it measures belongs to an impression that another system counted.
Identity: that impression's id, which the tag is given as a custom parameter: impression_id or ias_impId.
Who counted it: the billing source, unless --source says otherwise; a view finds only renders of its own source.
Time: `ts` of the call, ms UTC; else when it was received.
Viewer: the tag does not know it: key topics by impression (STREAMS_KEY=impression), or add viewer_id to its parameters.
Viewability: measured -> measurable, inView -> viewable, outOfView -> not viewable, unmeasured -> undetermined; or raw
signals (event=signal with in_view_pct, continuous_ms, ...), which the worker judges by the MRC's standards.
Documented: helpcenter.integralplatform.com (viewability metrics: measured, in-view, out of view).
"""

from typing import Final

from streams.sources.pixels import pixels

SYSTEM: Final = pixels("ias", "no count of its own: measured, in view", "impression_id", "ias_impId", "impid")
