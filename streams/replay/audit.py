"""What every source said of every impression of some files or topics, so that their counts can be compared.

Law: nothing is decided here, and memory does not grow with the input. An `Auditor` is a `Partition` that tells what it
decided of renders; what it tells lies in temporary files until all of it is sorted by impression.

    Partition ─> (impression, place, outcome) ─> files by hash ─> sorted ─> of how many impressions the same was said
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from streams.core.campaigns import Campaigns
from streams.core.delta import Progress, Refused
from streams.core.discrepancy import Place, Said
from streams.core.events import DEFAULT_SOURCE, RENDERS, Render
from streams.core.impressions import COUNTED, INVALID
from streams.core.lookup import Numbers
from streams.core.panes import pane_of
from streams.core.partition import FUTURE, Partition
from streams.core.rules import Outcome, Rules
from streams.replay.recount import Slicing

_FILES: Final = 64
_IN_MEMORY: Final = 1 << 20
"""Bytes of each file that stay in memory."""
_AT_ONCE: Final = 1 << 16
"""Renders that are written together."""
_OUTCOMES: Final = 8
"""Places are numbers times this, with the number of an outcome added."""
_COUNT_BITS: Final = 32
"""What was said is a number times 2 to this, with how often it was said added."""

Unsigned = NDArray[np.uint64]


class Sayings:
    """What was said of impressions, by the hash of each. Use as a context manager; raises OSError on a full disk."""

    def __init__(self) -> None:
        self.places: dict[Place, int] = {}
        """Where renders were counted, or would have been -> number."""
        self._keys, self._codes = array("Q"), array("Q")
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(SpooledTemporaryFile(_IN_MEMORY)) for _ in range(_FILES)]

    def __enter__(self) -> "Sayings":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, impressions: Iterable[int], places: Iterable[Place], outcomes: Iterable[int]) -> None:
        """Take note of what became of renders."""
        known = self.places
        numbers = [known.setdefault(place, len(known)) for place in places]
        self._keys.extend(impressions)
        self._codes.extend(number * _OUTCOMES + outcome for number, outcome in zip(numbers, outcomes, strict=True))
        if len(self._keys) >= _AT_ONCE:
            self._write()

    def _write(self) -> None:
        keys, codes = np.frombuffer(self._keys, np.uint64), np.frombuffer(self._codes, np.uint64)
        which = keys % np.uint64(_FILES)
        for number in np.unique(which).tolist():
            here = which == number
            self._files[number].write(np.stack([keys[here], codes[here]], axis=1).tobytes())
        self._keys, self._codes = array("Q"), array("Q")

    def distinct(self) -> Iterator[tuple[list[Said], int]]:
        """Yield all that was said of an impression, and of how many impressions just that was said."""
        self._write()
        places = list(self.places)
        counted: Counter[tuple[int, ...]] = Counter()
        for file in self._files:
            file.seek(0)
            counted.update(_distinct(np.frombuffer(file.read(), np.uint64).reshape(-1, 2)))
        for items, impressions in counted.items():
            yield [_said(item, places) for item in items], impressions


def _distinct(rows: Unsigned) -> Counter[tuple[int, ...]]:
    """Return, of rows of (impression, code), how many impressions have the same (code, how often) items."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    begins = _begins(rows)
    times = np.diff(begins, append=len(rows)).astype(np.uint64)
    keys, items = rows[begins, :1], (rows[begins, 1] << np.uint64(_COUNT_BITS)) | times
    begins = _begins(keys)
    lengths = np.diff(begins, append=len(keys))
    counted: Counter[tuple[int, ...]] = Counter()
    for length in np.unique(lengths).tolist():
        alike = items[begins[lengths == length][:, None] + np.arange(length)]
        for said, impressions in zip(*np.unique(alike, axis=0, return_counts=True), strict=True):
            counted[tuple(said.tolist())] += int(impressions)
    return counted


def _begins(rows: Unsigned) -> Numbers:
    """Return where sorted rows begin that are not as the one before."""
    is_new = np.ones(len(rows), np.bool_)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return is_new.nonzero()[0]


def _said(item: int, places: Sequence[Place]) -> Said:
    code, times = divmod(item, 1 << _COUNT_BITS)
    place, outcome = divmod(code, _OUTCOMES)
    return Said(places[place], outcome, times)


class Auditor(Partition):
    """A partition that tells what became of each render that is an event.

    `told` are those who want to know it, each with what says in which of its days a pane lies.
    """

    def __init__(self, rules: Rules, campaigns: Campaigns, told: Sequence[tuple[Sayings, Slicing]]) -> None:
        super().__init__(rules, campaigns)
        self._told = told
        self._outcomes: NDArray[np.uint8] = np.empty(0, np.uint8)
        """Of the renders that are being decided,"""
        self._first: NDArray[np.bool_] = np.empty(0, np.bool_)
        """and which of them are neither late nor duplicates."""

    def _refused(self, topic: str, offsets: Sequence[int], events: Sequence[Any], *more: Any) -> list[Refused]:
        refused = super()._refused(topic, offsets, events, *more)
        if topic == RENDERS:
            future = {letter.offset for letter in refused if letter.reason == FUTURE}
            renders = [event for offset, event in zip(offsets, events, strict=True) if offset in future]
            self._say(renders, [Outcome.FUTURE] * len(renders))
        return refused

    def _renders(self, offsets: Sequence[int], renders: Sequence[Render], ts: Numbers, progress: Progress) -> None:
        super()._renders(offsets, renders, ts, progress)
        self._say(renders, self._outcomes.tolist())

    def _firsts(
        self, keys: Numbers, ts: Numbers, late: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], list[tuple[int, int, bool]]]:
        self._first, older = super()._firsts(keys, ts, late)
        self._outcomes = np.where(late, np.uint8(Outcome.LATE), np.uint8(Outcome.DUPLICATE))
        return self._first, older

    def _judged(self, renders: Sequence[Render], ts: Numbers, behind: Numbers, progress: Progress) -> Any:
        judged = super()._judged(renders, ts, behind, progress)
        born = np.frombuffer(judged.born, np.uint8)
        refused = np.where(born & INVALID, np.uint8(Outcome.INVALID_TRAFFIC), np.uint8(Outcome.REFRESH))
        self._outcomes[self._first] = np.where(born & COUNTED, np.uint8(Outcome.COUNTED), refused)
        return judged

    def _say(self, renders: Sequence[Render], outcomes: Sequence[int]) -> None:
        impressions = [_key(render) for render in renders]
        for sayings, day_of in self._told:
            sayings.add(impressions, [_place(render, day_of) for render in renders], outcomes)


def _key(render: Render) -> int:
    """Return the 64-bit key of an impression of a campaign, whoever counted it."""
    return xxhash.xxh3_64_intdigest(render.impression_id.encode(), _seed(render.campaign_id))


@lru_cache(maxsize=4_096)
def _seed(campaign_id: str) -> int:
    return xxhash.xxh3_64_intdigest(campaign_id.encode())


def _place(render: Render, day_of: Slicing) -> Place:
    return Place(render.campaign_id, render.source or DEFAULT_SOURCE, day_of(pane_of(render.ts)))
