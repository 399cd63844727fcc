"""`streams broker`: the embedded broker in the foreground."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from streams.cli.shared import fail
from streams.kafka.broker import VERSION, BrokerError, Download, EmbeddedBroker, OnDownload, cache_directory


@contextmanager
def download_progress() -> Iterator[OnDownload]:
    """Yield what to tell of a download: a progress bar on a terminal, once there is something to download."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), DownloadText())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: list[TaskID] = []

        def tell(download: Download) -> None:
            if not tasks:
                tasks.append(bar.add_task(f"Kafka {VERSION}, once", total=None))
            bar.update(tasks[0], completed=download.jars, total=download.of or None, received=download.received)

        yield tell


class DownloadText(ProgressColumn):
    """How much was downloaded so far."""

    def render(self, task: Task) -> Text:
        """Return it in MB."""
        return Text(f"{task.fields.get('received', 0) / 1e6:.1f} MB")


def command(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 = any free one.")] = 9092,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where topics are kept.", show_default="a folder in the user's cache")
    ] = None,
) -> None:
    """Run Apache Kafka on this machine until SIGTERM or Ctrl-C: no Docker and no Java needed.

    One node without replication or passwords, for demos, tests and development. Started again on the same directory
    it has its topics and records again.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a download or a start as Ctrl-C does
    try:
        with download_progress() as on_download:
            node = EmbeddedBroker(port, directory or cache_directory() / "broker", on_download)
            node.start()
        _stay_with(node)
    except BrokerError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _stay_with(node: EmbeddedBroker) -> None:
    try:
        typer.echo(f"Kafka {VERSION} at {node.bootstrap}, data in {node.directory}")
        while node.running:
            time.sleep(0.2)
        raise BrokerError(f"Kafka ended by itself; the end of {node.log_path}:\n{node.last_log_lines()}")
    finally:
        node.stop()
