"""Renders that only replace one that was just counted: the same ad in the same slot before the same viewer.

Law: what a render is compared with is the counted renders of its place, before and after it in event time, never those
that were refreshes themselves. So renders at 0, 20, 40 and 60 s count at 0 and 40.
"""

from array import array
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from streams.core.bulk import repeated
from streams.core.events import DEFAULT_SOURCE, Render
from streams.core.lookup import NO_POSITION, Numbers, Part, Sieve, capacity
from streams.core.panes import pane_of

NOWHERE: Final = 0
"""The place of a render without viewer or without slot."""

SMALLEST: Final = 1 << 14
"""Anchors of the smallest part."""


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


class _Part(Part):
    """Anchors: their places are its keys, and a place is there as often as it has anchors."""

    __slots__ = ("newest", "ts")

    def __init__(self, capacity: int, bit: int) -> None:
        super().__init__(capacity, bit)
        self.ts = array("q")
        self.newest = -1

    def add(self, places: Numbers, ts: Numbers) -> None:
        """Take note of anchors."""
        first = len(self)
        self.keys.frombytes(places.tobytes())
        self.ts.frombytes(ts.tobytes())
        self.newest = max(self.newest, int(ts.max()))
        self.put(np.arange(first, len(self)), once=False)

    def near(self, places: Numbers, ts: Numbers, interval_ms: int) -> NDArray[np.bool_]:
        """Say whether each place has an anchor that is closer to a time than the interval, before or after."""
        times = np.frombuffer(self.ts, np.int64)

        def is_near(anchors: Any, at: Any) -> Any:
            return abs(times.take(anchors) - ts.take(at)) < interval_ms

        near: NDArray[np.bool_] = self.search(places, is_near) != NO_POSITION
        return near

    def of(self, places: Numbers) -> list[int]:
        """Return the times of the anchors that places have."""
        times: list[int] = []

        def pass_by(anchors: Any, _: Any) -> bool:
            times.extend(self.ts[anchor] for anchor in np.atleast_1d(anchors).tolist())
            return False

        self.search(places, pass_by)
        return times


class Anchors:
    """When counted renders of each place began, as far back as a later render can be compared with them, or further.

    They lie in parts, and a part is forgotten as a whole when nothing in it is needed: to look for what can be
    forgotten place by place would cost as much as all that is asked of them.
    """

    def __init__(self, interval_ms: int, slack_ms: int) -> None:
        self._interval_ms = interval_ms
        self._reach_ms = interval_ms + slack_ms
        self.since = 0
        """Anchors before this are not needed."""
        self._parts: list[_Part] = []
        self._sieve = Sieve()

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def of(self, place: int) -> list[int]:
        """Return the times that are known of a place."""
        places = np.array([place], np.uint64).view(np.int64)
        return [ts for part, _ in self._sieve.parts(self._parts, places) for ts in part.of(places)]

    def near(self, places: Numbers, ts: Numbers) -> NDArray[np.bool_]:
        """Say of renders whether one counted in the same place lies closer than the interval, before or after."""
        found = np.zeros(len(places), np.bool_)
        if not len(ts):
            return found
        # A viewer who meets a slot again after longer than the interval has anchors, which are not looked at for that.
        reach = int(ts.min()) - self._interval_ms
        recent = [part for part in self._parts if reach < part.newest]
        for part, here in self._sieve.parts(recent, places):
            found[here] |= part.near(places.take(here), ts.take(here), self._interval_ms)
        return found

    def refreshes(self, places: Numbers, ts: Numbers, asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Say which renders of a batch are refreshes: only those can be that are asked, and all others count.

        So what comes to one place twice in a batch is compared with what counted there before it in the batch, too.
        """
        found = np.zeros(len(places), np.bool_)
        candidates = asked.nonzero()[0]
        found[candidates] = self.near(places.take(candidates), ts.take(candidates))
        counted: dict[int, list[int]] = {}
        for at in (repeated(places) & (places != NOWHERE)).nonzero()[0].tolist():
            time, here = int(ts[at]), counted.setdefault(int(places[at]), [])
            if asked[at] and any(abs(time - other) < self._interval_ms for other in here):
                found[at] = True
            if not found[at]:
                here.append(time)
        return found

    def add(self, places: Numbers, ts: Numbers) -> None:
        """Take note of counted renders."""
        if not len(places):
            return
        if not self._parts or not self._parts[-1].has_room(len(places)):
            wanted = max(SMALLEST, len(self) // 4, len(places))
            self._parts.append(_Part(capacity(wanted), self._sieve.open()))
        self._parts[-1].add(places, ts)
        self._sieve.add(places, self._parts)

    def needed_since(self, stream_time_ms: int) -> int:
        """Return the time from which on anchors are still asked for when a stream time is reached."""
        return max(self.since, pane_of(stream_time_ms - self._reach_ms))

    def forget(self, stream_time_ms: int) -> None:
        """Forget anchors that no render which is still asked can be near to."""
        self.since = self.needed_since(stream_time_ms)
        while self._parts and self._parts[0].newest < self.since:
            forgotten, *self._parts = self._parts
            self._sieve.close(forgotten, self._parts)
