"""What every benchmark says: the machine and the versions, medians with ranges, and whether the counts were exact."""

import os
import platform
import statistics
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Final

from streams.kafka.broker import VERSION

_PACKAGES: Final = ("faust-streaming", "aiokafka", "msgspec", "numpy")


def machine() -> str:
    """Return the machine in a line. Call it before the load is made: its last words are about what else is going on."""
    load = os.getloadavg()[0]
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}, load before {load:.2f}"


def versions() -> dict[str, str]:
    """Return the versions of all that a figure depends on, but for this program's own."""
    return {"python": platform.python_version(), "kafka": VERSION} | {name: version(name) for name in _PACKAGES}


def heading(machine_line: str) -> str:
    """Return the lines that stand above all figures."""
    packages = ", ".join(f"{name} {number}" for name, number in versions().items() if name != "python")
    return f"{machine_line}\n{packages}"


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def spread(values: Iterable[float], form: str = ",.0f") -> str:
    """Return a median with its range; the value alone where there is but one."""
    found = list(values)
    middle = format(median(found), form)
    return middle if len(found) == 1 else f"{middle} ({format(min(found), form)} to {format(max(found), form)})"


def exact_line(runs: Iterable[bool]) -> str:
    """Return the line without which a rate proves nothing."""
    found = list(runs)
    if all(found):
        return f"exact in {len(found)} of {len(found)} runs: every count on /metrics equals the truth of the load"
    return f"NOT EXACT in {found.count(False)} of {len(found)} runs"


def column(runs: Iterable[object], name: str) -> list[Any]:
    """Return one figure of all runs."""
    return [getattr(run, name) for run in runs]
