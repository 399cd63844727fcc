"""What a replay counts: a range of event time, from some topics, without what is excluded.

Law: what is shown is what lies in the range. What is read is more: as far before it as anything can lie that decides
what becomes of an event in it, and as far behind it as anything can come that changes one of its windows.

    unread │ doubtful        │ known, shown by nobody │ the range: shown       │ until nothing can change it │ unread
           since ──────────────────────────────────── start ───────────────── stop ───────────────────────────>
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from streams.core.campaigns import Campaigns
from streams.core.events import DEFAULT_SOURCE, RENDERS, TOPICS, Event, Malformed
from streams.core.panes import PANE_MS
from streams.core.rules import LIFT_BEHIND_MS, Rules

_FOREVER: Final = 1 << 62


class Exclusion(NamedTuple):
    """Events of one source, and of a range of event time in ms, that are as if they had never been sent."""

    source: str
    start: int = 0
    stop: int = _FOREVER

    def holds(self, event: Event | Malformed) -> bool:
        """Say whether an event is left out. What is malformed has no source."""
        if isinstance(event, Malformed):
            return False
        return (event.source or DEFAULT_SOURCE) == self.source and self.start <= event.ts < self.stop


class Scope(NamedTuple):
    """A range of event time in ms, None where it has no bound, and what is counted of it."""

    start: int | None = None
    stop: int | None = None
    topics: tuple[str, ...] = TOPICS
    excluded: tuple[Exclusion, ...] = ()

    def holds(self, ts_ms: int) -> bool:
        """Say whether a time lies in the range."""
        return (self.start is None or ts_ms >= self.start) and (self.stop is None or ts_ms < self.stop)

    def is_excluded(self, event: Event | Malformed) -> bool:
        """Say whether an event is left out."""
        return any(one.holds(event) for one in self.excluded)

    def reads_to(self, topic: str, rules: Rules) -> int | None:
        """Return the stream time at which enough of a topic is read, in ms; None if that is its end.

        Everything acceptable of the range has come then, and a lift of the topics that are silent leaves it final.
        """
        if self.stop is None:
            return None
        behind = rules.lateness_ms + (0 if topic == RENDERS else rules.viewability_horizon_ms)
        return self.stop + behind + LIFT_BEHIND_MS + PANE_MS


def first_needed(start: int, campaigns: Campaigns) -> int:
    """Return the time from which on every render has to be decided as it was, for figures from a time on (ms).

    How often a viewer saw a campaign is counted from the start of its period.
    """
    caps = [campaign.cap for campaign in campaigns.by_id.values() if campaign.cap is not None]
    return min([start, *(start - start % cap.period_ms for cap in caps)])


def reach_ms(rules: Rules) -> int:
    """Return how far before what is needed reading begins, in ms.

    A view belongs to the first of the renders of its impression that it may belong to, so those of a viewability
    horizon must be known to be first ones or duplicates. Whether a render is one is known when what lies a dedup
    horizon before it is, and that again a dedup horizon later. Longer chains are noticed (`edge`).
    """
    chain = rules.early_ms + rules.viewability_horizon_ms + 2 * rules.dedup_horizon_ms
    return chain + rules.refresh_interval_ms + rules.refresh_slack_ms


def texts(exclusions: Iterable[Exclusion]) -> list[dict[str, int | str | None]]:
    """Return exclusions as a report names them."""
    return [
        {"source": one.source, "from": one.start, "to": None if one.stop == _FOREVER else one.stop}
        for one in sorted(exclusions)
    ]
