"""A stretch of event time as Prometheus would have scraped it: OpenMetrics with times, for `promtool tsdb`.

Law: at each step the page is the one that a worker shows when its stream time is there and all that belongs to its
windows has come. The worker's own collector writes it; only a label `run` and the time are added.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import IO, Final

import numpy as np
from prometheus_client.core import Metric

from streams.core.campaigns import Campaigns
from streams.core.panes import PANE_MS, Cell, Series, Touched
from streams.core.rollup import Head, Partial, Rollup
from streams.metrics.collector import Collector
from streams.metrics.exposition import Labels, Table, label_text
from streams.metrics.reading import Reading, at_once

Panes = Iterable[tuple[int, list[tuple[Series, Cell]]]]
"""(start of a pane in ms, the cells in it), in order."""

_OWN: Final = "ads_"
"""Only what campaigns are: the pipeline's own metrics say nothing of the past."""


def pages(
    panes: Panes, windows: Mapping[str, int], campaigns: Campaigns, step_ms: int, min_sample: int
) -> Iterator[tuple[int, list[Table | Metric]]]:
    """Yield (time in ms, families) for each step from the first pane until the last one has left all windows."""
    rollup = Rollup(tuple(windows.values()), campaigns)
    reading = Reading({}, {0: rollup}, {}, 0, None, up_to_date=True, campaigns=campaigns)
    collector = Collector(lambda: reading, tuple(windows), "", min_sample, 1 << 62, max_remembered=0)
    seq, now = 0, None
    for pane, cells in panes:
        now = pane - pane % step_ms + step_ms if now is None else now
        while pane >= now:
            yield now, _scrape(rollup, collector, seq := seq + 1, now)
            now += step_ms
        touched = [Touched(series, pane, cell) for series, cell in cells]
        rollup.apply(Partial(0, _head(seq := seq + 1, pane), touched))
    if now is not None:
        for at in range(0, max(windows.values()) + step_ms, step_ms):
            yield now + at, _scrape(rollup, collector, seq := seq + 1, now + at)


def _head(seq: int, ts_ms: int) -> Head:
    return Head(epoch=0, seq=seq, partitions=1, stream_time=ts_ms, idle=False, final_before=ts_ms - ts_ms % PANE_MS)


def _scrape(rollup: Rollup, collector: Collector, seq: int, now: int) -> list[Table | Metric]:
    """Return the page of a moment: windows end with it."""
    rollup.apply(Partial(0, _head(seq, now - 1), []))
    families = [one for one in collector.collect() if one is not None and one.name.startswith(_OWN)]
    rollup.windows()
    for _ in chain(rollup.fold_final(), rollup.changed()):
        pass
    return families


class Backfill:
    """Writes pages as one OpenMetrics file, in which all samples of a family lie together."""

    def __init__(self, run: str) -> None:
        self._run = b"," + label_text(("run",), (run,))[1:]
        self._families: dict[str, tuple[bytes, IO[bytes]]] = {}
        self._stack = ExitStack()
        self.samples = 0

    def __enter__(self) -> "Backfill":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, now_ms: int, families: Iterable[Table | Metric]) -> None:
        """Add a page with the time of its samples."""
        at = b" %d.%03d\n" % divmod(now_ms, 1000)
        for family in families:
            head, *lines = _lines(family)
            if family.name not in self._families:
                self._families[family.name] = head, self._stack.enter_context(TemporaryFile())
            file = self._families[family.name][1]
            for line in lines:
                sample, _, value = line.rpartition(b"} ")
                file.write(sample + self._run + value + at)
            self.samples += len(lines)

    def write(self, file: IO[bytes]) -> None:
        """Write all of it to a file."""
        for head, samples in self._families.values():
            file.write(head)
            samples.seek(0)
            copyfileobj(samples, file)
        file.write(b"# EOF\n")


def _lines(family: Table | Metric) -> list[bytes]:
    """Return the two lines that say what a family is, as one, and its samples."""
    if isinstance(family, Table):
        text = family.text(openmetrics=True)
    else:
        labels = Labels()
        names = tuple(family.samples[0].labels) if family.samples else ()
        rows = [tuple(sample.labels.values()) for sample in family.samples]
        table = Table(
            family.name,
            family.documentation,
            family.type,
            at_once(labels.texts(names, rows)),
            np.array([sample.value for sample in family.samples]),
        )
        text = table.text(openmetrics=True)
    comment, kind, *samples = text[:-1].split(b"\n")
    return [comment + b"\n" + kind + b"\n", *samples]
