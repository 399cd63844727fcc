"""All series of a partition of campaigns, found by what is asked of them.

Law: nothing here that is done at every pane, partial, commit or scrape looks at all of them. Whoever sends new campaign
ids without end makes them very many, and what is left alone must cost nothing.
"""

from collections.abc import Iterator, Sequence
from heapq import nlargest
from typing import Final

import msgspec

from streams.core.campaigns import Campaigns
from streams.core.panes import NOTHING, PANE_MS, Cell, Rolling, Series, add_at, pane_of, sum_between


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


class Account:
    """All that is known of one series: its minutes by source partition, its totals and its rolling windows."""

    __slots__ = ("lifetime", "minutes", "rolling", "series", "together", "total")

    def __init__(self, series: Series, windows_ms: tuple[int, ...]) -> None:
        self.series = series
        self.minutes: dict[int, dict[int, Share]] = {}
        self.lifetime = _UNBORN
        self.total = NOTHING
        """Lifetime and minutes together, kept by difference."""
        self.rolling = Rolling(windows_ms)
        """As it was when something of the series last changed or was looked at: `Rollup.rolling` moves it on."""
        self.together: Together | None = None
        """Where it is added up with all others that are billed; None if it is not billed itself."""

    def is_billed(self) -> bool:
        """Say whether these are a campaign's figures, not a segment's nor those of a source that does not bill it."""
        return self.together is not None

    def sum_of(self, minute: int) -> Cell:
        """Return a minute's figures over all source partitions."""
        total = Cell()
        for share in self.minutes[minute].values():
            for cell in share.panes.values():
                total.add(cell)
        return total


class Accounts:
    """The accounts of a partition of campaigns."""

    def __init__(self, windows_ms: tuple[int, ...], campaigns: Campaigns) -> None:
        self.by_series: dict[Series, Account] = {}
        self._windows_ms = windows_ms
        self._campaigns = campaigns
        self._by_campaign: dict[str, list[Account]] = {}
        self._by_bound: dict[int, set[Series]] = {}
        """Bound of their lifetimes -> the series that were folded."""
        self._together: dict[str, Together] = {}
        self._loud: set[str] = set()
        """Candidates for `loudest`: every campaign that has more than `_least`."""
        self._least = (-1, "")

    def campaigns(self) -> int:
        """Return how many campaigns there are, whoever counts them."""
        return len(self._by_campaign)

    def of(self, campaign_id: str) -> Sequence[Account]:
        """Return the accounts of a campaign: a currency, source or segment each."""
        return self._by_campaign.get(campaign_id, ())

    def opened(self, series: Series) -> Account:
        """Return the account of a series; a new one if it has none."""
        account = self.by_series.get(series)
        if account is None:
            own = series.shared()
            account = self.by_series[own] = Account(own, self._windows_ms)
            self._by_campaign.setdefault(own.campaign_id, []).append(account)
            self._join(account)
        return account

    def put(self, account: Account, pane: int, difference: Cell, now: int) -> None:
        """Add a difference to all sums that an account is part of. Rolling windows end with the pane `now`."""
        account.total = account.total.plus(difference)
        account.rolling.advance(now)
        account.rolling.add(pane, difference)
        if account.together is not None:
            add_at(account.together, pane, difference)
        self._note(account)

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
        of_campaign = self._by_campaign[series.campaign_id]
        of_campaign.remove(account)
        if not of_campaign:
            del self._by_campaign[series.campaign_id]
        self._loud.discard(series.campaign_id)
        for left in of_campaign:
            self._note(left)

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
            for pane, cell in account.rolling.panes.items():
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
