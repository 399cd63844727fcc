"""What becomes of every event, as it comes: by the core that counts, from the state that the workers are in.

Law: a tap knows what its journal knows, the same as a worker that takes the partition over. So it calls an event a
duplicate, a refresh or an orphan when the worker does, also by what came long before it. It lifts no silent topic by
itself, but for what it is told.
"""

from itertools import islice
from typing import Final

from streams.core.campaigns import Campaigns
from streams.core.events import RENDERS, Event, Malformed
from streams.core.rules import Outcome, Rules
from streams.core.waiting import Waiting
from streams.replay.explain import PENDING, Finding, Place, Search, Witness

BEFORE: Final = -1
"""The offset of what came before the tap began: where it lay is not in the journal."""

_KEPT: Final = 100_000
"""Renders whose places are known, so that others can refer to them."""


class Everything(Search):
    """A search for all there is."""

    def __init__(self) -> None:
        super().__init__("")

    def is_one(self, event: Event) -> bool:
        """Say that it is."""
        return True

    def is_malformed_one(self, value: bytes | None) -> bool:
        """Say that it is."""
        return True


class Tap(Witness):
    """A partition that tells what becomes of every event. Fold a journal into it first."""

    def __init__(self, partition: int, rules: Rules, campaigns: Campaigns) -> None:
        super().__init__(Everything(), partition, rules, campaigns)
        self._news: dict[Place, Finding] = {}

    def told(self) -> list[Finding]:
        """Return, once, what became of events since the last call; what is pending is told again when it is settled."""
        news, self._news = list(self._news.values()), {}
        for found in news:
            if found.outcome != PENDING:
                self._findings.pop(found.place, None)
        self._keep_few()
        return news

    def _keep_few(self) -> None:
        if len(self._rows) > 2 * _KEPT:
            for row in [*islice(self._rows, _KEPT)]:
                del self._rows[row]
            self._anchored.clear()

    def _note(self, topic: str, offset: int, event: Event | Malformed) -> Finding:
        found = super()._note(topic, offset, event)
        self._news[found.place] = found
        return found

    def _settle(self, waiting: Waiting, outcome: Outcome) -> None:
        place = Place(waiting.topic, self.number, waiting.offset)
        self._news[place] = self._findings.setdefault(place, Finding(place=place, ts=waiting.ts))
        super()._settle(waiting, outcome)

    def _render_at(self, row: int) -> Finding:
        return self._rows.get(row) or self._from_before(self.impressions.ts_of(row))

    def _nearest_anchor(self, place: int, ts: int) -> Finding:
        nearest = min(self.anchors.of(place), key=lambda anchor: abs(anchor - ts))
        known = [one for one in self._anchored.get(place, ()) if one.ts == nearest]
        return known[0] if known else self._from_before(nearest)

    def _from_before(self, ts: int) -> Finding:
        return Finding(place=Place(RENDERS, self.number, BEFORE), ts=ts)
