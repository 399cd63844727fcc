"""What `streams replay --alerts` asks and shows: which alerts the counted range would have raised."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import streams
from streams.cli.shared import fail
from streams.cli.text import safe
from streams.replay.backtest import Firing, backtest

SHIPPED: Final = Path("grafana/prometheus/campaigns.rules.yml")
"""The rules on campaigns: those on the stream itself look at metrics that a replay has none of."""


def rule_files(chosen: Sequence[Path]) -> list[Path]:
    """Return the rule files to test: those that were chosen, else the shipped ones. Without any, ends the command."""
    if chosen:
        if missing := [path for path in chosen if not path.is_file()]:
            fail(f"--rules {missing[0]}: no such file", 2)
        return [*chosen]
    for root in (Path(), Path(streams.__file__).parents[1]):
        if (root / SHIPPED).is_file():
            return [root / SHIPPED]
    fail(f"{SHIPPED} is not here: say with --rules which alerts to test", 2)


def tested(openmetrics: Path, rules: Sequence[Path], range_ms: tuple[int, int], step_ms: int) -> list[Firing]:
    """Return the alerts that would have fired in a range. Raises BacktestError."""
    start, stop = (at // 1000 for at in range_ms)
    with TemporaryDirectory() as folder:
        return backtest(openmetrics, rules, Path(folder), start, stop, step_ms // 1000)


def as_json_values(firing: Firing) -> dict[str, Any]:
    """Return a firing with its times in ms."""
    until = None if firing.until is None else round(firing.until * 1000)
    return firing._asdict() | {"since": round(firing.since * 1000), "until": until}


def lines(found: Sequence[Firing]) -> Iterator[str]:
    """Yield what would have fired, for people."""
    for one in found:
        labels = ", ".join(f"{name} {safe(text)}" for name, text in sorted(one.labels.items()))
        until = "still at the end" if one.until is None else f"until {_clock(one.until)}"
        yield f"{_clock(one.since)}  {one.alert} ({labels}), value {one.value:.4g}, {until}"
    yield f"{len(found)} alerts would have fired" if found else "no alert would have fired"


def _clock(ts_s: float) -> str:
    return f"{datetime.fromtimestamp(ts_s, UTC):%Y-%m-%d %H:%M:%S}"
