"""A worker in miniature: it reads logs, journals, tells its cells and starts again; and any state as plain values."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from streams.core.delta import NEVER
from streams.core.partition import Partition
from streams.core.rollup import Head, Partial
from streams.core.rules import Rules
from streams.wire.records import decode_delta, encode_delta, encode_partial
from tests.logs import TOPICS, Counting, batch, counting_by, figures
from tests.oracle import Logs

# --- a worker in miniature --------------------------------------------------------------------------------------------


class Run:
    """Reads logs into a partition, journals what it did, tells its cells, and starts again from the journal."""

    def __init__(self, given: Rules | Counting, logs: Logs, number: int = 0, partitions: int = 1) -> None:
        self.counting = counting_by(given)
        self.rules = self.counting.rules
        self.logs = logs
        self.number = number
        self.partitions = partitions
        self.epoch = -1
        self.journal: dict[int, bytes] = {}
        self.told: dict[tuple[Any, ...], dict[str, int]] = {}
        """Every cell's newest figures, as stage 2 has them."""
        self.declared = 0
        """The newest finality that was told."""
        self._start(self.counting.partition())

    def _start(self, state: Partition) -> None:
        self.state = state
        self.epoch += 1
        self.confirmed = 0
        self.claimed = False
        self.position = {
            topic: sum(offset < state.progress[topic].fence for offset, _, _ in self.logs[topic]) for topic in TOPICS
        }

    def read(self, topic: str, count: int) -> None:
        records = self.logs[topic][self.position[topic] :][:count]
        if records:
            self.state.apply(batch(topic, records))
            self.position[topic] += len(records)

    def read_all(self) -> None:
        for topic in TOPICS:
            self.read(topic, len(self.logs[topic]))

    def rewind(self, topic: str, count: int) -> None:
        """The next batch begins with records that were read already."""
        self.position[topic] = max(0, self.position[topic] - count)

    def commit(self, forget: bool = True, deliver: bool = True) -> bytes | None:
        """The steps of a worker's commit; returns the partial. Without delivery it dies between journal and partial."""
        final, times = self.state.final_before(), self.state.progress["renders"].stream_time
        touched = self.state.touched() if self.claimed else self.state.cells()
        head = Head(self.epoch, self.state.seq, self.partitions, times, False, final)
        partial, cells = encode_partial(Partial(self.number, head, touched)), figures(touched)
        expired = self.state.expired()
        seq = self.state.seq
        self.journal[seq] = encode_delta(self.state.take(self.confirmed if forget else 0))
        for number in expired:
            del self.journal[number]
        if not deliver:
            self.crash()
            return None
        for place, cell in cells.items():
            assert self.told.get(place) == cell or place[3] >= self.declared, "a final cell changed"
        self.told |= cells
        self.declared, self.confirmed, self.claimed = max(self.declared, final), final, True
        return partial

    def crash(self) -> None:
        self._start(folded(self.counting, self.journal))


def folded(given: Rules | Counting, journal: Mapping[int, bytes]) -> Partition:
    state = counting_by(given).partition()
    deltas = [decode_delta(journal[seq]) for seq in sorted(journal)]
    for before, delta in pairwise(deltas):
        fences = [progress.fence for progress in before.progress]
        assert fences == delta.fences_before, "a record is missing before this one"
    state.fold(deltas, deltas[-1].progress[0].stream_time if deltas else NEVER)
    return state


# --- the whole state as plain values ----------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Everything an object holds, private or not, as comparable values; functions are no state."""
    if callable(value):
        return None
    special = _SPECIAL.get(type(value).__name__)
    if special is not None:
        return special(value)
    if isinstance(value, Mapping):
        return {plain_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return {plain_key(item) for item in value}
    if not isinstance(value, (str, bytes, int, float, type(None))) and hasattr(type(value), "__iter__"):
        return [plain(item) for item in value]
    names = [*getattr(type(value), "__slots__", ()), *getattr(type(value), "__struct_fields__", ())]
    names += list(getattr(value, "__dict__", {}))
    return {name: plain(getattr(value, name)) for name in names} if names else value


def plain_key(key: Any) -> Any:
    return key if isinstance(key, (str, bytes, int, tuple)) else repr(key)


def remembered(impressions: Any) -> Any:
    """Remembered rows, however they lie in generations, and what is found by each key."""
    rows = {}
    for row in range(impressions.first, impressions.end):
        generation, position = impressions.at(row)
        columns = (generation.keys, generation.ts, generation.cost, generation.born, generation.bits)
        ledgers = plain(generation.groups[generation.which[position]])
        rows[row] = [*(column[position] for column in columns), ledgers, generation.clicked.get(row, set())]
    keys = {figures[0] for figures in rows.values()}
    found = {key: impressions.with_older(impressions.newest(key)) for key in keys}
    assert sorted(row for chain in found.values() for row in chain) == sorted(rows), "each row is found once"
    assert len(impressions) == len(rows)
    return rows, found


def due(dates: Any) -> Any:
    """What is due and where it would be found: panes that nothing waits in any more are no state."""
    found = {place: plain(waiting) for held in dates._panes.values() for place, waiting in held.items()}
    findable = {place for pane in dates._order for place in dates._panes[pane]}
    return found, findable


def anchored(anchors: Any) -> Any:
    """The anchors that are needed: others lie there until all of their part can be forgotten."""
    return anchors.since, sorted(one for one in noted(anchors) if one[1] >= anchors.since)


def noted(anchors: Any) -> list[tuple[int, int]]:
    """(place, ts in ms) of all anchors that lie there."""
    return [one for part in anchors._parts for one in zip(part.keys, part.ts, strict=True)]


def accounts_of(accounts: Any) -> Any:
    """What is known of each series. How accounts are found and added up follows from it, and has laws of its own."""
    return {
        repr(series): [
            *map(plain, (account.lifetime, account.rolling, account.total)),
            {minute: plain(account.shares(minute)) for minute in account.minutes()},
        ]
        for series, account in accounts.by_series.items()
    }


def booked(ledger: Any) -> Any:
    """The cells of a ledger: which of them it met first is no state."""
    return plain(ledger.series), plain(ledger.cells()), ledger.touched


_SPECIAL = {
    "Accounts": accounts_of, "Anchors": anchored,
    "Campaigns": lambda campaigns: plain(campaigns.by_id), "Impressions": remembered, "DueDates": due,
    "IPv4Network": str, "IPv6Network": str, "Ledger": booked,
}  # fmt: skip


MEMO = "_ads"
"""What was looked up lately is no state."""


def assert_same_state(live: Any, recovered: Any, ignoring: tuple[str, ...] = ()) -> None:
    left, right = plain(live), plain(recovered)
    assert left.keys() == right.keys()
    for name in left:
        if name not in (MEMO, *ignoring):
            assert left[name] == right[name], name
