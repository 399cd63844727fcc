"""The `streams` command: one file a verb, registered here."""

import errno
import os
import sys
from contextlib import suppress
from typing import Final, TextIO

import typer

from streams.cli import (
    broker,
    check,
    config,
    demo,
    dlq,
    explain,
    generate,
    ingest,
    replay,
    report,
    schema,
    tap,
    top,
    topics,
    worker,
)

app = typer.Typer(
    name="streams",
    help="Count ad impressions from Kafka, exactly: served, measurable, viewable, CPM and vCPM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
app.command("worker", epilog="Example: STREAMS_BROKER=kafka:9092 streams worker --http-port 6066")(worker.command)
app.command("demo", epilog="Examples: streams demo | streams demo --for 60s --speed 5000")(demo.command)
app.command("broker", epilog="Example: streams broker --port 9092 --dir ./kafka")(broker.command)
app.command("generate", epilog=generate.EPILOG)(generate.command)
app.command("report", epilog=report.EPILOG)(report.command)
app.command("ingest", epilog=ingest.EPILOG)(ingest.command)
app.command("explain", epilog=explain.EPILOG)(explain.command)
app.command("top", epilog=top.EPILOG)(top.command)
app.command("check", epilog=check.EPILOG)(check.command)
app.command("config", epilog=config.EPILOG)(config.command)
app.command("tap", epilog=tap.EPILOG)(tap.command)
app.command("schema", epilog=schema.EPILOG)(schema.command)
app.add_typer(replay.app, name="replay")
app.add_typer(topics.app, name="topics")
app.add_typer(dlq.app, name="dlq")


_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def main() -> None:
    """Run the command line. Output that finds no room is one clear line, exit code 1; logs that find none are lost."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (*_NO_ROOM, errno.EPIPE):
            raise
        _let_go(sys.stdout)
        if error.errno != errno.EPIPE:  # who reads no more wants to hear no more
            with suppress(OSError):
                sys.stderr.write(f"streams: the output cannot be written: {error.strerror}\n")
        sys.exit(1)
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            _let_go(sys.stderr)


def _let_go(stream: TextIO) -> None:
    """Let what could not be written go nowhere. Python tries again when it ends, and its exit code would be 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
