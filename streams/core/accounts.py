"""All series of a partition of campaigns, found by what is asked of them.

Law: nothing here that is done at every pane, partial, commit or scrape looks at all of them. Whoever sends new campaign
ids without end makes them very many, and what is left alone must cost nothing.
"""

from collections.abc import Collection, Iterator
from heapq import nlargest
from typing import Final

import msgspec

from streams.core.campaigns import Campaigns
from streams.core.panes import NOTHING, PANE_MS, Cell, Rolling, Series, add_at, minute_of, pane_of, sum_between


class Share(msgspec.Struct, array_like=True):
    """What one source partition last said of one series and minute."""

    version: tuple[int, int]
    panes: dict[int, Cell]


class Lifetime(msgspec.Struct, frozen=True, array_like=True):
    """The sum of all minutes before `bound`."""

    bound: int
    cell: Cell


_UNBORN: Final = Lifetime(0, NOTHING)

Together = dict[int, Cell]
"""Start of a pane -> what all billed series of one currency have in it."""


class _Lone(msgspec.Struct, frozen=True, gc=False):
    """What was said of a series of which only one source partition spoke, and of one pane only."""

    partition: int
    version: tuple[int, int]
    pane: int
    cell: Cell

    def share(self) -> Share:
        return Share(self.version, {self.pane: self.cell})


_NO_MINUTES: Final[dict[int, dict[int, Share]]] = {}
"""Of all accounts that have none: never changed."""


class Account:
    """All that is known of one series: its minutes by source partition, its totals and its rolling windows.

    Of very many campaigns most never have more than one cell: until there is a second one, minutes and windows are not
    made of it. They would take five times as much memory.
    """

    __slots__ = ("_lone", "_minutes", "lifetime", "rolling", "series", "together", "total")

    def __init__(self, series: Series) -> None:
        self.series = series
        self._lone: _Lone | None = None
        """All that was said, as long as that is one cell,"""
        self._minutes = _NO_MINUTES
        """or else by minute and source partition."""
        self.lifetime = _UNBORN
        self.total = NOTHING
        """Lifetime and minutes together, kept by difference."""
        self.rolling: Rolling | None = None
        """As it was when something of the series last changed or was looked at; `Accounts.rolling` moves it on."""
        self.together: Together | None = None
        """Where it is added up with all others that are billed; None if it is not billed itself."""

    def is_billed(self) -> bool:
        """Say whether these are a campaign's figures, not a segment's nor those of a source that does not bill it."""
        return self.together is not None

    def say(self, partition: int, version: tuple[int, int], pane: int, cell: Cell) -> Cell | None:
        """Take what a source partition says of a pane. Return what it said before; None if it has said newer."""
        lone = self._lone
        if not self._minutes and (lone is None or (lone.partition, lone.pane) == (partition, pane)):
            if lone is not None and version < lone.version:
                return None
            before = NOTHING if lone is None else lone.cell
            # A new owner says all again: no second copy of it is kept.
            self._lone = _Lone(partition, version, pane, before if cell == before else cell)
            return before
        if lone is not None:
            self._minutes, self._lone = {minute_of(lone.pane): {lone.partition: lone.share()}}, None
        shares = self._minutes.setdefault(minute_of(pane), {})
        share = shares.get(partition)
        if share is None:
            share = shares[partition] = Share(version, {})
        elif version < share.version:
            return None
        share.version = version
        before = share.panes.get(pane, NOTHING)
        share.panes[pane] = before if cell == before else cell
        return before

    def minutes(self) -> Collection[int]:
        """Return the minutes that are not folded."""
        return self._minutes.keys() if self._lone is None else (minute_of(self._lone.pane),)

    def shares(self, minute: int) -> dict[int, Share]:
        """Return what each source partition says of a minute; nothing of one that is folded."""
        lone = self._lone
        if lone is not None:
            return {lone.partition: lone.share()} if minute_of(lone.pane) == minute else {}
        return self._minutes.get(minute, {})

    def cells(self) -> Iterator[tuple[int, Cell]]:
        """Yield each pane that is not folded with what a source partition says of it; do not change that."""
        if self._lone is not None:
            yield self._lone.pane, self._lone.cell
        for shares in self._minutes.values():
            for share in shares.values():
                yield from share.panes.items()

    def only(self) -> Cell | None:
        """Return the cell that is all that is not folded, if there is only one."""
        return None if self._lone is None else self._lone.cell

    def sum_of(self, minute: int) -> Cell:
        """Return a minute's figures over all source partitions."""
        total = Cell()
        for share in self.shares(minute).values():
            for cell in share.panes.values():
                total.add(cell)
        return total

    def forget(self, minute: int) -> None:
        """Forget what was said of a minute."""
        if self._lone is not None:
            self._lone = None
        else:
            del self._minutes[minute]
            self._minutes = self._minutes or _NO_MINUTES


class Accounts:
    """The accounts of a partition of campaigns."""

    def __init__(self, windows_ms: tuple[int, ...], campaigns: Campaigns) -> None:
        self.by_series: dict[Series, Account] = {}
        self._windows_ms = windows_ms
        self._campaigns = campaigns
        self._by_campaign: dict[str, tuple[Account, ...]] = {}
        self._by_bound: dict[int, set[Series]] = {}
        """Bound of their lifetimes -> the series that were folded."""
        self._together: dict[str, Together] = {}
        self._loud: set[str] = set()
        """Candidates for `loudest`: every campaign that has more than `_least`."""
        self._least = (-1, "")

    def campaigns(self) -> int:
        """Return how many campaigns there are, whoever counts them."""
        return len(self._by_campaign)

    def of(self, campaign_id: str) -> tuple[Account, ...]:
        """Return the accounts of a campaign: a currency, source or segment each."""
        return self._by_campaign.get(campaign_id, ())

    def opened(self, series: Series) -> Account:
        """Return the account of a series; a new one if it has none."""
        account = self.by_series.get(series)
        if account is None:
            own = series.shared()
            account = self.by_series[own] = Account(own)
            self._by_campaign[own.campaign_id] = (*self.of(own.campaign_id), account)
            self._join(account)
        return account

    def put(self, account: Account, pane: int, difference: Cell, now: int) -> None:
        """Add a difference that was said to all sums that it is part of. Rolling windows end with the pane `now`."""
        only = account.only()
        account.total = account.total.plus(difference) if only is None else account.lifetime.cell.plus(only)
        if account.rolling is not None:
            self.rolling(account, now).add(pane, difference)
        elif only is None:
            self.rolling(account, now)
        if account.together is not None:
            add_at(account.together, pane, difference)
        self._note(account)

    def rolling(self, account: Account, now: int) -> Rolling:
        """Return an account's rolling windows, moved on to the pane `now`; they are made if it has none yet."""
        rolling = account.rolling or Rolling(self._windows_ms)
        rolling.advance(now)
        if account.rolling is None:
            account.rolling = rolling
            for pane, cell in account.cells():
                rolling.add(pane, cell)
        return rolling

    def fold(self, account: Account, lifetime: Lifetime) -> None:
        """Give an account another lifetime; its minutes are the caller's."""
        self._leave_bound(account)
        account.lifetime = lifetime
        self._by_bound.setdefault(lifetime.bound, set()).add(account.series)

    def load(self, account: Account, lifetime: Lifetime) -> None:
        """Give a new account its lifetime."""
        self.fold(account, lifetime)
        account.total = account.total.plus(lifetime.cell)
        self._note(account)

    def folded_until(self, bound: int) -> Iterator[Account]:
        """Yield the accounts that were folded up to a bound or an earlier one, and no further."""
        for reached in [reached for reached in self._by_bound if reached <= bound]:
            yield from (self.by_series[series] for series in self._by_bound[reached])

    def close(self, series: Series) -> None:
        """Forget an account, of which nothing lies in a window any more."""
        account = self.by_series.pop(series)
        self._leave_bound(account)
        left = tuple(one for one in self.of(series.campaign_id) if one is not account)
        if left:
            self._by_campaign[series.campaign_id] = left
        else:
            del self._by_campaign[series.campaign_id]
        self._loud.discard(series.campaign_id)
        for one in left:
            self._note(one)

    def _leave_bound(self, account: Account) -> None:
        reached = self._by_bound.get(account.lifetime.bound)
        if reached is not None:
            reached.discard(account.series)
            if not reached:
                del self._by_bound[account.lifetime.bound]

    # --- all that are billed, together ----------------------------------------------------------------------------

    def together(self, stream_time_ms: int) -> dict[str, list[Cell]]:
        """Return by currency what all billed series have in each window at a stream time."""
        end = pane_of(stream_time_ms) + PANE_MS
        return {
            currency: [sum_between(panes, end - length, end) for length in self._windows_ms]
            for currency, panes in self._together.items()
        }

    def forget_together(self, before: int) -> None:
        """Forget what all had in the panes before a time: they have left the longest window."""
        for panes in self._together.values():
            for pane in [pane for pane in panes if pane < before]:
                del panes[pane]

    def change_campaigns(self, campaigns: Campaigns) -> None:
        """Let others say who bills a campaign."""
        self._campaigns, self._together = campaigns, {}
        for account in self.by_series.values():
            self._join(account)

    def _join(self, account: Account) -> None:
        """Add an account up with all others if it is billed."""
        account.together = None
        if self._campaigns.is_billed(account.series):
            account.together = self._together.setdefault(account.series.currency, {})
            for pane, cell in account.cells():
                add_at(account.together, pane, cell)

    # --- those that serve most ------------------------------------------------------------------------------------

    def loudest(self, most: int) -> list[tuple[int, str]]:
        """Return at most so many campaigns, one or more, that served most, those first.

        Of each what its largest source served, and its id.
        """
        if len(self._loud) < min(most, len(self._by_campaign)):  # too many of them were forgotten
            self._loud, self._least = set(self._by_campaign), (-1, "")
        if len(self._loud) > 2 * most:
            ranked = nlargest(most + most // 2, map(self._rank, self._loud))
            self._loud, self._least = {name for _, name in ranked}, ranked[-1]
        return nlargest(most, map(self._rank, self._loud))

    def _rank(self, campaign_id: str) -> tuple[int, str]:
        return max(account.total.served for account in self._by_campaign[campaign_id]), campaign_id

    def _note(self, account: Account) -> None:
        """Make a campaign a candidate when it has more than the least one: what an account served only grows."""
        campaign_id = account.series.campaign_id
        if (account.total.served, campaign_id) > self._least:
            self._loud.add(campaign_id)
