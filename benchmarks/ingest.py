"""Ingest: `streams ingest gam` on a large file of 40 columns: rows a second, and that memory does not grow.

The file is as NetworkBackfillImpressions is, some 310 bytes a row, every 1,000th row cut off. How many renders and
views come out, and their money to the last nano-unit, is known. A tenth of the file shows what memory depends on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from benchmarks.processes import children, peak_mib
from benchmarks.report import column, spread
from streams.core.money import impression_nano

BROKEN_EVERY: Final = 1_000
_CHUNK: Final = 10_000
_LOOK_S: Final = 0.1
_START_US: Final = 1_769_864_400_000_000
_COLUMNS: Final = (
    "Time,UserId,AdvertiserId,OrderId,LineItemId,CreativeId,CreativeVersion,CreativeSize,AdUnitId,CustomTargeting,"
    "Domain,CountryId,Country,RegionId,Region,MetroId,Metro,CityId,City,PostalCodeId,PostalCode,BrowserId,Browser,OSId,"
    "OS,OSVersion,BandwidthId,Bandwidth,TimeUsec2,AudienceSegmentIds,Product,RequestedAdUnitSizes,BandwidthGroupId,"
    "MobileDevice,KeyPart,DeviceCategory,ActiveViewEligibleImpression,EstimatedBackfillRevenue,EventTimeUsec2,ImpressionId"
)


class Ingest(NamedTuple):
    """One measured run."""

    rows: int
    seconds: float
    cpu_s: float
    peak_mib: int
    tenth_peak_mib: int
    """Of a file a tenth as long."""
    exact: bool

    @property
    def per_s(self) -> float:
        """Rows a second, the start of the process included."""
        return self.rows / self.seconds

    @property
    def cpu_s_per_million(self) -> float:
        """CPU seconds for a million rows."""
        return self.cpu_s / self.rows * 1e6


class Truth(NamedTuple):
    """What comes out of a file."""

    renders: int
    views: int
    spend: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark wants to know."""
    parser.add_argument("--rows", type=int, default=3_400_000, help="rows of the file (default %(default)s, 1 GB)")


def measure(options: argparse.Namespace) -> list[Ingest]:
    """Measure as many runs as asked for, on one file."""
    with tempfile.TemporaryDirectory() as folder:
        whole, tenth = (Path(folder) / f"NetworkBackfillImpressions_{name}" for name in ("whole", "tenth"))
        truth = write(whole, options.rows)
        write(tenth, options.rows // 10)
        return [_run(whole, tenth, truth, options.rows) for _ in range(options.runs)]


def summary(runs: list[Ingest]) -> dict[str, Any]:
    """Return the result as JSON shows it."""
    shown = [run._asdict() | {"rows_per_s": run.per_s, "cpu_s_per_million": run.cpu_s_per_million} for run in runs]
    return {"runs": shown, "exact": all(run.exact for run in runs)}


def show(runs: list[Ingest]) -> None:
    """Print the result."""
    print(
        f"{runs[0].rows:,} rows: {spread(column(runs, 'per_s'))} rows/s,"
        f" {spread(column(runs, 'cpu_s_per_million'), '.2f')} CPU-s a million,"
        f" peak {spread(column(runs, 'peak_mib'))} MiB; of a file a tenth as long"
        f" {spread(column(runs, 'tenth_peak_mib'))} MiB"
    )
    wrong = sum(not run.exact for run in runs)
    print(f"NOT EXACT in {wrong} of {len(runs)} runs" if wrong else f"exact in {len(runs)} of {len(runs)} runs")


def write(path: Path, rows: int) -> Truth:
    """Write a file; return what has to come out of it."""
    views = spend = broken = 0
    with path.open("w") as file:
        file.write(_COLUMNS + "\n")
        for first in range(0, rows, _CHUNK):
            lines = []
            for number in range(first, min(first + _CHUNK, rows)):
                if number % BROKEN_EVERY == BROKEN_EVERY - 1:
                    lines.append("2026-01-31-05:00:01,cut off\n")
                    broken += 1
                    continue
                nano, eligible = number % 1_000_000, number % 2 == 0
                lines.append(_row(number, nano, eligible))
                spend += nano
                views += eligible
            file.writelines(lines)
    return Truth(rows - broken, views, spend)


def _row(number: int, nano: int, eligible: bool) -> str:
    us = _START_US + number * 1_000
    return (
        f"2026-01-31-05:00:01,CAESE{number % 50_000:08},4001,{number % 50},{number % 200},{number % 300},1,300x250,"
        "60001,pos=top;cat=news,example.com,2840,United States,21137,California,803,Los Angeles,1013962,Los Angeles,"
        f"9031,90001,500072,Chrome,501013,Windows 10,,2,cable,{us},,Ad Exchange,300x250|300x600,5,,{number:012x},"
        f"Desktop,{'Y' if eligible else 'N'},0.{nano:09},{us + 1_800_000},1-0\n"
    )


def _run(whole: Path, tenth: Path, truth: Truth, rows: int) -> Ingest:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        cpu_s, peak_mib = _ingest(whole, folder)
        seconds = time.monotonic() - began
        found = _found(Path(folder))
        _, tenth_peak_mib = _ingest(tenth, folder)
    return Ingest(rows, seconds, cpu_s, peak_mib, tenth_peak_mib, found == truth)


def _ingest(path: Path, folder: str) -> tuple[float, int]:
    """Run the command; return CPU seconds and peak MiB of all its processes. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "streams.cli", "ingest", "gam", str(path), "--out", folder]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        with suppress(OSError, StopIteration):  # it has just ended
            peak = max(peak, sum(map(peak_mib, [process.pid, *children(process.pid)])))
        time.sleep(_LOOK_S)
    _, status, used = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"streams ingest ended with {process.returncode}")
    return used.ru_utime + used.ru_stime, peak


def _found(folder: Path) -> Truth:
    """Return what came out: distinct renders, views, and what the renders cost."""
    renders = spend = 0
    with (folder / "renders.jsonl").open("rb") as lines:
        while piece := list(islice(lines, _CHUNK)):
            events = [orjson.loads(line) for line in piece]
            renders += len({event["impression_id"] for event in events})
            spend += sum(impression_nano(orjson.dumps(event["price"]), event["price_unit"]) or 0 for event in events)
    with (folder / "viewability.jsonl").open("rb") as lines:
        return Truth(renders, sum(1 for _ in lines), spend)
