"""Options that replays share, how a run is called and where it is kept, and how it fails."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer

from streams.cli.shared import fail
from streams.core.events import RENDERS, TOPICS
from streams.core.panes import TUMBLING_MS
from streams.kafka.broker import cache_directory
from streams.kafka.produce import ProduceError
from streams.replay.backtest import BacktestError
from streams.replay.files import FileError
from streams.replay.scope import Exclusion
from streams.replay.store import StoreError
from streams.settings import SettingsError

INTERRUPTED: Final = 130

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def a_time(text: str) -> int:
    """Parse a flag such as `2026-11-24T10:00` into ms; UTC unless it says another zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time such as 2026-11-24T10:00 or 2026-11-24T10:00+02:00") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def a_minute(text: str) -> int:
    """Parse a time that is a whole minute: what is counted are windows of a minute."""
    ts = a_time(text)
    if ts % TUMBLING_MS or ts < 0:
        raise typer.BadParameter(f"{text!r} is no whole minute, and windows are minutes")
    return ts


def a_speed(text: str) -> float:
    """Parse `max`, or how much faster than it happened, such as `10x`."""
    if text == "max":
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x?", text)
    if match is None or float(match[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is neither max nor a speed such as 10x")
    return float(match[1])


def an_exclusion(text: str) -> Exclusion:
    """Parse `source=S[,from=T][,to=T]`."""
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if not parts.get("source") or parts.keys() - {"source", "from", "to"}:
        raise typer.BadParameter(f"{text!r} has not the form source=S,from=TIME,to=TIME")
    times = {name: a_time(parts[where]) for name, where in (("start", "from"), ("stop", "to")) if where in parts}
    return Exclusion(parts["source"], **times)


def some_topics(text: str) -> tuple[str, ...]:
    """Parse a list of input topics."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TOPICS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: no input topic; there are {', '.join(TOPICS)}")
    if RENDERS not in names:
        raise typer.BadParameter(f"without {RENDERS} nothing can be counted")
    return tuple(topic for topic in TOPICS if topic in names)


FromOption = Annotated[
    Any, typer.Option("--from", parser=a_minute, metavar="TIME", help="Start of the range, event time, UTC.")
]
ToOption = Annotated[Any, typer.Option("--to", parser=a_minute, metavar="TIME", help="End of the range.")]
RunOption = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="Name of the run.", show_default="from what is counted")
]


def run_name(run: str | None, work: Any) -> str:
    """Return the name of a run: without one, the same for the same work, so that it can be gone on with."""
    if run is not None:
        if not _NAME.fullmatch(run):
            fail(f"--run {run}: a name has up to 64 of A-Z a-z 0-9 . _ -", 2)
        return run
    return hashlib.sha256(orjson.dumps(work, option=orjson.OPT_SORT_KEYS)).hexdigest()[:10]


def file_of(run: str) -> Path:
    """Return where a run keeps how far it is."""
    folder = cache_directory() / "replays"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{folder}: cannot be made: {error.strerror}")
    return folder / f"{run}.sqlite"


@contextmanager
def one_line_errors(run: str) -> Iterator[None]:
    """Tell each thing that can go wrong in one line, and what an interrupted run can do."""
    try:
        yield
    except (StoreError, BacktestError, FileError, ProduceError, SettingsError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        typer.echo(f"streams: interrupted; the same command goes on with it (run {run})", err=True)
        raise typer.Exit(INTERRUPTED) from None
