"""The figures of a worker at one moment, shared by all who look.

Law: whoever looks sees what /metrics says, and looking costs the counting little. It is read once for all, in steps
between which others have their turn, and the more a look costs, the less often it is taken anew.
"""

import asyncio
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, TypeVar

from streams.core.delta import NEVER
from streams.core.panes import PANE_MS, Cell, Series
from streams.metrics.reading import Line, Reading, by_campaign, in_steps, shown_time
from streams.settings import Settings

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that lets others have their turn wherever it yields."""

EVERY_S: Final = 1.0
_SHARE: Final = 10
"""A snapshot holds for at least so many times what it took, with all that was made of it: a tenth of a core at most."""
AT_ONCE: Final = 250
"""Rows that are looked at between two moments at which others may have their turn."""


async def in_turns(steps: Steps[T]) -> T:
    """Do work, and let others have their turn."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Snapshot:
    """What a worker shows of its campaigns at one moment."""

    reading: Reading
    not_ready: list[str]
    settings: Settings
    lines: list[Line]
    """Of campaigns as billed, by campaign and currency; `_other` too, if there is one."""
    counts: dict[str, list[Cell]]
    """Campaign -> a cell a window, over its currencies: for counts and ratios of counts only."""
    currencies: dict[str, list[Series]]
    """Campaign -> the series that it is billed by, one a currency."""
    overflow: int
    """Campaigns that are not shown by name."""
    made: dict[Hashable, bytes] = field(default_factory=dict)
    """What was made of it, for whoever asks for the same."""

    def windows_end_ms(self) -> int | None:
        """Return the event time that windows end with; the smallest one over the partitions of campaigns."""
        ends = [shown_time(rollup, self.reading.quiet_ms) for rollup in self.reading.rollups.values()]
        return min((end + PANE_MS for end in ends if end != NEVER), default=None)

    def slices(self, series: Series, length_ms: int, number: int) -> list[Cell]:
        """Return a series' figures in the last so many slices of event time, oldest first."""
        for rollup in self.reading.rollups.values():
            account = rollup.accounts.by_series.get(series)
            if account is not None:
                return rollup.rolling(account).slices(shown_time(rollup, self.reading.quiet_ms), length_ms, number)
        return [Cell() for _ in range(number)]


def snapshot(reading: Reading, not_ready: list[str], settings: Settings) -> Steps[Snapshot]:
    """Take a snapshot."""
    shown = yield from in_steps(reading, settings.max_campaigns)
    yield None
    lines = [*shown.billed, *shown.others]
    lines.sort(key=lambda line: (line.series.campaign_id, line.series.currency))
    yield None
    counts = by_campaign(lines)
    yield None
    currencies: dict[str, list[Series]] = {}
    for line in shown.billed:
        currencies.setdefault(line.series.campaign_id, []).append(line.series)
    return Snapshot(reading, not_ready, settings, lines, counts, currencies, shown.overflow)


class Snapshots:
    """Takes snapshots, and makes of them what is asked for, one thing at a time."""

    def __init__(self, settings: Settings, read: Callable[[], Reading], not_ready: Callable[[], list[str]]) -> None:
        self._settings = settings
        self._read = read
        self._not_ready = not_ready
        self._working = asyncio.Lock()
        self._current: Snapshot | None = None
        self._taken_at = 0.0
        self._spent_s = 0.0

    async def made(self, name: Hashable, make: Callable[[Snapshot], Steps[bytes]]) -> bytes:
        """Return what `make` makes of a snapshot that still holds; once for all who ask for it by the same name."""
        async with self._working:
            began = monotonic()
            if self._current is None or self.holds_for_s() <= 0:
                self._current = await in_turns(snapshot(self._read(), self._not_ready(), self._settings))
                self._taken_at, self._spent_s = began, 0.0
            made = self._current.made
            if name not in made:
                made[name] = await in_turns(make(self._current))
            self._spent_s += monotonic() - began
            return made[name]

    def holds_for_s(self) -> float:
        """Return for how much longer the newest snapshot holds."""
        return self._taken_at + max(EVERY_S, _SHARE * self._spent_s) - monotonic()
