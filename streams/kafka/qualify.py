"""Stage 1, `qualify`: owns partitions of viewers, decides every event, and tells stage 2 what it counted.

Law: an offset is committed only when what its record did is in the journal, and the journal is written only when the
letters of its records are delivered. The steps of a commit are numbered; each waits for the one before it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import lru_cache
from time import monotonic
from typing import Any, Final, NamedTuple

import xxhash
from faust.types import TP

from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.events import RENDERS, TOPICS
from streams.core.journal import Claim, Position, next_epoch
from streams.core.panes import Touched
from streams.core.partition import Partition
from streams.core.rollup import Head, Partial
from streams.core.rules import LIFT_BEHIND_MS, PlainRules, Rules
from streams.kafka.backlog import Backlog, Chunk
from streams.kafka.crash import reached
from streams.kafka.journal import JournalError, read_journal
from streams.kafka.tables import PartitionTable
from streams.kafka.topics import DEAD_LETTERS, PARTIALS
from streams.kafka.transport import Extent, Flow, RecordBatch
from streams.kafka.turns import give_way
from streams.wire.records import (
    Headers,
    encode_claim,
    encode_delta,
    encode_partial,
    journal_key,
    journal_position,
    letter_headers,
    letter_key,
)

PATIENCE_S: Final = 2.0
"""How long a topic waits for older events of another one that has records left but gives none."""

NO_LIMIT: Final = 1 << 62


class Letter(NamedTuple):
    """A dead letter, ready to be sent."""

    key: bytes
    value: bytes | None
    headers: Headers


class Owned:
    """A partition of viewers that this worker owns, with what its next commit has to carry."""

    def __init__(self, number: int, state: Partition, epoch: int, kept: Iterable[Position] = ()) -> None:
        self.number = number
        self.state = state
        self.epoch = epoch
        self._kept = deque(kept)
        """The journal records that hold, oldest first, without the claim of this owner."""
        self._expired: deque[tuple[float, list[Position]]] = deque()
        """When what had expired was known to be delivered, and what that was."""
        self.letters: list[Letter] = []
        self.claimed = False
        """Whether stage 2 has been told every cell since this worker took the partition."""
        self.changed = False
        """Whether records were applied since the last commit, or time was lifted,"""
        self.applied = 0
        """and how many records that were."""
        self.idle = False
        self.confirmed = 0
        """The `final_before` of the newest partial that is known to be delivered."""
        self.backlog = Backlog()
        self.advancing = False
        self.fetched_at = dict.fromkeys(TOPICS, monotonic())
        self.consumed_at = dict.fromkeys(TOPICS, monotonic())
        self.ended_at = dict.fromkeys(TOPICS, float("-inf"))
        """When each topic was last seen read to its end."""

    def expired(self) -> list[Position]:
        """Return, once, the journal records that nothing needs any more, oldest first; the own claim never is one."""
        numbers = self.state.expired()
        found = []
        while numbers and self._kept[0].seq <= numbers[-1]:
            found.append(self._kept.popleft())
        return found

    def deletable(self, heard_at: float) -> list[Position]:
        """Return, once, what expired and can be deleted, as this was its owner still when that was decided.

        An old owner that does not know it yet must not delete: it can be further on than the new one.
        """
        found = []
        while self._expired and self._expired[0][0] < heard_at:
            found += self._expired.popleft()[1]
        return found

    def wrote(self, position: Position, expired: list[Position]) -> None:
        """Take note of a journal record of this owner that is delivered, and of what had expired before it."""
        self._kept.append(position)
        if expired:
            self._expired.append((monotonic(), expired))


class Commit(NamedTuple):
    """What one commit writes for one partition."""

    owned: Owned
    letters: list[Letter]
    position: Position
    delta: bytes
    expired: list[Position]
    partials: list[bytes]
    """One for each partition of `campaign-partials`."""
    final_before: int
    fences: dict[str, int]
    """Topic -> offset before which all is in the journal."""


class Qualify:
    """The agent of stage 1 and its commits."""

    def __init__(
        self,
        rules: Rules,
        prefix: str,
        idle_s: float,
        partitions: int,
        journal: PartitionTable,
        flow: Flow,
        campaigns: Campaigns,
        segments: tuple[str, ...] = (),
        accept_settings: bool = False,
        accept_loss: bool = False,
        max_remembered: int = NO_LIMIT,
    ) -> None:
        self.rules = rules
        self.campaigns = campaigns
        self.segments = segments
        self.prefix = prefix
        self.idle_s = idle_s
        self.partitions = partitions
        self.journal = journal
        self.flow = flow
        self.accept_settings = accept_settings
        self.accept_loss = accept_loss
        self.max_remembered = max_remembered
        self.outbox = journal.outbox
        self.owned: dict[int, Owned] = {}
        self._new: set[int] = set()
        """Those of them that had no journal."""
        self.newest_elsewhere: Callable[[], int] = lambda: NEVER
        """Return the largest stream time that other workers' partitions have told of."""
        self._committing = asyncio.Lock()
        self.gathering_s = 0.0
        """How long the newest commit held up all else, in seconds, when it was gathered,"""
        self.gathered = 0
        """and how many records are behind it."""
        self.applied = 0
        """How many records were applied in all."""

    # --- owning partitions ---------------------------------------------------------------------------------------

    def take_over(self, number: int, generation: int) -> None:
        """Take a partition over: fold its journal, which the table holds now. Raises JournalError.

        `generation` is the consumer group's: what an owner of an earlier one still writes after the claim is void.
        """
        journal = {journal_position(key)[1]: value for key, value in self.journal.take().items()}
        self.owned[number] = self._taken_over(number, journal, generation)
        if not journal:
            self._new.add(number)

    async def claim(self, extents: Mapping[TP, Extent]) -> None:
        """Write the claims of what was taken over; from then on it is owned. Raises JournalError.

        `extents` are those of the inputs, asked for before the journals were read. And only who is a member still when
        they have been read knows that no later owner wrote them: or else its epoch, larger than any that it read, would
        void what the owner writes.
        """
        self._check_inputs(extents)
        await self.flow.confirm()
        reached("claim")
        await self.outbox.flush()
        reached("claimed")

    def _check_inputs(self, extents: Mapping[TP, Extent]) -> None:
        """Refuse inputs that do not go on where the journal ends; those of new partitions begin anywhere.

        Raises JournalError.
        """
        places = {TP(self.prefix + topic, number): topic for number in self.owned for topic in TOPICS}
        for place, topic in places.items():
            fence = self.owned[place.partition].state.progress[topic].fence
            begin, committed, end = extents[place]
            if end < fence:
                raise JournalError(
                    f"{place.topic}/{place.partition} was counted up to offset {fence}, and ends at {end}: it was "
                    "created anew, or cut off. What is on it now can only be counted apart: create topics under "
                    "another STREAMS_TOPIC_PREFIX with `streams topics create`, and send the events there"
                )
            lost = ""
            if begin > fence and place.partition not in self._new:
                lost = f"what came before {begin} was deleted by the topic's retention"
            elif committed > fence:
                lost = f"{committed} is committed, so records of the journal are gone"
            if lost and not self.accept_loss:
                raise JournalError(
                    f"{place.topic}/{place.partition} was counted up to offset {fence}, and {lost}: events between "
                    "cannot be counted. To go on without them: streams worker --accept-loss"
                )

    def _taken_over(self, number: int, values: dict[Position, bytes], generation: int) -> Owned:
        journal = read_journal(number, values)
        self._check_partitions(number, journal.partition_counts)
        state = Partition(self.rules, self.campaigns, self.segments)
        journal.fold_into(state)
        self._check_rules(number, state.journaled_rules)
        self._check_campaigns(number, state)
        held = journal.held
        newest = max((position.epoch for position in values), default=0)
        basis = held[-1] if held else None
        own = Position(next_epoch(newest, generation), basis.seq + 1 if basis else state.seq)
        self.journal[journal_key(number, own)] = encode_claim(Claim(basis, self.partitions))
        for void in values.keys() - set(held):
            del self.journal[journal_key(number, void)]
        state.seq = own.seq + 1
        return Owned(number, state, own.epoch, held)

    def _check_campaigns(self, number: int, state: Partition) -> None:
        """Refuse a file of campaigns that says of the past what another one said before. Raises JournalError."""
        history = self.campaigns.digest(state.progress[RENDERS].stream_time)
        if state.journaled_campaigns not in ("", history) and not self.accept_settings:
            raise JournalError(
                f"partition {number} was counted with other campaigns: in STREAMS_CAMPAIGNS, terms that have begun are "
                "not as they were. Set them back, or let them hold from now on with: streams worker --accept-settings"
            )

    def change_campaigns(self, campaigns: Campaigns) -> list[str]:
        """Let another file of campaigns hold from now on, for renders to come.

        Returns the ids of campaigns whose terms it changes for times that have passed; then nothing is changed.
        """
        own = (one.state.progress[RENDERS].stream_time for one in self.owned.values())
        rewritten = self.campaigns.rewritten_by(campaigns, max(self.newest_elsewhere(), *own, NEVER))
        if not rewritten:
            self.campaigns = campaigns
            for owned in self.owned.values():
                owned.state.change_campaigns(campaigns)
        return rewritten

    def _check_partitions(self, number: int, counts: Iterable[int]) -> None:
        """Refuse to count viewers on where others were counted before. Raises JournalError."""
        others = set(counts) - {0, self.partitions}
        if others:
            raise JournalError(partitions_changed(max(others), self.partitions))

    def _check_rules(self, number: int, before: PlainRules) -> None:
        """Refuse rules that are not those of a partition's newest journal record. Raises JournalError."""
        now = self.rules.plain()
        enlarged, changed = (
            "; ".join(f"{name} was {before[name]}, is {now[name]}" for name in names)
            for names in (self.rules.enlarged(before), self.rules.differences(before))
        )
        if enlarged:
            raise JournalError(
                f"partition {number} was counted with smaller horizons: {enlarged}. What was forgotten cannot be had "
                "back: set them back, or take another STREAMS_TOPIC_PREFIX and send the events again"
            )
        if changed and not self.accept_settings:
            raise JournalError(
                f"partition {number} was counted with other settings: {changed}. Set them back, or let them hold from "
                "now on with: streams worker --accept-settings"
            )

    def release(self) -> None:
        """Forget all partitions, and claims that were not written: their state lives on in the journal."""
        self.owned, self._new = {}, set()
        self.outbox.clear()

    # --- applying ------------------------------------------------------------------------------------------------

    async def run(self, events: AsyncIterator[Any]) -> None:
        """Apply batches as they come. An error is our own bug: it ends the worker before anything is committed."""
        async for event in events:
            batch: RecordBatch = event.value
            owned = self.owned[batch.partition]
            topic = batch.topic.removeprefix(self.prefix)
            owned.backlog.put(topic, batch.records)
            owned.fetched_at[topic] = monotonic()
            if owned.backlog.is_full(topic):
                self.flow.pause(batch.topic, batch.partition)
            event.ack()
            await self._advance(owned)

    async def advance(self) -> None:
        """Apply what no longer has to wait for another topic. To be called now and then: waiting ends with time."""
        for owned in list(self.owned.values()):
            await self._advance(owned)

    async def _advance(self, owned: Owned) -> None:
        if owned.advancing:
            return
        owned.advancing = True
        stream_times = {topic: progress.stream_time for topic, progress in owned.state.progress.items()}
        while self.owned.get(owned.number) is owned and not self.is_full():
            chunk = owned.backlog.next(stream_times, lambda topic: self._may_have_more(topic, owned))
            for topic in TOPICS:
                if not owned.backlog.is_full(topic):
                    self.flow.resume(self.prefix + topic, owned.number)
            if chunk is None:
                break
            self._apply(owned, chunk)
            stream_times[chunk.topic] = owned.state.progress[chunk.topic].stream_time
            await give_way()
        owned.advancing = False

    def is_full(self) -> bool:
        """Say whether no more is applied, as more would have to be remembered than is allowed: nothing is evicted."""
        return sum(owned.state.remembered() for owned in self.owned.values()) >= self.max_remembered

    def _may_have_more(self, topic: str, owned: Owned) -> bool:
        """Say whether a topic without a chunk may soon have one. Not for ever: offsets need not all be records."""
        return self.lag(topic, owned) != 0 and monotonic() - owned.fetched_at[topic] < PATIENCE_S

    def _apply(self, owned: Owned, chunk: Chunk) -> None:
        refused = owned.state.apply(chunk.batch)
        owned.changed = True
        owned.applied += len(chunk.records)
        self.applied += len(chunk.records)
        owned.consumed_at[chunk.topic] = monotonic()
        if refused:
            by_offset = {record.offset: record for record in chunk.records}
            for letter in refused:
                record = by_offset[letter.offset]
                headers = letter_headers(letter, owned.number, record.timestamp, record.key, record.headers)
                owned.letters.append(Letter(letter_key(letter, owned.number), record.value, headers))

    # --- committing ----------------------------------------------------------------------------------------------

    async def commit(self) -> bool:
        """Bring all that was applied so far into the journal and to stage 2, then let its offsets be committed.

        Returns whether there was anything to commit.
        """
        for owned in self.owned.values():
            for topic in TOPICS:
                if self.lag(topic, owned) == 0:
                    owned.ended_at[topic] = monotonic()
                    self._lift_if_silent(topic, owned)
        return await self._commit(self._is_due)

    def _lift_if_silent(self, topic: str, owned: Owned) -> None:
        if 0 < self.idle_s < monotonic() - owned.consumed_at[topic]:
            own = (progress.stream_time for one in self.owned.values() for progress in one.state.progress.values())
            newest = max(self.newest_elsewhere(), *own)
            if owned.state.lift(topic, newest - LIFT_BEHIND_MS):
                owned.changed = True

    async def drain(self) -> None:
        """Commit what was applied before partitions go; where nothing was, nothing is written."""
        await self._commit(lambda owned: owned.changed)

    async def _commit(self, is_due: Callable[[Owned], bool]) -> bool:
        async with self._committing:
            commits: list[Commit] = []
            self.gathering_s, self.gathered = 0.0, 0
            for owned in [one for one in self.owned.values() if is_due(one)]:
                if commits:
                    await asyncio.sleep(0)
                started = monotonic()
                commits.append(self._gather(owned))
                self.gathering_s += monotonic() - started
            if commits:
                await self._step_1_letters(commits)
                await self._step_2_journal(commits)
                await self._step_3_partials(commits)
                self._step_4_offsets(commits)
            return bool(commits)

    def _is_due(self, owned: Owned) -> bool:
        can_forget = owned.confirmed > owned.state.bound
        return owned.changed or not owned.claimed or can_forget or owned.idle != self._is_idle(owned)

    def _is_idle(self, owned: Owned) -> bool:
        quiet_s = monotonic() - owned.consumed_at[RENDERS]
        return 0 < self.idle_s < quiet_s and self.lag(RENDERS, owned) == 0

    def lag(self, topic: str, owned: Owned) -> int | None:
        """Return how many records of a topic partition are not applied; None before the first fetch told its end."""
        end = self.flow.end_offset(self.prefix + topic, owned.number)
        return None if end is None else max(0, end - owned.state.progress[topic].fence)

    def _gather(self, owned: Owned) -> Commit:
        """Take what a partition gathered. Nothing is awaited here: a commit is one moment of the state."""
        state = owned.state
        owned.idle = self._is_idle(owned)
        head = Head(
            epoch=owned.epoch,
            seq=state.seq,
            partitions=self.partitions,
            stream_time=state.progress[RENDERS].stream_time,
            idle=owned.idle,
            final_before=state.final_before(),
        )
        cells = state.touched() if owned.claimed else state.cells()
        expired = owned.expired()
        partials = _partials(owned.number, head, cells)
        delta = encode_delta(state.take(owned.confirmed))
        fences = {topic: progress.fence for topic, progress in state.progress.items()}
        position = Position(owned.epoch, head.seq)
        commit = Commit(owned, owned.letters, position, delta, expired, partials, head.final_before, fences)
        self.gathered += owned.applied
        owned.letters, owned.applied = [], 0
        owned.claimed, owned.changed = True, False
        return commit

    async def _step_1_letters(self, commits: list[Commit]) -> None:
        """Deliver the dead letters: once the journal says that a record was read, nobody would write it again."""
        reached("letters")
        for commit in commits:
            for letter in commit.letters:
                self.outbox.send_by_key(self.prefix + DEAD_LETTERS, letter.key, letter.value, letter.headers)
        if any(commit.letters for commit in commits):
            await self.outbox.flush()

    async def _step_2_journal(self, commits: list[Commit]) -> None:
        """Write one record a partition, all of it or nothing, and delete those that nothing needs any more."""
        reached("journal")
        for commit in commits:
            number, owned = commit.owned.number, commit.owned
            self.journal[journal_key(number, commit.position)] = commit.delta
            for position in owned.deletable(self.flow.heard_at()):
                del self.journal[journal_key(number, position)]
        await self.outbox.flush()
        for commit in commits:
            commit.owned.wrote(commit.position, commit.expired)

    async def _step_3_partials(self, commits: list[Commit]) -> None:
        """Tell stage 2. What is lost here is sent again by the next owner, who sends every cell."""
        reached("partials")
        for commit in commits:
            for partition, partial in enumerate(commit.partials):
                self.outbox.send(self.prefix + PARTIALS, b"%d" % commit.owned.number, partial, partition=partition)
        await self.outbox.flush()
        for commit in commits:
            commit.owned.confirmed = commit.final_before

    def _step_4_offsets(self, commits: list[Commit]) -> None:
        """Let the offsets be committed."""
        reached("offsets")
        for commit in commits:
            for topic, fence in commit.fences.items():
                self.flow.done(self.prefix + topic, commit.owned.number, fence)
        reached("committed")


def partitions_changed(before: int, now: int) -> str:
    """Return why nothing can be counted on, and what to do."""
    return (
        f"events were counted when there were {before} partitions, and now there are {now}: viewers lie in others, and "
        "Kafka takes no partition away. Create topics under another STREAMS_TOPIC_PREFIX with `streams topics create "
        f"--partitions {now}`, and send the events again"
    )


def _partials(number: int, head: Head, cells: list[Touched]) -> list[bytes]:
    """Return a partial for each partition of campaigns, with the head even where there is no cell."""
    parts: list[list[Touched]] = [[] for _ in range(head.partitions)]
    for touched in cells:
        parts[campaign_partition(touched.series.campaign_id, head.partitions)].append(touched)
    return [encode_partial(Partial(number, head, part)) for part in parts]


@lru_cache(maxsize=65_536)
def campaign_partition(campaign_id: str, partitions: int) -> int:
    """Return the partition of campaigns that adds up a campaign, in all its currencies and sources."""
    return xxhash.xxh3_64_intdigest(campaign_id.encode()) % partitions
