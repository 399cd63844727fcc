"""What the state of a worker says at this moment, in the shape in which it is shown.

Law: a reading changes no figure. Counts of a campaign may be added over its currencies; money never is.
"""

from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Mapping
from heapq import merge, nlargest
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from streams.core.accounts import Account
from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.panes import NOTHING, Cell, Series
from streams.core.partition import Partition
from streams.core.rollup import Rollup

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

QUIET_MS: Final = 60_000
"""After so long without any event, windows move on by the clock, so that no gauge freezes."""

OTHER: Final = "_other"
"""The campaign that stands for all that are not shown by name."""


MAX_SOURCES: Final = 10
"""Other sources that are shown of a campaign, those that count most: senders may call themselves anything."""


class Reading(NamedTuple):
    """The state of one worker, and what its shell knows of it."""

    partitions: Mapping[int, Partition]
    """Stage 1: the partitions of viewers that this worker owns."""
    rollups: Mapping[int, Rollup]
    """Stage 2: the partitions of campaigns that it owns."""
    lag: Mapping[tuple[str, int], int]
    """(topic without prefix, partition) -> records that are not applied."""
    quiet_ms: int
    """For how long no figure has changed while there was nothing to read; 0 while there is."""
    recovery_seconds: float | None
    up_to_date: bool
    campaigns: Campaigns = Campaigns()
    partition_count: int | None = None
    """How many partitions each topic has, owned here or not; None while that is not known."""

    @classmethod
    def nothing(cls, campaigns: Campaigns) -> "Reading":
        """Return what a worker shows that owns nothing yet."""
        return cls({}, {}, {}, 0, None, up_to_date=False, campaigns=campaigns)


class Line(NamedTuple):
    """The figures of one series: lifetime totals, and a cell a rolling window if it has any."""

    series: Series
    total: Cell
    windows: list[Cell] | None


class Shown(NamedTuple):
    """All that is shown of campaigns, by what it is."""

    billed: list[Line]
    """The figures of campaigns, as the source that bills them counts."""
    foreign: list[Line]
    """What other sources count."""
    segments: list[Line]
    """The billed figures, cut by one dimension."""
    others: list[Line]
    """Windows of the campaigns that are not shown by name, a line a currency."""
    overflow: int
    """How many campaigns are not shown by name."""


_AT_ONCE: Final = 500
"""Series that are read between two moments at which others may have their turn."""


def at_once(steps: Generator[None, None, T]) -> T:
    """Return what steps lead to, without a turn for others."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def shown(reading: Reading, max_campaigns: int) -> Shown:
    """Return every series that this worker adds up; above so many campaigns, those that served most by name."""
    return at_once(in_steps(reading, max_campaigns))


def in_steps(reading: Reading, max_campaigns: int) -> Generator[None, None, Shown]:
    """Return what `shown` does, and let others have their turn where it yields: a series is read at once.

    Those that are not shown by name are not looked at.
    """
    rollups = [*reading.rollups.values()]
    overflow = max(0, sum(rollup.accounts.campaigns() for rollup in rollups) - max_campaigns)
    if overflow:
        names = yield from _names(rollups, max_campaigns)
        named = [[account for name in names for account in rollup.accounts.of(name)] for rollup in rollups]
    else:
        named = [[*rollup.accounts.by_series.values()] for rollup in rollups]
    result = Shown([], [], [], _others(reading, named) if overflow else [], overflow)
    yield None
    for rollup, accounts in zip(rollups, named, strict=True):
        for start in range(0, len(accounts), _AT_ONCE):
            _show(result, reading, rollup, accounts[start : start + _AT_ONCE])
            yield None
    return result


def _names(rollups: Iterable[Rollup], max_campaigns: int) -> Generator[None, None, list[str]]:
    """Return the campaigns that are shown by name where not all are: those that served most."""
    ranked = []
    for rollup in rollups:
        ranked.append(rollup.accounts.loudest(max_campaigns + 1))
        yield None
    known = (name for _, name in merge(*ranked, reverse=True) if name != OTHER)
    return [*islice(known, max_campaigns)]


def _others(reading: Reading, named: Iterable[Iterable[Account]]) -> list[Line]:
    """Return what all that are billed have together, less those that are shown by name, a line a currency.

    `named` are the latter, of each rollup in turn. All of it is read at this moment: what came between would be told of
    the wrong ones.
    """
    rest: dict[str, list[Cell]] = {}
    for rollup, accounts in zip(reading.rollups.values(), named, strict=True):
        time = shown_time(rollup, reading.quiet_ms)
        for currency, sums in rollup.accounts.together(time).items():
            others = rest.get(currency) or [Cell() for _ in sums]  # new ones: what all have together goes on changing
            rest[currency] = [*map(Cell.plus, others, sums)]
        for account in accounts:
            windows = rollup.rolling(account).at(time) if account.is_billed() else None
            if windows is not None:
                currency = account.series.currency
                rest[currency] = [*map(Cell.less, rest[currency], windows)]
    return [
        Line(Series(OTHER, name, ""), Cell(), sums) for name, sums in rest.items() if any(map(NOTHING.__ne__, sums))
    ]


def _show(result: Shown, reading: Reading, rollup: Rollup, accounts: Iterable[Account]) -> None:
    """Put series of a rollup where they are shown."""
    time = shown_time(rollup, reading.quiet_ms)
    for account in accounts:
        series, windows = account.series, rollup.rolling(account).at(time)
        line = Line(series, account.total, None if windows is None else [*windows])
        if account.is_billed():
            result.billed.append(line)
        elif not series.dimension:
            result.foreign.append(line)
        elif series.source == reading.campaigns.billing_source_of(series.campaign_id):
            result.segments.append(line)


def loudest(foreign: Iterable[Line]) -> tuple[list[Line], int]:
    """Return the lines of the other sources that are shown by name, and how many sources are not."""
    served: dict[str, dict[str, int]] = {}
    lines = list(foreign)
    for line in lines:
        sources = served.setdefault(line.series.campaign_id, {})
        sources[line.series.source] = sources.get(line.series.source, 0) + line.total.served
    named = {campaign: _loudest(sources) for campaign, sources in served.items()}
    hidden = sum(map(len, served.values())) - sum(map(len, named.values()))
    return [line for line in lines if line.series.source in named[line.series.campaign_id]], hidden


def _loudest(sources: Mapping[str, int]) -> Collection[str]:
    if len(sources) <= MAX_SOURCES:
        return sources
    return set(nlargest(MAX_SOURCES, sources, key=lambda name: (sources[name], name)))


def shown_time(rollup: Rollup, quiet_ms: int) -> int:
    """Return the time at which windows are shown, in ms."""
    return rollup.now + quiet_ms if rollup.now != NEVER and quiet_ms >= QUIET_MS else rollup.now


def by_campaign(lines: Iterable[Line]) -> dict[str, list[Cell]]:
    """Add up the windows of each campaign over its currencies: for ratios of counts only."""
    return summed(lines, lambda series: series.campaign_id)


def summed(lines: Iterable[Line], name_of: Callable[[Series], K]) -> dict[K, list[Cell]]:
    """Add up the windows of lines with one name: for counts, and ratios of counts, only."""
    sums: dict[K, list[Cell]] = {}
    for line in lines:
        if line.windows is not None:
            name = name_of(line.series)
            if name in sums:
                sums[name] = [*map(Cell.plus, sums[name], line.windows)]
            else:
                sums[name] = line.windows
    return sums
