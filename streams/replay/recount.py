"""Counting files again, through the same core as the worker, in memory that does not grow with the files.

Law: a report is a function of the lines of each file and of the rules; not of the order in which files are read, nor of
the pieces. Cells are added up when the core calls them final, and are forgotten then; what is left is added at the end.

    renders ───┐
    views   ───┼─> merged: the furthest behind first ─> Partition ─> final cells ─> sums by slice of event time
    clicks  ───┘
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final

from streams.core.delta import Batch
from streams.core.events import RENDERS, TOPICS, Malformed
from streams.core.panes import Cell, Series
from streams.core.partition import Partition
from streams.core.rules import DAY, OUTCOME_NAMES
from streams.replay.files import EventFile
from streams.wire.events import decoder

CHUNK: Final = 1_000
"""Lines that are decoded and applied at a time."""

_FORGET_EVERY: Final = 32
"""Batches after which the core forgets what nothing can refer to any more."""

_END_OF_TIME: Final = 4_102_444_800_000 + 40_000 * DAY
"""Later than anything that an event can still change, in ms."""

Slicing = Callable[[int], int]
"""Pane -> the slice of event time that holds it, both by their starts in ms."""

Sums = dict[tuple[Series, int], Cell]
"""Figures by series and start of a slice in ms."""


def recount(
    state: Partition,
    files: Mapping[str, EventFile],
    slicings: Mapping[str, Slicing],
    tell: Callable[[int], None] = lambda lines: None,
    chunk: int = CHUNK,
) -> dict[str, Sums]:
    """Count the files of each topic to their ends in an empty state; a topic without a file is empty.

    Return the sums of each slicing. `tell` hears how many lines were just counted. Raises FileError.
    """
    kept = Recount(state, slicings)
    for batch, _ in merged(files, chunk):
        kept.apply(batch)
        tell(len(batch.events))
    kept.end()
    return kept.sums


class Recount:
    """One partition that is counted again, and the sums of all cells that were final, each added once."""

    def __init__(self, state: Partition, slicings: Mapping[str, Slicing], sums: dict[str, Sums] | None = None) -> None:
        """Begin with sums of other partitions, if there are any."""
        self.sums: dict[str, Sums] = {name: defaultdict(Cell) for name in slicings} if sums is None else sums
        self._state = state
        self._slicings = slicings
        self._batches = 0
        self._before = 0

    def apply(self, batch: Batch) -> None:
        """Count a batch; an empty one is the end of its topic."""
        if batch.events:
            self._state.apply(batch)
        elif batch.topic != RENDERS:
            # What has ended holds nothing back any more. Renders do: at their end, pending stays pending.
            self._state.lift(batch.topic, _END_OF_TIME)
        self._batches += 1
        if self._batches % _FORGET_EVERY == 0:
            self._forget()

    def end(self) -> None:
        """Add what is left."""
        self._add(_END_OF_TIME)

    def _forget(self) -> None:
        """Close a journal record that nobody writes, so that the state forgets what it may."""
        final, rules = self._state.final_before(), self._state.rules
        # To look for final cells is to look at all of them: so only when a good part of them is final.
        if final - self._before > (rules.lateness_ms + rules.viewability_horizon_ms) // 4:
            self._add(final)
            self._before = final
        self._state.take(self._before)

    def _add(self, before: int) -> None:
        """Add the cells of the panes before a time."""
        for touched in self._state.cells():
            if touched.pane < before:
                for name, start_of in self._slicings.items():
                    self.sums[name][touched.series, start_of(touched.pane)].add(touched.cell)


def outcomes(state: Partition) -> dict[str, Any]:
    """Return by topic how many lines have each outcome and how many wait, and why lines were malformed."""
    events = {topic: dict(zip(OUTCOME_NAMES, state.progress[topic].outcomes, strict=True)) for topic in TOPICS}
    told: dict[str, Any] = {"events": events, "pending": dict(state.pending)}
    return told | ({"malformed": dict(sorted(state.reasons.items()))} if state.reasons else {})


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sum of two tables of counts, and of tables of such tables."""
    names = {**one, **other}
    return {name: _sum(one.get(name), other.get(name)) for name in names}


def _sum(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one if other is None else other
    return added(one, other) if isinstance(one, Mapping) else one + other


# --- three topics in one order ----------------------------------------------------------------------------------------


def merged(files: Mapping[str, EventFile], chunk: int = CHUNK) -> Iterator[tuple[Batch, list[bytes]]]:
    """Yield batches and their lines, always of the topic that is furthest behind in event time.

    An empty batch is the end of its topic.
    Their order decides no figure: only how much has to be held meanwhile.
    """
    return heapq.merge(*(_batches(topic, files.get(topic), chunk) for topic in TOPICS), key=_begin)


def _batches(topic: str, file: EventFile | None, chunk: int) -> Iterator[tuple[Batch, list[bytes]]]:
    decode = decoder(topic)
    for first, values in file.chunks(chunk) if file is not None else ():
        stop = first + len(values)
        batch = Batch(topic, range(first, stop), decode(values), stop)  # lines have no own time, as rule 2 wants it
        yield batch, values
    yield Batch(topic, (), (), 0), []


def _begin(piece: tuple[Batch, list[bytes]]) -> int:
    """Return the time of its first event in ms; 0 if there is none, so that nothing waits for it."""
    return next((event.ts for event in piece[0].events if not isinstance(event, Malformed)), 0)


# --- days -------------------------------------------------------------------------------------------------------------


def days_of(zone: tzinfo) -> Slicing:
    """Return what says in which day of a zone a pane lies: midnight is on a pane's boundary everywhere."""

    @lru_cache(maxsize=65_536)
    def start_of_day(pane: int) -> int:
        return start_of(day_of(pane, zone), zone)

    return start_of_day


def day_of(ts_ms: int, zone: tzinfo) -> date:
    """Return the day that it is in a zone."""
    return datetime.fromtimestamp(ts_ms // 1000, zone).date()


def end_of(day: date, zone: tzinfo) -> int:
    """Return the end of a day in ms: 23 or 25 hours after its start where clocks change."""
    return start_of(day + timedelta(days=1), zone)


def start_of(day: date, zone: tzinfo) -> int:
    """Return the start of a day in ms."""
    return int(datetime.combine(day, time(), zone).timestamp()) * 1000
