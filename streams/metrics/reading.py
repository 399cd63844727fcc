"""What the state of a worker says at this moment, in the shape in which it is shown.

Law: a reading changes nothing. Counts of a campaign may be added over its currencies; money never is.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from streams.core.panes import Cell
from streams.core.partition import NEVER, Partition
from streams.core.rollup import Rollup

QUIET_MS = 60_000
"""After so long without any event, windows move on by the clock, so that no gauge freezes."""


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


class Line(NamedTuple):
    """One campaign in one currency as one source counts it: lifetime totals, and a cell a rolling window if any."""

    campaign: str
    currency: str
    source: str
    total: Cell
    windows: list[Cell] | None


def lines(reading: Reading) -> Iterator[Line]:
    """Yield every series that this worker adds up."""
    for rollup in reading.rollups.values():
        now = shown_time(rollup, reading.quiet_ms)
        for account in rollup.accounts.values():
            series = account.series
            windows = account.rolling.at(now)
            yield Line(series.campaign_id, series.currency, series.source, account.total, windows)


def shown_time(rollup: Rollup, quiet_ms: int) -> int:
    """Return the time at which windows are shown, in ms."""
    return rollup.now + quiet_ms if rollup.now != NEVER and quiet_ms >= QUIET_MS else rollup.now


def by_campaign(shown: list[Line]) -> dict[str, list[Cell]]:
    """Add up the windows of each campaign over its currencies: for ratios of counts only."""
    campaigns: dict[str, list[Cell]] = {}
    for line in shown:
        if line.windows is not None:
            sums = campaigns.setdefault(line.campaign, [Cell() for _ in line.windows])
            for total, cell in zip(sums, line.windows, strict=True):
                total.add(cell)
    return campaigns
