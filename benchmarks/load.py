"""The load: renders and their views, with duplicates, whose totals are known because of how it is made.

number   0   1   2 ...            one impression each, in order of event time
render   ts = start + number / renders_a_second; every 20th comes twice
view     a second later; none for every 20th of a campaign, viewable for two of five
"""

import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from streams.core.panes import PANE_MS, pane_of

CAMPAIGNS: Final = 20
MANY: Final = 10_000
"""More campaigns than this have ids as if drawn at random."""
SLOTS: Final = 3
REFRESH_FREE_S: Final = 60
"""A viewer meets a slot again after so long: never a refresh."""
DUPLICATE_EVERY: Final = 20
UNMEASURED_EVERY: Final = 20
VIEWABLE_OF_FIVE: Final = 2
VIEW_AFTER_MS: Final = 1_000
EVENTS_A_RENDER: Final = 2
"""The render, 19 views of 20, and the twentieth of duplicates."""
RENDERS_A_SECOND: Final = 5_000
"""Of event time: what the load looks like to the counting, however fast it is sent."""
AT_MOST_S: Final = 3_000
"""Of event time: a longer load would have left the window of an hour, and what is remembered, before its end."""

_CHUNK: Final = 4_096
_NO_VIEW, _NOT_VIEWABLE, _VIEWABLE = range(3)


class _Form:
    """Texts that differ in numbers only, whose digits are #. Made by columns: who sends has a core to share."""

    def __init__(self, text: str) -> None:
        self._text = np.frombuffer(text.encode(), np.uint8)
        self._fields = [match.span() for match in re.finditer("#+", text)]

    def filled(self, *columns: NDArray[np.int64]) -> list[bytes]:
        """Return a text for each row of the columns, which are its numbers from left to right."""
        rows = np.tile(self._text, (len(columns[0]), 1))
        for (start, end), column in zip(self._fields, columns, strict=True):
            left = column
            for place in range(end - 1, start - 1, -1):
                rest = left // 10
                rows[:, place] = left - 10 * rest + ord("0")
                left = rest
            if left.any():
                raise ValueError(f"{end - start} digits are too few for {column.max():,}")
        texts: list[bytes] = rows.view(f"S{len(self._text)}").ravel().tolist()
        return texts


_VIEWER: Final = _Form("viewer-#######")
_RENDER: Final = _Form(
    '{"impression_id":"imp-############","ts":#############,"viewer_id":"viewer-#######","page_view_id":"pv-########",'
    '"slot_id":"slot-#","creative_id":"creative-33","price":"2.5","price_unit":"cpm","currency":"USD",'
    '"format":"display","width":300,"height":250,"device":"desktop","campaign_id":"'
)
_VIEW: Final = _Form(
    '{"impression_id":"imp-############","ts":#############,"viewer_id":"viewer-#######","vendor":"ias","kind":"'
)
_KINDS: Final = (b"", b'not_viewable"}', b'viewable"}')


class Truth(NamedTuple):
    """What has to come out."""

    events: int
    duplicates: int
    served: Counter[str]
    measurable: Counter[str]
    viewable: Counter[str]

    def plus(self, other: "Truth") -> "Truth":
        """Return what has to come out of both."""
        return Truth(
            self.events + other.events,
            self.duplicates + other.duplicates,
            self.served + other.served,
            self.measurable + other.measurable,
            self.viewable + other.viewable,
        )


class Made(NamedTuple):
    """The records of one impression."""

    viewer: bytes
    render: bytes
    copies: int
    view: bytes | None


class Load(NamedTuple):
    """What is sent: so many renders from a time on, evenly over the campaigns, or half of them to the first."""

    renders: int
    start_ms: int
    campaigns: int = CAMPAIGNS
    skewed: bool = False
    renders_a_second: int = RENDERS_A_SECOND
    first_campaign: int = 0
    """Number of the first one: loads of many campaigns have none in common if their numbers do not meet."""

    @classmethod
    def until_now(cls, renders: int, renders_a_second: int | None = None, **more: Any) -> "Load":
        """Return a load that ends now, in the middle of a pane: all partitions end in the same one.

        Without a rate of its own it has RENDERS_A_SECOND, or as many as let it last for AT_MOST_S.
        """
        renders_a_second = renders_a_second or max(RENDERS_A_SECOND, -(-renders // AT_MOST_S))
        end_ms = pane_of(int(time.time() * 1000)) - PANE_MS // 2
        return cls(renders, end_ms - renders * 1000 // renders_a_second, renders_a_second=renders_a_second, **more)

    def __str__(self) -> str:
        shape = "half of all in one of" if self.skewed else "evenly over"
        return (
            f"{self.renders:,} renders {shape} {self.campaigns:,} campaigns, 95 % with a view, 5 % sent twice;"
            f" {self.renders_a_second:,} renders a second of event time"
        )

    def name(self, campaign: int) -> str:
        """Return the id of a campaign; those of many are as if drawn at random."""
        number = self.first_campaign + campaign
        return f"campaign-{number}" if self.campaigns <= MANY else f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"

    def truth(self) -> Truth:
        """Return what has to come out."""
        numbers = np.arange(self.renders)
        campaigns, says = self._campaigns(numbers), self._says(numbers)
        views = int(np.count_nonzero(says))
        duplicates = -(-self.renders // DUPLICATE_EVERY)
        return Truth(
            self.renders + duplicates + views,
            duplicates,
            self._counted(campaigns),
            self._counted(campaigns[says != _NO_VIEW]),
            self._counted(campaigns[says == _VIEWABLE]),
        )

    def made(self) -> Iterator[Made]:
        """Yield the records of one impression after the other."""
        viewers = REFRESH_FREE_S * self.renders_a_second // SLOTS
        for first in range(0, self.renders, _CHUNK):
            numbers = np.arange(first, min(first + _CHUNK, self.renders))
            ts, viewer = self.start_ms + numbers * 1000 // self.renders_a_second, numbers * 7919 % viewers
            campaigns = self._campaigns(numbers).tolist()
            ends = {campaign: f'{self.name(campaign)}"}}'.encode() for campaign in set(campaigns)}
            columns = (
                _VIEWER.filled(viewer),
                _RENDER.filled(numbers, ts, viewer, numbers, numbers // viewers % SLOTS),
                campaigns,
                (1 + (numbers % DUPLICATE_EVERY == 0)).tolist(),
                _VIEW.filled(numbers, ts + VIEW_AFTER_MS, viewer),
                self._says(numbers).tolist(),
            )
            for key, render, campaign, copies, view, says in zip(*columns, strict=True):
                yield Made(key, render + ends[campaign], copies, view + _KINDS[says] if says else None)

    def _campaigns(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.skewed:
            return numbers % self.campaigns
        return np.where(numbers % 2, 1 + numbers // 2 % (self.campaigns - 1), 0)

    def _says(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        turns = numbers // self.campaigns + numbers  # every campaign comes by every turn
        says = np.where(turns % 5 < VIEWABLE_OF_FIVE, _VIEWABLE, _NOT_VIEWABLE)
        return np.where(turns % UNMEASURED_EVERY, says, _NO_VIEW)

    def _counted(self, campaigns: NDArray[np.int64]) -> Counter[str]:
        counts = np.bincount(campaigns)
        return Counter({self.name(campaign): int(counts[campaign]) for campaign in counts.nonzero()[0].tolist()})


def produce(bootstrap: str, prefix: str, load: Load) -> Truth:
    """Send a load as fast as it goes; return the truth."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 20,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 500_000,
            "partitioner": "murmur2_random",
        }
    )
    renders, views = prefix + "renders", prefix + "viewability"
    for viewer, render, copies, view in load.made():
        for _ in range(copies):
            put(producer, renders, viewer, render)
        if view is not None:
            put(producer, views, viewer, view)
    if producer.flush(60):
        raise RuntimeError("the load was not delivered")
    return load.truth()


def put(producer: Producer, topic: str, key: str | bytes, value: bytes | None, **more: Any) -> None:
    """Give a record to a producer, however full it is: a broker that has much to do takes them more slowly."""
    while True:
        try:
            producer.produce(topic, value, key, **more)
            return
        except BufferError:
            producer.poll(0.1)
