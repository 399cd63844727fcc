"""Files on the command line: the flags that name them, how they are opened, and how far they are read."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from streams.cli.shared import fail, reading_bar
from streams.replay.files import STDIN, EventFile, FileError, opened

RendersFile = Annotated[Path | None, typer.Option("--renders", metavar="FILE", help="Renders; - is standard input.")]
ViewabilityFile = Annotated[Path | None, typer.Option("--viewability", metavar="FILE", help="Views.")]
ClicksFile = Annotated[Path | None, typer.Option("--clicks", metavar="FILE", help="Clicks.")]
ReportedFile = Annotated[Path | None, typer.Option("--reported", metavar="FILE", help="Counts from reports.")]
CampaignsFile = Annotated[
    Path | None, typer.Option("--campaigns", metavar="FILE", help="What is agreed for campaigns (STREAMS_CAMPAIGNS).")
]


@contextmanager
def reading(paths: Mapping[str, Path | None]) -> Iterator[tuple[dict[str, EventFile], Callable[[int], None]]]:
    """Open the files of topics and show on a terminal how far they are read; yield what to tell of lines.

    No file at all and two of standard input are usage errors; a file that cannot be read is one line and exit code 1.
    """
    given = [path for path in paths.values() if path is not None]
    if not given:
        fail("say at least one of --renders, --viewability and --clicks", 2)
    if given.count(STDIN) > 1:
        fail("- can be standard input for one topic only", 2)
    try:
        with opened(paths) as files:
            sizes = [file.size for file in files.values() if file.size is not None]
            total = sum(sizes) if len(sizes) == len(files) else None
            with reading_bar("Counting", total, lambda: sum(file.position for file in files.values())) as tell:
                yield files, tell
    except FileError as error:
        fail(str(error))


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many of all records are read; yield what to tell of them."""
    console = Console(stderr=True)
    columns = (what, BarColumn(), MofNCompleteColumn(), "records", TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda more: bar.advance(task, more)
