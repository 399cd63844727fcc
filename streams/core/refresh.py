"""Renders that only replace one that was just counted: the same ad in the same slot before the same viewer.

Law: what a render is compared with is the counted renders of its place, before and after it in event time, never those
that were refreshes themselves. So renders at 0, 20, 40 and 60 s count at 0 and 40.
"""

from itertools import chain
from typing import Final

import xxhash

from streams.core.events import DEFAULT_SOURCE, Render
from streams.core.panes import pane_of

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
    """When counted renders of each place began, as far back as a later render can be compared with them, or further.

    They lie in two parts. The older part is forgotten as a whole when nothing in it is needed: to look for what can be
    forgotten place by place would cost as much as all that is asked of them.
    """

    def __init__(self, interval_ms: int, slack_ms: int) -> None:
        self._interval_ms = interval_ms
        self._reach_ms = interval_ms + slack_ms
        self.since = 0
        """Anchors before this are not needed."""
        self.newer: dict[int, tuple[int, ...]] = {}
        self.older: dict[int, tuple[int, ...]] = {}
        self._newest_newer = self._newest_older = -1

    def __len__(self) -> int:
        return sum(map(len, chain(self.newer.values(), self.older.values())))

    def of(self, place: int) -> tuple[int, ...]:
        """Return what is known of a place."""
        return (*self.older.get(place, ()), *self.newer.get(place, ()))

    def is_near(self, anchors: tuple[int, ...], ts_ms: int) -> bool:
        """Say whether one of the counted renders of a place lies closer than the interval, before or after."""
        interval = self._interval_ms
        for anchor in anchors:  # a generator would cost more than it looks at
            if -interval < ts_ms - anchor < interval:
                return True
        return False

    def add(self, place: int, ts_ms: int) -> None:
        """Take note of a counted render."""
        self.newer[place] = (*self.newer.get(place, ()), ts_ms)
        self.reached(ts_ms)

    def reached(self, ts_ms: int) -> None:
        """Take note of the newest of counted renders that are in `newer` already."""
        self._newest_newer = max(self._newest_newer, ts_ms)

    def needed_since(self, stream_time_ms: int) -> int:
        """Return the time from which on anchors are still asked for when a stream time is reached."""
        return max(self.since, pane_of(stream_time_ms - self._reach_ms))

    def forget(self, stream_time_ms: int) -> None:
        """Forget anchors that no render which is still asked can be near to."""
        self.since = self.needed_since(stream_time_ms)
        while self._newest_older < self.since and (self.older or self.newer):
            self.older, self._newest_older = self.newer, self._newest_newer
            self.newer, self._newest_newer = {}, -1
