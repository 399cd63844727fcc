"""The job by stock Faust, on a sample: two agents, an event at a time, with tables whose changelogs are in Kafka.

What its documentation shows, and what it does less than the worker is what peers do less. Prints JSON: events, seconds
from the first to the last, CPU seconds, peak MiB, and what was counted. Arguments: events, partitions.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from typing import Any, Final

import faust

from benchmarks.processes import peak_mib

REFRESH_MS: Final = 30_000
PANE_MS: Final = 10_000
_SAYS: Final = {
    "viewable": ["measurable", "viewable"],
    "measurable": ["measurable"],
    "not_viewable": ["measurable"],
    "undetermined": [],
}


class _Clock:
    """Counts events, and says when the last one came."""

    def __init__(self, expected: int) -> None:
        self.done = asyncio.Event()
        self.began = self.cpu_before = 0.0
        self._left = expected

    def tick(self) -> None:
        if not self.began:
            self.began, self.cpu_before = time.monotonic(), time.process_time()
        self._left -= 1
        if not self._left:
            self.done.set()


def _app(broker: str, prefix: str, partitions: int, folder: str, clock: _Clock) -> tuple[Any, Any]:
    """Return the app, and its table of cells: figures by campaign and pane."""
    app = faust.App(
        prefix + "stock",
        broker=f"kafka://{broker}",
        store="memory://",
        topic_partitions=partitions,
        web_enabled=False,
        datadir=folder,
        consumer_auto_offset_reset="earliest",
        key_serializer="raw",
        value_serializer="json",
    )
    impressions, ads, cells = (app.Table(name, partitions=partitions) for name in ("impressions", "ads", "cells"))

    def credit(cell: str, figures: list[str], spend: str = "0") -> None:
        before = cells.get(cell) or {"served": 0, "measurable": 0, "viewable": 0, "spend": "0"}
        after = before | {figure: before[figure] + 1 for figure in figures}
        cells[cell] = after | {"spend": str(Decimal(before["spend"]) + Decimal(spend))}

    @app.agent(app.topic(prefix + "renders"))
    async def renders(stream: Any) -> None:
        async for render in stream:
            clock.tick()
            known = impressions.get(render["impression_id"]) or {"cell": "", "said": []}
            if known["cell"]:
                continue
            ad = f"{render['viewer_id']}|{render['slot_id']}|{render['creative_id']}"
            if render["ts"] - (ads.get(ad) or 0) < REFRESH_MS:
                continue
            ads[ad] = render["ts"]
            cell = f"{render['campaign_id']}|{render['ts'] // PANE_MS}"
            impressions[render["impression_id"]] = {"cell": cell, "said": known["said"]}
            credit(cell, ["served", *known["said"]], str(Decimal(render["price"]) / 1000))

    @app.agent(app.topic(prefix + "viewability"))
    async def views(stream: Any) -> None:
        async for view in stream:
            clock.tick()
            known = impressions.get(view["impression_id"]) or {"cell": "", "said": []}
            new = [figure for figure in _SAYS[view["kind"]] if figure not in known["said"]]
            impressions[view["impression_id"]] = {"cell": known["cell"], "said": known["said"] + new}
            if known["cell"] and new:
                credit(known["cell"], new)

    return app, cells


def _counted(cells: Any) -> dict[str, Counter[str]]:
    totals = {figure: Counter[str]() for figure in ("served", "measurable", "viewable")}
    for cell, figures in cells.items():
        for figure, counter in totals.items():
            counter[cell.partition("|")[0]] += figures[figure]
    return totals


async def _count(expected: int, partitions: int, folder: str) -> None:
    clock = _Clock(expected)
    app, cells = _app(os.environ["STREAMS_BROKER"], os.environ["STREAMS_TOPIC_PREFIX"], partitions, folder, clock)
    app.finalize()
    starting = asyncio.create_task(app.start())
    await clock.done.wait()
    told = {
        "events": expected,
        "seconds": time.monotonic() - clock.began,
        "cpu_s": time.process_time() - clock.cpu_before,
        "peak_mib": peak_mib(os.getpid()),
    }
    print(json.dumps(told | _counted(cells)), flush=True)
    starting.cancel()
    shutil.rmtree(folder)
    os._exit(0)  # its threads would go on


if __name__ == "__main__":
    asyncio.run(_count(int(sys.argv[1]), int(sys.argv[2]), tempfile.mkdtemp()))
