"""What `streams replay` does between its options and its report: plan, read, count, keep, go on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from streams.cli.shared import connection_from
from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.events import RENDERS, TOPICS
from streams.core.panes import TUMBLING_MS
from streams.kafka.publish import WindowsTopic
from streams.kafka.reader import Extent, Reader
from streams.kafka.topics import WINDOWS, TopicsError
from streams.replay.counting import Count
from streams.replay.document import windows
from streams.replay.edge import Edge, TooShallow
from streams.replay.files import opened
from streams.replay.recount import merged
from streams.replay.scope import Scope, first_needed, reach_ms
from streams.replay.store import Store
from streams.settings import Settings

CHECKPOINT_S: Final = 2.0
ALL: Final = (1 << 62) - (1 << 62) % TUMBLING_MS
_PAUSE_S: Final = 0.2
_SAMPLE: Final = 40_000
"""Events that a dry run counts in order to say how long all of them would take."""

Place = tuple[str, int]
Tell = Callable[[int], None]
Publish = Callable[[int], Awaitable[None]]
"""Publishes the windows up to a time in ms that are not published yet."""


class Job(NamedTuple):
    """What to count, and by what."""

    run: str
    settings: Settings
    campaigns: Campaigns
    scope: Scope
    speed: float
    """Event time that passes in a second, in seconds; 0 is as fast as possible."""
    publish: bool
    accept_loss: bool
    files: dict[str, Path | None]
    """By topic; nothing in it where topics are read."""

    @property
    def needed(self) -> int:
        """The time in ms from which on every render has to be decided as it was."""
        return 0 if self.scope.start is None else first_needed(self.scope.start, self.campaigns)


class Plan(NamedTuple):
    """Where each topic partition is read from and up to."""

    reach_ms: int
    starts: dict[Place, int]
    ends: dict[Place, int]
    likely_ends: dict[Place, int]
    """Where enough will be read, as far as the records' own times tell."""
    doubtful: list[int]
    """Partitions whose renders before the start are not read."""

    @property
    def records(self) -> int:
        """How many records will be read, as far as that can be known."""
        return sum(max(0, self.likely_ends[place] - start) for place, start in self.starts.items())

    def plain(self) -> list[Any]:
        """Return the plan as JSON can hold it."""
        columns = (self.starts, self.ends, self.likely_ends)
        offsets = [[[*place, offset] for place, offset in one.items()] for one in columns]
        return [self.reach_ms, *offsets, self.doubtful]

    @classmethod
    def of(cls, plain: list[Any]) -> "Plan":
        """Return the plan that `plain` gave."""
        starts, ends, likely = ({(topic, number): at for topic, number, at in one} for one in plain[1:4])
        return cls(plain[0], starts, ends, likely, plain[4])


# --- plans ------------------------------------------------------------------------------------------------------------


async def plan_of(job: Job, reader: Reader, reach: int) -> Plan:
    """Return from where to where to read, for a reach before what is needed in ms. Raises TopicsError."""
    rules, scope = job.settings.rules, job.scope
    # No event lies further ahead of its record than this: what was appended earlier is earlier than what is needed.
    since = 0 if scope.start is None else job.needed - reach - rules.future_ms
    extents = await reader.extents(since)
    if scope.start is not None and not job.accept_loss:
        _refuse_missing(extents, since)
    starts = {place: extent.begin if scope.start is None else extent.since for place, extent in extents.items()}
    ends = {place: extent.end for place, extent in extents.items()}
    likely = dict(ends)
    if scope.stop is not None:
        for topic in scope.topics:
            behind = await reader.extents(scope.reads_to(topic, rules) or 0)
            likely |= {place: extent.since for place, extent in behind.items() if place[0] == topic}
    of_renders = {number: one for (topic, number), one in extents.items() if topic == RENDERS}
    doubtful = [number for number, one in of_renders.items() if starts[RENDERS, number] > one.begin]
    if not any(starts[place] < ends[place] for place in starts):
        when = "" if scope.start is None else f" of {moment(scope.start)} and later"
        raise TopicsError(f"there is nothing to replay: the topics of {job.settings.broker} hold no record{when}")
    return Plan(reach, starts, ends, likely, doubtful)


def _refuse_missing(extents: dict[Place, Extent], since: int) -> None:
    """Refuse to count where records may be gone that decide something. Raises TopicsError."""
    cut = [place for place, extent in extents.items() if extent.begin > 0 and extent.since == extent.begin]
    if cut:
        (topic, number), others = cut[0], f" and {len(cut) - 1} more" if len(cut) > 1 else ""
        raise TopicsError(
            f"{topic}/{number}{others}: what lay before offset {extents[topic, number].begin} was deleted (retention),"
            f" and records from {moment(since)} on decide what counts. Take a later --from, or go on without them:"
            " --accept-loss"
        )


def refuse_deleted(extents: dict[Place, Extent], starts: dict[Place, int]) -> None:
    """Refuse to go on where records are gone that were to be read next. Raises TopicsError."""
    for (topic, number), start in starts.items():
        if extents[topic, number].begin > start:
            raise TopicsError(
                f"{topic}/{number}: what lay between offsets {start} and {extents[topic, number].begin} was deleted"
                " (retention) before the run could go on; --restart begins anew with what there is"
            )


def moment(ts_ms: int) -> str:
    """Return a time as people read it."""
    return f"{datetime.fromtimestamp(max(0, ts_ms) / 1000, UTC):%Y-%m-%d %H:%M:%S}"


# --- counting ---------------------------------------------------------------------------------------------------------


async def count_topics(job: Job, store: Store, console: Console) -> None:
    """Count the topics into a store, or what of them is not counted yet. Raises TopicsError, StoreError."""
    settings = job.settings
    is_counted, is_published = store.get("summary") is not None, store.get("published") == ALL
    if is_counted and (is_published or not job.publish):
        return
    group = f"{settings.topic(settings.group)}-replay-{job.run}"
    async with (
        Reader(connection_from(settings), settings.topic_prefix, job.scope.topics, group) as reader,
        _publishing(job, store) as publish,
    ):
        if not is_counted:
            await _count_deep_enough(job, store, reader, console, publish)
        await publish(ALL)


async def _count_deep_enough(job: Job, store: Store, reader: Reader, console: Console, publish: Publish) -> None:
    plan = await _kept_plan(job, store, reader)
    while True:
        try:
            await _count_planned(job, store, reader, plan, console, publish)
            return
        except TooShallow:
            # A chain of renders leads to what was not read: further back, then, up to the oldest record.
            store.restart(("begun", "parameters", "published"))
            before = moment(job.needed - plan.reach_ms)
            console.print(f"what lies before {before} decides as well: reading further back")
            plan = await plan_of(job, reader, 2 * plan.reach_ms)
            store.keep("plan", plan.plain())


async def _kept_plan(job: Job, store: Store, reader: Reader) -> Plan:
    """Return the plan of a run that goes on, or a new one."""
    if (kept := store.get("plan")) is not None:
        plan = Plan.of(kept)
        reader.end_at(plan.ends)
        return plan
    plan = await plan_of(job, reader, reach_ms(job.settings.rules))
    store.keep("plan", plan.plain())
    return plan


async def _count_planned(
    job: Job, store: Store, reader: Reader, plan: Plan, console: Console, publish: Publish
) -> None:
    count = _count_of(job, store, reader.partitions, plan)
    starts = {place: max(start, count.fence(*place)) for place, start in plan.starts.items()}
    if count.has_begun:
        refuse_deleted(await reader.extents(0), starts)
    done = sum(starts[place] - plan.starts[place] for place in starts)
    pace, due = _Pace(job), monotonic() + CHECKPOINT_S
    with progress(console, plan.records, done) as tell:
        async for partition, chunk in reader.interleaved(range(reader.partitions), starts, count.wants):
            count.apply(partition, chunk.batch)
            tell(len(chunk.records))
            while (wait_s := pace.wait_s(count)) > 0 or monotonic() > due:
                if monotonic() > due:
                    count.checkpoint(reader.has_ended)
                    await reader.tell({place: count.fence(*place) for place in starts})
                    await publish(count.final_before())
                    due = monotonic() + CHECKPOINT_S
                await asyncio.sleep(min(wait_s, _PAUSE_S))
    count.finish(job.settings.idle)
    await reader.tell({place: count.fence(*place) for place in starts})


def _count_of(job: Job, store: Store, partitions: int, plan: Plan) -> Count:
    rules = job.settings.rules
    edges = {number: Edge(rules, job.needed - plan.reach_ms, job.needed) for number in plan.doubtful}
    return Count(store, job.scope, rules, job.campaigns, partitions, edges)


@asynccontextmanager
async def _publishing(job: Job, store: Store) -> AsyncIterator[Publish]:
    """Yield what publishes windows, to a topic of the run's own; nothing unless that is wanted."""

    async def nothing(_: int) -> None:
        return

    if not job.publish:
        yield nothing
        return
    settings = job.settings
    name = f"{WINDOWS}-{job.run}"
    async with WindowsTopic(connection_from(settings), settings.topic_prefix, name) as topic:
        if store.get("published") is None:
            await topic.refuse_existing()
            store.keep("published", 0)
        await topic.create()

        async def publish(until: int) -> None:
            since, summary = store.get("published"), store.get("summary")
            until -= until % TUMBLING_MS
            if until > since:
                final_before = summary["final_before"] if summary else until
                await topic.send(windows(store, job.campaigns, final_before, since, until))
                store.keep("published", until)

        yield publish


class _Pace:
    """How long to wait, so that event time from the start of the range on passes as fast as is wanted."""

    def __init__(self, job: Job) -> None:
        self._speed = job.speed
        self._from = job.scope.start
        self._began: tuple[float, int] | None = None

    def wait_s(self, count: Count) -> float:
        """Return for how many seconds nothing more should be counted."""
        now = count.stream_time()
        if not self._speed or now == NEVER or (self._from is not None and now < self._from):
            return 0.0
        if self._began is None:
            self._began = monotonic(), now
        began, first = self._began
        return began + (now - first) / 1000 / self._speed - monotonic()


@contextmanager
def progress(
    console: Console, total: int | None, done: int = 0, unit: str = "events", verb: str = "Counting"
) -> Iterator[Tell]:
    """Show on a terminal how far it is, how fast, and for how long still; yield what to tell of more."""
    if not console.is_terminal:
        yield lambda more: None
        return
    columns = (verb, BarColumn(), MofNCompleteColumn(), unit, "{task.fields[rate]}", TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, completed=done, rate="")

        def tell(more: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=more, rate=f"{speed:,.0f}/s" if speed else "")

        yield tell


# --- files ------------------------------------------------------------------------------------------------------------


def count_files(job: Job, store: Store, console: Console) -> None:
    """Count files into a store, or what of them is not counted yet. Raises FileError, StoreError."""
    count = Count(store, job.scope, job.settings.rules, job.campaigns, 1)
    ended: set[str] = set(TOPICS) - {topic for topic, path in job.files.items() if path is not None}
    due = monotonic() + CHECKPOINT_S
    with opened(job.files) as files, progress(console, None, unit="lines") as tell:
        for batch, lines in merged(files, 1_000):
            if not lines:
                ended.add(batch.topic)
                continue
            count.apply(0, batch)
            tell(len(lines))
            if monotonic() > due:
                count.checkpoint(lambda topic, partition, fence: topic in ended)
                due = monotonic() + CHECKPOINT_S
    count.finish(0, topics_end=True)


# --- dry run ----------------------------------------------------------------------------------------------------------


async def dry_run(job: Job) -> tuple[Plan, float]:
    """Return what would be read, and how many events a second are counted here: a part of them is, for nothing."""
    settings, scope = job.settings, job.scope
    async with Reader(connection_from(settings), settings.topic_prefix, scope.topics) as reader:
        plan = await plan_of(job, reader, reach_ms(settings.rules))
        with Store(None) as store:
            count, events, began = _count_of(job, store, reader.partitions, plan._replace(doubtful=[])), 0, monotonic()
            async for partition, chunk in reader.interleaved(range(reader.partitions), plan.starts, count.wants):
                count.apply(partition, chunk.batch)
                events += len(chunk.records)
                if events >= _SAMPLE:
                    break
            return plan, events / (monotonic() - began)
