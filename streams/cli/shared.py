"""What several verbs share: flags, settings, and how an error is told."""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, tzinfo
from io import BufferedWriter
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from streams.core.campaigns import Campaigns
from streams.kafka.connection import Connection, RefusedError
from streams.kafka.journal import JournalError
from streams.kafka.produce import ProduceError
from streams.kafka.rollup import TableError
from streams.kafka.topics import TopicsError
from streams.kafka.transport import LeaseError
from streams.settings import Settings, SettingsError, duration_ms, load
from streams.web.access import SiteError
from streams.wire.campaigns import CampaignsError, load_campaigns

T = TypeVar("T")

_COLLECT_AFTER: Final = (100_000, 50, 1_000)
"""State is millions of objects that hold no cycles. With Python's own thresholds the collector of cycles looks at them
so often that it takes a third of all CPU."""

TOLD: Final = (TopicsError, SiteError, JournalError, TableError, LeaseError, ProduceError)
"""Errors that end a command with one clear line."""

BrokerOption = Annotated[
    str | None,
    typer.Option("--broker", help="Kafka bootstrap address (STREAMS_BROKER).", show_default="127.0.0.1:9092"),
]
PrefixOption = Annotated[
    str | None, typer.Option("--topic-prefix", help="Goes before every topic name (STREAMS_TOPIC_PREFIX).")
]
HostOption = Annotated[str | None, typer.Option(help="Address to serve on (STREAMS_HTTP_HOST).")]
PortOption = Annotated[int | None, typer.Option(help="Port to serve on, 0 = any (STREAMS_HTTP_PORT).")]
LevelOption = Annotated[str | None, typer.Option(help="debug, info, warning or error (STREAMS_LOG_LEVEL).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def fail(message: str, code: int = 1) -> NoReturn:
    """Say in one place what went wrong, and end with an exit code: 1 failed, 2 usage."""
    with suppress(OSError):  # where nothing can be told, the exit code still is
        typer.echo(f"streams: {message}", err=True)
    raise typer.Exit(code)


def settings_from(**flags: Any) -> Settings:
    """Return the settings, or end with every error in them."""
    try:
        return load(**flags)
    except SettingsError as error:
        fail(f"settings:\n{error}", 2)


def read_campaigns(settings: Settings) -> Campaigns:
    """Return the campaigns of the file in the settings, none without one. Raises CampaignsError."""
    if settings.campaigns is None:
        return Campaigns(billing_source=settings.billing_source)
    return load_campaigns(settings.campaigns, settings.billing_source)


def connection_from(settings: Settings) -> Connection:
    """Return how to connect to Kafka, or end with what is wrong with a file that is needed for it."""
    try:
        return Connection.of(settings)
    except RefusedError as error:
        fail(f"settings:\n{error}", 2)


def campaigns_from(settings: Settings) -> Campaigns:
    """Return the campaigns of the file in the settings, or end with what is wrong in it."""
    try:
        return read_campaigns(settings)
    except CampaignsError as error:
        fail(f"campaigns: {error}", 2)


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run work on Kafka to its end; what is wrong with the topics or the broker is one clear line."""
    try:
        return asyncio.run(work)
    except TOLD as error:
        fail(str(error))


@contextmanager
def reading_bar(verb: str, total: int | None, position: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many of `total` bytes are read; yield what to tell of lines that were."""
    console = Console(stderr=True)
    columns = (verb, BarColumn(), DownloadColumn(), "{task.fields[lines]:,} lines", TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, lines=0)

        def tell(more: int) -> None:
            bar.update(task, completed=position(), lines=bar.tasks[0].fields["lines"] + more)

        yield tell


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedWriter]:
    """Open a file that is there, under its name, when the block has ended well; else it never was."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def zone_of(name: str | None) -> tzinfo:
    """Return the time zone of a name, UTC for None; a name that is none ends the command."""
    try:
        return UTC if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        fail(f"--tz {name}: no such time zone", 2)


def duration(text: str) -> int:
    """Parse a flag such as `30s` into milliseconds."""
    try:
        return int(duration_ms(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def collect_seldom() -> None:
    """Let Python look for cycles less often, in a process that counts for long."""
    gc.set_threshold(*_COLLECT_AFTER)


def write_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
