"""A partition of viewers that also tells of which campaign and minute the renders are that did not count.

Law: no rule is decided here. What the core decides of a batch is looked at, and added up.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.core.campaigns import Campaigns
from streams.core.delta import Progress
from streams.core.events import DEFAULT_SOURCE, RENDERS, Render
from streams.core.impressions import COUNTED, INVALID
from streams.core.lookup import Numbers
from streams.core.panes import minute_of
from streams.core.partition import Partition, identity
from streams.core.refresh import NOWHERE, place_of
from streams.core.rules import OUTCOME_NAMES, Outcome, Rules
from streams.replay.edge import Edge
from streams.replay.scope import Scope

REFUSED: Final = tuple(
    OUTCOME_NAMES[outcome] for outcome in (Outcome.LATE, Outcome.DUPLICATE, Outcome.INVALID_TRAFFIC, Outcome.REFRESH)
)
"""What becomes of renders that are events and do not count."""


class Refused(NamedTuple):
    """Renders of one campaign, source and minute (its start in ms) with one outcome."""

    campaign_id: str
    source: str
    minute: int
    outcome: str


class Tally(Partition):
    """Counts as a partition does. `refused` are the renders since the last checkpoint that did not count."""

    def __init__(self, rules: Rules, campaigns: Campaigns, scope: Scope, edge: Edge | None = None) -> None:
        super().__init__(rules, campaigns)
        self.refused: dict[Refused, int] = defaultdict(int)
        self._scope = scope
        self.edge = edge
        """None where nothing is in doubt."""
        self._late: Any = None
        self._first: Any = None
        self._judgement: Any = None

    def _firsts(self, keys: Numbers, ts: Numbers, late: NDArray[np.bool_]) -> Any:
        self._late = late
        self._first, older = super()._firsts(keys, ts, late)
        return self._first, older

    def _judged(self, renders: Sequence[Render], ts: Numbers, behind: Numbers, progress: Progress) -> Any:
        self._judgement = super()._judged(renders, ts, behind, progress)
        return self._judgement

    def _renders(self, offsets: Sequence[int], renders: Sequence[Render], ts: Numbers, progress: Progress) -> None:
        super()._renders(offsets, renders, ts, progress)
        duplicates = (~self._first & ~self._late).nonzero()[0]
        born = np.frombuffer(self._judgement.born, np.uint8)
        firsts = self._first.nonzero()[0]
        invalid, free = firsts[(born & INVALID) != 0], firsts[(born & (COUNTED | INVALID)) == 0]
        for outcome, chosen in zip(REFUSED, (self._late.nonzero()[0], duplicates, invalid, free), strict=True):
            self._refuse(outcome, [renders[at] for at in chosen.tolist()])
        if self.edge is not None and progress.stream_time > self.edge.begins:
            self._look_at_edge(self.edge, [renders[at] for at in duplicates.tolist()], [renders[at] for at in firsts])
            if self.edge.is_over(progress.stream_time):
                self.edge = None

    def _refuse(self, outcome: str, renders: Iterable[Render]) -> None:
        for render in renders:
            if self._scope.holds(render.ts):
                source = render.source or DEFAULT_SOURCE
                self.refused[Refused(render.campaign_id, source, minute_of(render.ts), outcome)] += 1

    def _look_at_edge(self, edge: Edge, duplicates: list[Render], firsts: list[Render]) -> None:
        """Let the edge know what was decided. Raises TooShallow."""
        if edge.has_again:
            edge.first({_key(render): render.ts for render in firsts})
        places = map(_place, firsts, self._judgement.places.view(np.uint64).tolist(), self._judgement.born)
        edge.shown(places, [render.ts for render in firsts])
        for render in duplicates:
            if render.ts > edge.known:
                rows = self.impressions.with_older(self.impressions.newest(_key(render)))
                edge.duplicate(_key(render), render.ts, map(self.impressions.ts_of, rows), place_of(render))
        edge.forget(self.progress[RENDERS].stream_time)


def _key(render: Render) -> int:
    return identity(render.source, render.impression_id)


def _place(render: Render, place: int, born: int) -> int:
    """Return the place of a render: of a refresh, the core does not say it."""
    return place or (NOWHERE if born else place_of(render))
