"""`streams broker`: the embedded broker in the foreground."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from streams.cli.shared import fail
from streams.kafka import broker
from streams.kafka.broker import BrokerError, EmbeddedBroker


@contextmanager
def download_progress() -> Iterator[broker.Progress]:
    """Yield what to call with downloaded bytes: a progress bar on a terminal, and nothing for what is there already."""
    console = Console(stderr=True)
    if broker.jars().exists() or not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"Kafka {broker.KAFKA_VERSION}, once", total=broker.DOWNLOAD_BYTES)
        yield lambda count: bar.advance(task, count)


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
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    node = EmbeddedBroker(port, directory or broker.cache_directory() / "broker")
    try:
        with download_progress() as progress:
            node.start(progress)
    except BrokerError as error:
        fail(str(error))
    typer.echo(f"Kafka {broker.KAFKA_VERSION} at {node.bootstrap}, data in {node.directory}")
    while not stop.is_set():
        if node.wait(0.2):
            fail(f"Kafka ended by itself; see {node.directory / 'kafka.log'}")
    node.stop()
