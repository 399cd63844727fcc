"""Stage 2, `rollup`: owns partitions of campaigns, adds up partials, and publishes windows.

Law: what it holds can be had again from its table and the partials after the committed offset, and taking a partial
twice changes nothing; so rows may be written far less often than gauges change. Partials may be applied while a commit
is under way: a row says then more than is acknowledged, and to take the rest again changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any, Final

from streams.core.campaigns import Campaigns
from streams.core.delta import NEVER
from streams.core.journal import next_epoch
from streams.core.panes import Series
from streams.core.rollup import Farewell, Rollup, Row, RowKey, Window
from streams.kafka.crash import reached
from streams.kafka.tables import PartitionTable
from streams.kafka.topics import PARTIALS, WINDOWS
from streams.kafka.transport import Flow, RecordBatch
from streams.kafka.turns import half_the_time
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

FLOOD: Final = 50_000
"""So many rows and windows are written before more partials are taken: in a flood of new campaigns these come faster
than that can be done, and would fill the memory. So they lie in Kafka meanwhile."""


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
        self._has_room = asyncio.Event()
        self._has_room.set()

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
            await self._take(event.value)
            event.ack()

    async def _take(self, batch: RecordBatch) -> None:
        rollup = self.owned[batch.partition]
        for record in batch.records:
            await self._has_room.wait()
            if self.owned.get(batch.partition) is not rollup:
                return  # the partition went meanwhile, and may have come again
            try:
                partial = decode_partial(record.value)
            except RecordError as error:
                raise TableError(f"partial {batch.topic}/{batch.partition}/{record.offset}: {error}") from None
            rollup.apply(partial)
            if partial.cells:
                self.advanced_at = monotonic()
            await asyncio.sleep(0)
        self.positions[batch.partition] = batch.records.next_offset

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
            if sum(rollup.to_write() for rollup in owned.values()) > FLOOD:
                self._has_room.clear()
            try:
                await self._commit(positions, owned)
            finally:
                self._has_room.set()

    async def _commit(self, positions: dict[int, int], owned: dict[int, Rollup]) -> None:
        await self._step_1_windows(owned)
        ended = await self._step_2_fold(owned)
        await self._step_3_rows(owned)
        self._step_4_offsets(positions)
        for number, rollup in owned.items():
            async for series in half_the_time(ended[number]):
                rollup.forget(series)

    async def _step_1_windows(self, owned: dict[int, Rollup]) -> None:
        """Publish the tumbling windows that are due."""
        reached("windows")
        for number, rollup in owned.items():
            async for window in half_the_time(rollup.windows()):
                self._tell(number, window)
        await self.outbox.flush()

    async def _step_2_fold(self, owned: dict[int, Rollup]) -> dict[int, list[Series]]:
        """Fold what is final, and publish the last word on campaigns that have ended; return these."""
        reached("fold")
        ended = {number: list[Series]() for number in owned}
        for number, rollup in owned.items():
            async for _ in half_the_time(rollup.fold_final()):
                pass
            async for series in half_the_time(rollup.ended()):
                ended[number].append(series)
                if (word := rollup.farewell(series)) is not None:
                    self._tell(number, word)
        await self.outbox.flush()
        return ended

    def _tell(self, number: int, word: Window | Farewell) -> None:
        self.outbox.send(self.prefix + WINDOWS, window_key(word), encode_window(word), partition=number)

    async def _step_3_rows(self, owned: dict[int, Rollup]) -> None:
        """Write the rows that changed, each whole, and then delete those that older owners left of them."""
        reached("rows")
        for number, rollup in owned.items():
            async for key, row in half_the_time(rollup.changed()):
                own = encode_row_key(number, self._epochs[number], key)
                if row is None:
                    del self.table[own]
                else:
                    self.table[own] = encode_row(row)
                for data in self._left[number].pop(key, ()):
                    del self.table[data]
        await self.outbox.flush()

    def _step_4_offsets(self, positions: dict[int, int]) -> None:
        """Let the offsets of the partials be committed that the rows hold."""
        reached("row_offsets")
        for number, position in positions.items():
            self.flow.done(self.prefix + PARTIALS, number, position)
        self._committed = positions
        reached("rows_committed")
