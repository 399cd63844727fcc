"""Renders that only replace one that was just counted: the same ad in the same slot before the same viewer.

Law: what a render is compared with is the counted renders of its place, before and after it in event time, never those
that were refreshes themselves. So renders at 0, 20, 40 and 60 s count at 0 and 40.
"""

from array import array
from itertools import repeat
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from streams.core.events import DEFAULT_SOURCE, Render
from streams.core.panes import PANE_MS, pane_of

NOWHERE: Final = 0
"""The place of a render without viewer or without slot."""


def place_of(render: Render) -> int:
    """Return the 64-bit key of (source, viewer, slot, creative or else campaign), or NOWHERE."""
    if not render.viewer_id or not render.slot_id:
        return NOWHERE
    return xxhash.xxh3_64_intdigest(render.viewer_id.encode(), ad_of(render)) or 1


def ad_of(render: Render) -> int:
    """Return the key of what is seen and where, whoever sees it.

    Hashes in a chain: no spelling makes two of them one.
    """
    what = "creative " + render.creative_id if render.creative_id else "campaign " + render.campaign_id
    key = 0
    for word in (render.source or DEFAULT_SOURCE, render.slot_id or "", what):
        key = xxhash.xxh3_64_intdigest(word.encode(), key)
    return key or 1


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

    def is_near(self, anchors: tuple[int, ...], ts_ms: int) -> bool:
        """Say whether one of the counted renders of a place lies closer than the interval, before or after."""
        interval = self._interval_ms
        for anchor in anchors:  # a generator would cost more than it looks at
            if -interval < ts_ms - anchor < interval:
                return True
        return False

    def add(self, place: int, ts_ms: int) -> None:
        """Take note of a counted render."""
        self.by_place[place] = (*self.by_place.get(place, ()), ts_ms)
        self._panes.setdefault(pane_of(ts_ms), array("Q")).append(place)

    def note(self, places: NDArray[np.uint64], ts: NDArray[np.int64]) -> None:
        """Take note of when they can be forgotten of renders that are in `by_place` already."""
        panes = ts // PANE_MS * PANE_MS
        for pane in np.unique(panes).tolist():
            self._panes.setdefault(pane, array("Q")).frombytes(places[panes == pane].tobytes())

    def needed_since(self, stream_time_ms: int) -> int:
        """Return the time from which on anchors are still asked for when a stream time is reached."""
        return max(self.since, pane_of(stream_time_ms - self._reach_ms))

    def forget(self, stream_time_ms: int) -> None:
        """Forget anchors that no render which is still asked can be near to."""
        self.since = self.needed_since(stream_time_ms)
        for pane in [pane for pane in self._panes if pane < self.since]:
            places = self._panes.pop(pane)
            for place, anchors in zip(places, map(self.by_place.pop, places, repeat(())), strict=True):
                # Nearly all have one anchor, of this pane.
                if len(anchors) > 1 or (anchors and anchors[0] >= self.since):
                    self._keep(place, anchors)

    def _keep(self, place: int, anchors: tuple[int, ...]) -> None:
        kept = tuple(anchor for anchor in anchors if anchor >= self.since)
        if kept:
            self.by_place[place] = kept
