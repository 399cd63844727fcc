"""Counting a range again: every partition of viewers by the worker's core, and a checkpoint now and then.

Law: what comes out is a function of the records and of the rules: not of the order in which topics and partitions are
read, nor of when checkpoints were made, nor of how often the run was interrupted.

    batches of a partition ─> without what is excluded ─> cut where enough is read ─> Tally ─> checkpoint ─> Store
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Final, TypeVar

from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER, Batch, piece
from streams.core.events import RENDERS, TOPICS, Malformed
from streams.core.panes import pane_of
from streams.core.partition import Partition
from streams.core.rules import LIFT_BEHIND_MS, OUTCOME_NAMES, Rules
from streams.replay.edge import Edge
from streams.replay.scope import Scope
from streams.replay.store import Store
from streams.replay.tally import Tally

T = TypeVar("T")

_END_OF_TIME: Final = 1 << 62

HasEnded = Callable[[str, int, int], bool]
"""(topic, partition, offset) -> whether no record comes after this one's place."""


class Count:
    """All partitions of one run. Goes on where the store's last checkpoint was."""

    def __init__(
        self,
        store: Store,
        scope: Scope,
        rules: Rules,
        campaigns: Campaigns,
        partitions: int,
        edges: Mapping[int, Edge] | None = None,
    ) -> None:
        self._store = store
        self._scope = scope
        self._rules = rules
        self._reads_to = {topic: scope.reads_to(topic, rules) for topic in TOPICS}
        self.states = {
            number: Tally(rules, campaigns, scope, (edges or {}).get(number)) for number in range(partitions)
        }
        for number, state in self.states.items():
            state.fold(store.deltas(number))
            self._resume_edge(number, state)
        self.excluded: dict[str, int] = dict(store.get("excluded") or dict.fromkeys(TOPICS, 0))
        self.has_begun = any(state.seq for state in self.states.values())
        self._changed: set[int] = set()

    def _resume_edge(self, number: int, state: Tally) -> None:
        if state.edge is not None and state.seq:
            if (doubts := self._store.get(f"edge {number}")) is None:
                state.edge = None
            else:
                state.edge.load(doubts)

    def fence(self, topic: str, partition: int) -> int:
        """Return the offset before which all of a topic partition is counted."""
        return self.states[partition].progress[topic].fence

    def wants(self, topic: str, partition: int) -> bool:
        """Say whether more of a topic partition has to be read."""
        reads_to = self._reads_to[topic]
        return reads_to is None or self.states[partition].progress[topic].stream_time < reads_to

    def stream_time(self) -> int:
        """Return the smallest stream time of renders over the partitions that have any, in ms."""
        times = [state.progress[RENDERS].stream_time for state in self.states.values()]
        return min((time for time in times if time != NEVER), default=NEVER)

    def apply(self, partition: int, batch: Batch) -> None:
        """Count a batch, up to the record with which enough of its topic is read. Raises TooShallow."""
        if not self.wants(batch.topic, partition):
            return
        self._changed.add(partition)
        state, reads_to = self.states[partition], self._reads_to[batch.topic]
        if self._scope.excluded:
            batch = self._without_excluded(batch)
        if reads_to is None or _newest(batch) < reads_to:
            state.apply(batch)
            return
        for at in range(len(batch.events)):
            if not self.wants(batch.topic, partition):
                return
            state.apply(piece(batch, at, at + 1))

    def _without_excluded(self, batch: Batch) -> Batch:
        kept = [not self._scope.is_excluded(event) for event in batch.events]
        if all(kept):
            return batch
        self.excluded[batch.topic] += len(kept) - sum(kept)
        offsets, events = _chosen(batch.offsets, kept), _chosen(batch.events, kept)
        return Batch(batch.topic, offsets, events, batch.next_offset, _chosen(batch.timestamps, kept))

    def checkpoint(self, has_ended: HasEnded, **more: object) -> None:
        """Bring all that was counted so far into the store, with more values to keep. Raises StoreError."""
        with self._store.transaction():
            for number in sorted(self._changed):
                self._write(number, self.states[number], has_ended)
            for name, value in ({"excluded": self.excluded} | more).items():
                self._store.keep(name, value)
        self._changed = set()

    def _write(self, number: int, state: Tally, has_ended: HasEnded) -> None:
        self._store.put_cells(number, (one for one in state.touched() if self._scope.holds(one.pane)))
        self._store.add_refused(state.refused.items())
        state.refused.clear()
        expired = state.expired()
        self._store.put_delta(number, state.take(self._settled_before(number, state, has_ended)), expired)
        self._store.keep(f"edge {number}", state.edge and state.edge.plain())

    def _settled_before(self, number: int, state: Partition, has_ended: HasEnded) -> int:
        """Return the time before which nothing can change any more, as what has ended says nothing more, in ms.

        What is shown as final is another matter: there a topic that has ended may go on tomorrow.
        """
        last_words = []
        for topic, progress in state.progress.items():
            if topic in self._scope.topics and not has_ended(topic, number, progress.fence):
                behind = 0 if topic == RENDERS else self._rules.viewability_horizon_ms
                last_words.append(progress.stream_time - behind)
        if not last_words:
            return state.bound
        return max(0, pane_of(min(last_words) - self._rules.lateness_ms))

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self, idle_ms: int, topics_end: bool = False) -> None:
        """Count what the end decides, and write it. Raises StoreError.

        Topics that gave less than was asked for are silent: unless `idle_ms` is 0, they are lifted as the worker
        lifts them. Topics that are not read hold nothing back. Nor do views and clicks of which there will never be
        more (`topics_end`), as those of files.
        """
        newest = max(progress.stream_time for state in self.states.values() for progress in state.progress.values())
        for number, state in self.states.items():
            for topic in TOPICS:
                if topic not in self._scope.topics or (topics_end and topic != RENDERS):
                    state.lift(topic, _END_OF_TIME)
                elif idle_ms and newest != NEVER and self.wants(topic, number):
                    state.lift(topic, newest - LIFT_BEHIND_MS)
        self._changed = set(self.states)
        self.checkpoint(lambda topic, partition, fence: False, summary=self.summary())

    def final_before(self) -> int:
        """Return the time before which no partition can change anything any more, in ms."""
        return min((state.final_before() for state in self.states.values()), default=0)

    def summary(self) -> dict[str, object]:
        """Return what was read, and what became of it, as a report names it."""
        states = self.states.values()
        events: dict[str, dict[str, int]] = {}
        for topic in TOPICS:
            sums = [sum(column) for column in zip(*(one.progress[topic].outcomes for one in states), strict=True)]
            told = dict(zip(OUTCOME_NAMES, sums, strict=True))
            events[topic] = told | {"pending": sum(one.pending[topic] for one in states)}
            if self._scope.excluded:
                events[topic]["excluded"] = self.excluded[topic]
        reasons: dict[str, int] = {}
        for state in states:
            for reason, count in state.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
        return {
            "final_before": self.final_before(),
            "events": events,
            "dead_letters": dict(sorted(reasons.items())),
            "refresh_unchecked": sum(one.unchecked for one in states),
        }


def _newest(batch: Batch) -> int:
    return max((event.ts for event in batch.events if not isinstance(event, Malformed)), default=NEVER)


def _chosen(column: Sequence[T], kept: list[bool]) -> list[T]:
    return [*compress(column, kept)]
