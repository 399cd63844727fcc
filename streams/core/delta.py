"""What a partition reads, a `Batch`, and what it tells of it: refused records, and a `Delta` a journal record."""

from collections.abc import Sequence
from typing import Final

import msgspec

from streams.core.events import Event, Malformed
from streams.core.impressions import Rows
from streams.core.rules import Outcome, PlainRules
from streams.core.waiting import Waiting

NEVER: Final = -1
"""The stream time of a topic partition that has given no event yet."""


class Batch(msgspec.Struct, frozen=True):
    """Consecutive records of one topic partition, decoded: `events[i]` lay at `offsets[i]`."""

    topic: str
    offsets: Sequence[int]
    events: Sequence[Event | Malformed]
    next_offset: int
    """Where reading goes on after this batch."""
    timestamps: Sequence[int | None] = ()
    """The own time of each record in ms, None where it has none; nothing at all for files, which have none."""


def piece(batch: Batch, start: int, stop: int) -> Batch:
    """Return the records of a batch from `start` to `stop`, as a batch."""
    offsets = batch.offsets[start:stop]
    return Batch(batch.topic, offsets, batch.events[start:stop], offsets[-1] + 1, batch.timestamps[start:stop])


class Refused(msgspec.Struct, frozen=True):
    """A record that goes to `dead-letters`: where it lay and why."""

    topic: str
    offset: int
    reason: str
    detail: str


class Marks(msgspec.Struct, frozen=True, array_like=True):
    """Counted views as columns (the row of each, and what it says as bits of a row), and counted clicks.

    A click is its row and the 64-bit key of its id, 0 if it has none.
    """

    rows: bytes
    says: bytes
    clicks: list[tuple[int, int]]


class Progress(msgspec.Struct, array_like=True):
    """How far one input topic has been read, and what became of it. All of it is cumulative."""

    fence: int = 0
    """Offset after the last applied record: records below it are in the state already."""
    stream_time: int = NEVER
    outcomes: list[int] = msgspec.field(default_factory=lambda: [0] * len(Outcome))

    @property
    def consumed(self) -> int:
        """Records read so far, whatever became of them, without those that wait."""
        return sum(self.outcomes)

    def copy(self) -> "Progress":
        """Return progress of its own with the same figures."""
        return Progress(self.fence, self.stream_time, list(self.outcomes))


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What happened to a partition between two `take`s: one journal record. Progress and counts are absolute."""

    seq: int
    fences_before: list[int]
    progress: list[Progress]
    reasons: dict[str, int]
    bound: int
    """Panes before this are final, and a confirmed partial has said so: what lies there is forgotten."""
    rows: Rows
    marks: Marks
    waiting: list[Waiting]
    settled: list[tuple[str, int]]
    """(topic, offset) of what earlier records said is waiting, and waits no more."""
    invalid: dict[str, int] = {}
    unchecked: int = 0
    click_credits: int = 0
    """What a counted click is worth, as bits of a row."""
    rules: PlainRules = {}
    """What all of this was decided by."""
    caps: list[tuple[int, int, int]] = []
    """(end of a period in ms, key of (source, campaign, viewer), impressions in it so far)."""
    campaigns: str = ""
    """Hash of the campaigns' history up to the stream time of renders."""
