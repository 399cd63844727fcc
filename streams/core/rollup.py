"""One partition of campaigns: adds up what all partitions of viewers count, and cuts it into windows.

Law: what a source partition says is absolute and versioned, so taking it twice, or an old word after a new one,
changes nothing. A minute is folded into the lifetime totals once, when nothing acceptable can change it; the bound is
kept with the sums, and whatever lies below it is ignored ever after.

    partials of source partition 0 ─┐                        ┌─> totals, rolling windows    (gauges)
    partials of source partition 1 ─┼─> take ─> minutes ─────┼─> tumbling windows           (topic campaign-windows)
    ...                            ─┘                        └─> rows                       (Faust table)
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec

from streams.core import rates
from streams.core.accounts import Account, Accounts, Lifetime, Share
from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.events import NO_CURRENCY
from streams.core.money import decimal_text
from streams.core.panes import TUMBLING_MS, Cell, Rolling, Series, Touched, minute_of, pane_of
from streams.core.rules import DAY

PUBLISH_DELAY_MS = 10_000
"""A tumbling window is first published when stream time has passed its end by this much."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What a source partition says of itself with every partial."""

    epoch: int
    seq: int
    partitions: int
    """How many source partitions there are."""
    stream_time: int
    """Of its `renders`, in ms; NEVER if there was none."""
    idle: bool
    final_before: int

    @property
    def version(self) -> tuple[int, int]:
        """Order of what one source partition says: owners first, then their journal records."""
        return self.epoch, self.seq


class Partial(msgspec.Struct, frozen=True, array_like=True):
    """Cells of one source partition as they are now: all figures of each, not the changes."""

    partition: int
    head: Head
    cells: list[Touched]


class RowKey(NamedTuple):
    """A row of the table: a minute of a series, or its lifetime (`minute` None).

    Without a series, the head of a source partition, or (`partition` None as well) the clock.
    """

    series: Series | None
    minute: int | None
    partition: int | None = None


class Clock(msgspec.Struct, frozen=True, array_like=True):
    """The pane that rolling windows end with, by its start in ms. It never falls, whoever speaks late."""

    now: int


_CLOCK: Final = RowKey(None, None)

Row = dict[int, Share] | Lifetime | Head | Clock


def merged(rows: Iterable[tuple[RowKey, Row]]) -> dict[RowKey, Row]:
    """Return one row a key, of those that several owners of a table have left: of each part the newest.

    All owners read the same partials in the same order, so whichever is further on holds what the other one does. An
    old owner that wakes up and writes changes nothing.
    """
    newest: dict[RowKey, Row] = {}
    for key, row in rows:
        newest[key] = _newer(newest[key], row) if key in newest else row
    return newest


def _newer(one: Row, other: Row) -> Row:
    if isinstance(one, dict):
        assert isinstance(other, dict)
        shares = dict(one)
        for partition, share in other.items():
            if partition not in shares or share.version > shares[partition].version:
                shares[partition] = share
        return shares
    return max(one, other, key=_age)


def _age(row: Row) -> Any:
    match row:
        case Head():
            return row.version
        case Lifetime():
            return row.bound
        case Clock():
            return row.now
    raise TypeError(row)


class Window(msgspec.Struct, frozen=True):
    """One tumbling window of one campaign and currency, as published on `campaign-windows`."""

    campaign_id: str
    currency: str
    start: int
    end: int
    served: int
    measurable: int
    viewable: int
    clicks: int
    spend: str
    cpm: float | None
    vcpm: float | None
    viewable_rate: float | None
    measured_rate: float | None
    revision: int
    final: bool


class Farewell(msgspec.Struct, frozen=True):
    """The last record of a campaign and currency that is forgotten: all that it ever had, up to a time in ms."""

    campaign_id: str
    currency: str
    until: int
    served: int
    measurable: int
    viewable: int
    clicks: int
    spend: str
    cpm: float | None
    vcpm: float | None
    viewable_rate: float | None
    measured_rate: float | None
    revision: int
    final: bool = True


def figures_of(series: Series, cell: Cell) -> dict[str, Any]:
    """Return what a record on `campaign-windows` says of a cell, by the names of its fields."""
    priced = series.currency != NO_CURRENCY
    return {
        "campaign_id": series.campaign_id,
        "currency": series.currency,
        "served": cell.served,
        "measurable": cell.measurable,
        "viewable": cell.viewable,
        "clicks": cell.clicks,
        "spend": decimal_text(cell.spend),
        "cpm": rates.cpm(cell) if priced else None,
        "vcpm": rates.vcpm(cell) if priced else None,
        "viewable_rate": rates.viewable_rate(cell),
        "measured_rate": rates.measured_rate(cell),
        "revision": cell.revision,
    }


def window_of(series: Series, minute: int, cell: Cell, final_before: int) -> Window:
    """Return a tumbling window as it is published; final if it ends no later than `final_before`, in ms."""
    end = minute + TUMBLING_MS
    return Window(start=minute, end=end, final=end <= final_before, **figures_of(series, cell))


class Rollup:
    """The state of one partition of campaigns. Build it empty and `load` its table rows, then `apply` partials."""

    def __init__(self, windows_ms: tuple[int, ...], campaigns: Campaigns | None = None, ttl_ms: int = 30 * DAY) -> None:
        self.windows_ms = windows_ms
        self.ttl_ms = ttl_ms
        self.campaigns = campaigns or Campaigns()
        self.heads: dict[int, Head] = {}
        self.accounts = Accounts(windows_ms, self.campaigns)
        self._by_minute = defaultdict[int, set[Series]](set)
        self._changed: set[RowKey] = set()
        self._unpublished = defaultdict[int, set[Series]](set)
        """Minute -> those whose window is not told, or not as it is now."""
        self._final_published = 0
        self.now = NEVER
        """The pane that rolling windows end with, by its start in ms; NEVER before the first event."""

    def change_campaigns(self, campaigns: Campaigns) -> None:
        """Let another file of campaigns hold from now on."""
        self.campaigns = campaigns
        self.accounts.change_campaigns(campaigns)

    # --- taking partials -----------------------------------------------------------------------------------------

    def apply(self, partial: Partial) -> None:
        """Take a partial whole, or refuse it whole if an owner before the newest one of its partition sent it."""
        known = self.heads.get(partial.partition)
        if known is not None and partial.head.epoch < known.epoch:
            return
        version = partial.head.version
        for touched in partial.cells:
            self._take(partial.partition, version, touched)
        if known is None or version >= known.version:
            self.heads[partial.partition] = partial.head
            self._changed.add(RowKey(None, None, partial.partition))
        self._advance()

    def _take(self, partition: int, version: tuple[int, int], touched: Touched) -> None:
        account = self.accounts.opened(touched.series)
        if touched.pane < account.lifetime.bound:
            return
        if self._say(account, partition, version, touched.pane, touched.cell):
            self._changed.add(RowKey(account.series, minute_of(touched.pane)))

    def _say(self, account: Account, partition: int, version: tuple[int, int], pane: int, cell: Cell) -> bool:
        """Take one word of a source partition; return whether it is not older than what is known."""
        before, minute = account.say(partition, version, pane, cell), minute_of(pane)
        if before is None:
            return False
        if cell != before:
            self.accounts.put(account, pane, cell.less(before), self.now)
        self._by_minute[minute].add(account.series)
        self._unpublished[minute].add(account.series)
        return True

    def _advance(self) -> None:
        self._move_on(pane_of(self.stream_time()))

    def _move_on(self, now: int) -> None:
        if now > self.now:
            self.now = now
            self._changed.add(_CLOCK)

    def rolling(self, account: Account) -> Rolling:
        """Return an account's rolling windows, moved on to `now`: only when somebody looks, as nobody looks at most."""
        return self.accounts.rolling(account, self.now)

    # --- time ----------------------------------------------------------------------------------------------------

    def stream_time(self) -> int:
        """Return T: the smallest render stream time over the source partitions that are not idle, or NEVER."""
        heads = [head for head in self.heads.values() if head.stream_time != NEVER]
        busy = [head.stream_time for head in heads if not head.idle]
        return min(busy) if busy else max((head.stream_time for head in heads), default=NEVER)

    def final_before(self) -> int:
        """Return the time before which no source partition can change anything any more; 0 while one has not spoken."""
        partitions = max((head.partitions for head in self.heads.values()), default=0)
        if partitions == 0 or any(partition not in self.heads for partition in range(partitions)):
            return 0
        return min(head.final_before for head in self.heads.values())

    # --- tumbling windows ----------------------------------------------------------------------------------------

    def windows(self) -> Iterator[Window]:
        """Return, once, the tumbling windows to publish: due and changed, or final since the last call.

        Each says what is known when it is its turn; what changes one that had its turn is published the next time.
        """
        final, due = self.final_before(), self.stream_time() - PUBLISH_DELAY_MS
        ready = {m: self._unpublished.pop(m) for m in [*self._unpublished] if m + TUMBLING_MS <= max(final, due)}
        ready |= {m: told for m, told in self._by_minute.items() if self._final_published < m + TUMBLING_MS <= final}
        self._final_published = max(self._final_published, final)
        places = [(minute, [*ready[minute]]) for minute in sorted(ready)]
        return (
            self._window(self.accounts.by_series[series], minute, final)
            for minute, told in places
            for series in sorted(told)
            if self.campaigns.is_billed(series)
        )

    def _window(self, account: Account, minute: int, final: int) -> Window:
        return window_of(account.series, minute, account.sum_of(minute), final)

    # --- campaigns that have ended ---------------------------------------------------------------------------------

    def ended(self) -> Iterator[Series]:
        """Yield the series without an event for as long as a campaign is remembered, all of them folded."""
        folded = self.accounts.folded_until(self.now - self.ttl_ms)
        return (account.series for account in folded if not account.minutes())

    def farewell(self, series: Series) -> Farewell | None:
        """Return the last word on a series; None where no one is billed by it."""
        if not self.campaigns.is_billed(series):
            return None
        lifetime = self.accounts.by_series[series].lifetime
        return Farewell(until=lifetime.bound, **figures_of(series, lifetime.cell))

    def forget(self, series: Series) -> None:
        """Forget a series that has ended, when its last word is confirmed; one that lives again is kept."""
        if not self.accounts.by_series[series].minutes():
            self.accounts.close(series)
            self._changed.add(RowKey(series, None))

    # --- rows of the table -----------------------------------------------------------------------------------------

    def fold_final(self) -> Iterator[Series]:
        """Fold minutes that are final and have left the longest window into the lifetime totals; yield each series.

        Call it when the windows returned so far are confirmed: what is folded is not published again. Partials may be
        applied between two steps.
        """
        bound = min(self._final_published, self.stream_time() - max(self.windows_ms))
        for minute in sorted(minute for minute in self._by_minute if minute + TUMBLING_MS <= bound):
            held, untold = self._by_minute[minute], self._unpublished[minute]
            while held:
                series = held.pop()
                untold.discard(series)
                self._fold(self.accounts.by_series[series], minute)
                yield series
            del self._by_minute[minute], self._unpublished[minute]
        self.accounts.forget_together(bound)

    def _fold(self, account: Account, minute: int) -> None:
        total = account.sum_of(minute)
        total.add(account.lifetime.cell)
        self.accounts.fold(account, Lifetime(minute + TUMBLING_MS, total))
        account.forget(minute)
        if account.minutes():
            self.rolling(account)  # nobody may ever look at it again, and its panes have left all windows
        else:
            account.rolling = None
        self._changed |= {RowKey(account.series, None), RowKey(account.series, minute)}

    def changed(self) -> Iterator[tuple[RowKey, Row | None]]:
        """Yield, once, the rows that changed, None for a row to delete; lifetimes before the deletions, heads last."""
        changed, self._changed = self._changed, set()
        lifetimes = (key for key in changed if key.series is not None and key.minute is None)
        minutes = (key for key in changed if key.minute is not None)
        heads = (key for key in changed if key.series is None)
        for key in chain(lifetimes, minutes, heads):
            yield key, self._row(key)

    def to_write(self) -> int:
        """Return how many rows and windows are to be written, those windows included that are not due yet."""
        return len(self._changed) + sum(map(len, self._unpublished.values()))

    def _row(self, key: RowKey) -> Row | None:
        if key == _CLOCK:
            return Clock(self.now)
        if key.partition is not None:
            return self.heads[key.partition]
        assert key.series is not None
        account = self.accounts.by_series.get(key.series)
        if account is None:
            return None
        return account.lifetime if key.minute is None else account.shares(key.minute) or None

    def load(self, rows: Iterable[tuple[RowKey, Row]]) -> None:
        """Rebuild an empty rollup from the rows of its table, whichever owners wrote them."""
        newest = merged(rows).items()
        for key, row in newest:
            if isinstance(row, Head):
                assert key.partition is not None
                self.heads[key.partition] = row
            elif isinstance(row, Clock):
                self._move_on(row.now)
        for key, row in newest:
            if isinstance(row, Lifetime):
                assert key.series is not None
                self.accounts.load(self.accounts.opened(key.series), row)
        for key, row in newest:
            if isinstance(row, dict):
                self._load_minute(key, row)

    def _load_minute(self, key: RowKey, shares: dict[int, Share]) -> None:
        assert key.series is not None and key.minute is not None
        account = self.accounts.opened(key.series)
        if key.minute < account.lifetime.bound:
            return
        for partition, share in shares.items():
            for pane, cell in share.panes.items():
                self._say(account, partition, share.version, pane, cell)
