"""Renders that only replace one that was just counted: the same ad in the same slot before the same viewer.

Law: what a render is compared with is the counted renders of its place, before and after it in event time, never those
that were refreshes themselves. So renders at 0, 20, 40 and 60 s count at 0 and 40.
"""

from array import array
from functools import lru_cache
from typing import Final

import xxhash

from streams.core.events import DEFAULT_SOURCE, Render
from streams.core.panes import PANE_MS, pane_of

NOWHERE: Final = 0
"""The place of a render without viewer or without slot."""


def place_of(render: Render) -> int:
    """Return the 64-bit key of (source, viewer, slot, creative or else campaign), or NOWHERE."""
    if not render.viewer_id or not render.slot_id:
        return NOWHERE
    ad = _ad(render.source, render.slot_id, render.creative_id, render.campaign_id)
    return xxhash.xxh3_64_intdigest(render.viewer_id.encode(), ad) or 1


@lru_cache(maxsize=65_536)
def _ad(source: str | None, slot_id: str, creative_id: str | None, campaign_id: str) -> int:
    """Return the key of what a viewer saw and where. Hashes in a chain: no spelling makes two of them one."""
    what = "creative " + creative_id if creative_id else "campaign " + campaign_id
    key = 0
    for word in (source or DEFAULT_SOURCE, slot_id, what):
        key = xxhash.xxh3_64_intdigest(word.encode(), key)
    return key


class Anchors:
    """When counted renders of each place began, as far back as a later render can be compared with them."""

    def __init__(self, interval_ms: int, slack_ms: int) -> None:
        self._interval_ms = interval_ms
        self._reach_ms = interval_ms + slack_ms
        self.since = 0
        """Anchors before this are forgotten."""
        self.by_place: dict[int, tuple[int, ...]] = {}
        self._panes: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._panes.values()))

    def is_near(self, place: int, ts_ms: int) -> bool:
        """Say whether a counted render of the place lies closer than the interval, before or after."""
        return any(abs(ts_ms - anchor) < self._interval_ms for anchor in self.by_place.get(place, ()))

    def add(self, place: int, ts_ms: int) -> None:
        """Take note of a counted render."""
        known = self.by_place.get(place)
        self.by_place[place] = (ts_ms,) if known is None else (*known, ts_ms)
        pane = ts_ms - ts_ms % PANE_MS
        if pane not in self._panes:
            self._panes[pane] = array("Q")
        self._panes[pane].append(place)

    def needed_since(self, stream_time_ms: int) -> int:
        """Return the time from which on anchors are still asked for when a stream time is reached."""
        return max(self.since, pane_of(stream_time_ms - self._reach_ms))

    def forget(self, stream_time_ms: int) -> None:
        """Forget anchors that no render which is still asked can be near to."""
        self.since = self.needed_since(stream_time_ms)
        for pane in [pane for pane in self._panes if pane < self.since]:
            for place in self._panes.pop(pane):
                self._thin_out(place)

    def _thin_out(self, place: int) -> None:
        kept = tuple(anchor for anchor in self.by_place.get(place, ()) if anchor >= self.since)
        if kept:
            self.by_place[place] = kept
        else:
            self.by_place.pop(place, None)
