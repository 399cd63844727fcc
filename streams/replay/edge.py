"""Whether what was not read could decide anything that is shown.

Law: nothing is in doubt that no chain of renders leads to from before what was read. An impression sent again within
the dedup horizon of one that may be a duplicate itself, or an ad shown again within the refresh interval of one that
may not have counted, is in doubt; where a chain reaches what is needed, reading has to begin earlier.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from streams.core.rules import Rules

Times = tuple[int, ...]


class TooShallow(Exception):
    """Reading began too late: a render that is shown hangs on one that was not read."""


class Edge:
    """The renders of one partition that are in doubt. `since` is the time before which renders may not have been read.

    Renders from `needed` on have to be certain; times in ms.
    """

    def __init__(self, rules: Rules, since: int, needed: int) -> None:
        self._interval = rules.refresh_interval_ms if rules.key == "viewer" else 0
        self._dedup = rules.dedup_horizon_ms
        self._kept = rules.refresh_interval_ms + rules.refresh_slack_ms
        self.known = since + rules.dedup_horizon_ms
        """Only renders up to here can be duplicates of what was not read."""
        self.begins = self.known - self._interval
        """Stream time up to which there is nothing to take note of."""
        self._needed = needed
        self._over = self.known + 2 * rules.dedup_horizon_ms + rules.lateness_ms
        self._again: dict[int, int] = {}
        """Identity -> the time of a render that is no duplicate if the first of them is one."""
        self._places: dict[int, Times] = {}
        """Place -> renders there that may have counted or not."""
        self._look_again_at = 0
        """Number of places at which it is worth while to look for some to forget."""

    def is_over(self, stream_time: int) -> bool:
        """Say whether nothing is in doubt any more."""
        return stream_time > self._over and not self._places

    def duplicate(self, key: int, ts: int, firsts: Iterable[int], place: int) -> None:
        """Take note of a duplicate: `firsts` are the times of the renders of its identity that are none."""
        near = [first for first in firsts if abs(first - ts) <= self._dedup]
        if ts > self.known and all(first <= self.known for first in near):
            self._again[key] = max(ts, self._again.get(key, 0))
            self._shown(place, ts)

    @property
    def has_again(self) -> bool:
        """Say whether there is any duplicate in doubt."""
        return bool(self._again)

    def first(self, times: Mapping[int, int]) -> None:
        """Take note of the times of renders that are no duplicates, by their identities. Raises TooShallow."""
        for key in self._again.keys() & times.keys():
            if abs(times[key] - self._again[key]) <= self._dedup:
                raise TooShallow

    def shown(self, places: Iterable[int], times: Iterable[int]) -> None:
        """Take note of renders in their places, whether they counted or were refreshes. Raises TooShallow."""
        if not self._interval:
            return
        for place, ts in zip(places, times, strict=True):
            if self.begins < ts <= self.known:
                self._shown(place, ts)
            elif ts > self.known and place in self._places:
                if any(abs(ts - doubt) < self._interval for doubt in self._places[place]):
                    if ts >= self._needed:
                        raise TooShallow
                    self._shown(place, ts)

    def _shown(self, place: int, ts: int) -> None:
        if place and self._interval:
            self._places[place] = (*self._places.get(place, ()), ts)

    def forget(self, stream_time: int) -> None:
        """Forget places in which no render can be near to one in doubt any more."""
        if len(self._places) < self._look_again_at and stream_time <= self._over:
            return
        before = max(self.known, stream_time) - self._kept
        for place, times in list(self._places.items()):
            kept = tuple(ts for ts in times if ts >= before)
            if kept:
                self._places[place] = kept
            else:
                del self._places[place]
        self._look_again_at = max(1_000, 2 * len(self._places))

    def plain(self) -> Any:
        """Return what is in doubt, as JSON can hold it."""
        return [list(self._again.items()), list(self._places.items())]

    def load(self, plain: Any) -> None:
        """Go on with what `plain` gave."""
        again, places = plain
        self._again = dict(again)
        self._places = {place: tuple(times) for place, times in places}
