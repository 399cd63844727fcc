"""Stage 2, `rollup`: owns partitions of campaigns, adds up partials, and publishes windows.

Law: what it holds can be had again from its table and the partials after the committed offset, and taking a partial
twice changes nothing; so rows may be written far less often than gauges change.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from time import monotonic
from typing import Any, Final, TypeVar

from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.journal import next_epoch
from streams.core.panes import Series
from streams.core.rollup import Rollup, Row, RowKey
from streams.kafka.crash import reached
from streams.kafka.tables import PartitionTable
from streams.kafka.topics import PARTIALS, WINDOWS
from streams.kafka.transport import Flow, RecordBatch
from streams.wire.records import (
    RecordError,
    decode_partial,
    decode_row,
    decode_row_key,
    encode_row,
    encode_row_key,
    encode_window,
    window_key,
)

T = TypeVar("T")

_AT_ONCE: Final = 200
"""Rows that are encoded between two moments at which others may have their turn. Partials may be applied meanwhile: a
row says then more than is acknowledged, and to take the rest again changes nothing."""


async def _in_turns(values: Iterable[T]) -> AsyncIterator[T]:
    """Yield values, and let others have their turn."""
    for number, value in enumerate(values, 1):
        yield value
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)


class TableError(Exception):
    """A campaign table that cannot be trusted: the worker must not start on it."""


class RollupStage:
    """The agent of stage 2 and its commits."""

    def __init__(
        self,
        windows_ms: tuple[int, ...],
        campaigns: Campaigns,
        ttl_ms: int,
        prefix: str,
        table: PartitionTable,
        flow: Flow,
    ) -> None:
        self.windows_ms = windows_ms
        self.ttl_ms = ttl_ms
        self.campaigns = campaigns
        self.prefix = prefix
        self.table = table
        self.flow = flow
        self.outbox = table.outbox
        self.owned: dict[int, Rollup] = {}
        self.advanced_at = monotonic()
        """When a partial last brought anything that changes a figure."""
        self.positions: dict[int, int] = {}
        """Partition -> offset before which every partial is applied."""
        self._epochs: dict[int, int] = {}
        """Partition -> the epoch under which this owner writes its rows."""
        self._left: dict[int, dict[RowKey, tuple[bytes, ...]]] = {}
        """Partition -> row -> the keys of the table under which older owners left it: until it is written again."""
        self._committed: dict[int, int] = {}
        self._committing = asyncio.Lock()

    def take_over(self, number: int, generation: int) -> None:
        """Take a partition over: load its rows, which the table holds now. Raises TableError."""
        rows: list[tuple[RowKey, Row]] = []
        newest, left = 0, dict[RowKey, tuple[bytes, ...]]()
        for data, value in self.table.take().items():
            _, epoch, key = decode_row_key(data)
            newest = max(newest, epoch)
            left[key] = (*left.get(key, ()), data)
            try:
                rows.append((key, decode_row(value)))
            except RecordError as error:
                raise TableError(f"row {number}/{key}: {error}") from None
        self._epochs[number], self._left[number] = next_epoch(newest, generation), left
        self.owned[number] = Rollup(self.windows_ms, self.campaigns, self.ttl_ms)
        self.owned[number].load(rows)

    def change_campaigns(self, campaigns: Campaigns) -> None:
        """Let another file of campaigns hold from now on."""
        self.campaigns = campaigns
        for rollup in self.owned.values():
            rollup.change_campaigns(campaigns)

    def release(self) -> None:
        """Forget all partitions: their state lives on in the table and the partials."""
        self.owned, self.positions, self._committed = {}, {}, {}
        self.outbox.clear()

    async def run(self, events: AsyncIterator[Any]) -> None:
        """Apply partials as they come. One that cannot be read ends the worker: guessing would be miscounting."""
        async for event in events:
            batch: RecordBatch = event.value
            rollup = self.owned[batch.partition]
            for record in batch.records:
                try:
                    partial = decode_partial(record.value)
                except RecordError as error:
                    place = f"{batch.topic}/{batch.partition}/{record.offset}"
                    raise TableError(f"partial {place}: {error}") from None
                rollup.apply(partial)
                if partial.cells:
                    self.advanced_at = monotonic()
                await asyncio.sleep(0)
            self.positions[batch.partition] = batch.records[-1].offset + 1
            event.ack()

    def newest(self) -> int:
        """Return the largest stream time of renders that any source partition has told of, or NEVER."""
        heads = (head for rollup in self.owned.values() for head in rollup.heads.values())
        return max((head.stream_time for head in heads), default=NEVER)

    def lag(self, number: int) -> int | None:
        """Return how many partials of a partition are not applied yet; None before the first fetch told its end."""
        topic = self.prefix + PARTIALS
        end = self.flow.end_offset(topic, number)
        position = self.positions.get(number) or self.flow.committed(topic, number)
        return None if end is None else max(0, end - position)

    async def commit(self) -> None:
        """Publish due windows and bring changed rows into the table, then acknowledge the partials behind them."""
        async with self._committing:
            positions, owned = dict(self.positions), dict(self.owned)
            if positions == self._committed:
                return
            ended = {number: rollup.ended() for number, rollup in owned.items()}
            await self._step_1_windows(owned, ended)
            await self._step_2_rows(owned)
            self._step_3_offsets(positions)
            for number, rollup in owned.items():
                rollup.fold_final()
                rollup.forget(ended[number])

    async def _step_1_windows(self, owned: dict[int, Rollup], ended: dict[int, list[Series]]) -> None:
        """Publish the tumbling windows that are due, and the last word on campaigns that have ended."""
        reached("windows")
        for number, rollup in owned.items():
            farewells = (rollup.farewell(series) for series in ended[number])
            async for word in _in_turns(chain(rollup.windows(), farewells)):
                if word is not None:
                    self.outbox.send(self.prefix + WINDOWS, window_key(word), encode_window(word), partition=number)
        await self.outbox.flush()

    async def _step_2_rows(self, owned: dict[int, Rollup]) -> None:
        """Write the rows that changed, each whole, and then delete those that older owners left of them."""
        reached("rows")
        for number, rollup in owned.items():
            async for key, row in _in_turns(rollup.changed()):
                own = encode_row_key(number, self._epochs[number], key)
                if row is None:
                    del self.table[own]
                else:
                    self.table[own] = encode_row(row)
                for data in self._left[number].pop(key, ()):
                    del self.table[data]
        await self.outbox.flush()

    def _step_3_offsets(self, positions: dict[int, int]) -> None:
        """Let the offsets of the partials be committed that the rows hold."""
        reached("row_offsets")
        for number, position in positions.items():
            self.flow.done(self.prefix + PARTIALS, number, position)
        self._committed = positions
        reached("rows_committed")
