"""One partition's journal, read: which records hold, and what they fold to.

Law: a journal that has a hole or a record that cannot be read is refused by name; guessing would be miscounting.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from streams.core.delta import Delta
from streams.core.events import RENDERS, TOPICS
from streams.core.journal import ChainError, Claim, Position, chain
from streams.core.partition import Partition
from streams.wire.records import RecordError, decode_claim, decode_delta, is_claim


class JournalError(Exception):
    """A journal that cannot be trusted: nothing can be counted on it."""


class Journal(NamedTuple):
    """The records of one partition that hold, oldest first, and which of them are claims."""

    number: int
    held: list[Position]
    claims: Mapping[Position, Claim]
    values: Mapping[Position, bytes]

    @property
    def partition_counts(self) -> set[int]:
        """How many partitions of viewers there were when each claim was written, 0 if it does not say."""
        return {self.claims[position].partitions for position in self.held if position in self.claims}

    def fold_into(self, state: Partition) -> None:
        """Fold the records that hold into an empty state. Raises JournalError."""
        deltas = [position for position in self.held if position not in self.claims]
        if deltas:
            # What the newest record says of time lets the older ones be folded without what is forgotten by then.
            newest = self._delta(deltas[-1])
            state.fold(self._deltas(deltas), newest.progress[TOPICS.index(RENDERS)].stream_time)

    def _deltas(self, positions: list[Position]) -> Iterator[Delta]:
        fences: list[int] | None = None
        for position in positions:
            delta = self._delta(position)
            if fences is not None and delta.fences_before != fences:
                raise JournalError(f"{self._name(position)}: a record before it is missing")
            yield delta
            fences = [progress.fence for progress in delta.progress]

    def _delta(self, position: Position) -> Delta:
        try:
            return decode_delta(self.values[position])
        except RecordError as error:
            raise JournalError(f"{self._name(position)}: {error}") from None

    def _name(self, position: Position) -> str:
        return f"journal record {self.number}/{position.epoch}/{position.seq}"


def read_journal(number: int, values: Mapping[Position, bytes]) -> Journal:
    """Return which of a partition's journal records hold. Raises JournalError."""
    try:
        claims = {position: decode_claim(value) for position, value in values.items() if is_claim(value)}
        return Journal(number, chain(claims, values.keys() - claims.keys()), claims, values)
    except (RecordError, ChainError) as error:
        raise JournalError(f"journal of partition {number}: {error}") from None
