"""`streams ingest`: an ad system's own files as events or reported counts, to Kafka or to files of JSON lines."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import typer

from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    collect_seldom,
    connection_from,
    fail,
    finish,
    reading_bar,
    settings_from,
    whole_file,
    write_json,
    zone_of,
)
from streams.core.events import CLICKS, RENDERS, TOPICS, VIEWABILITY
from streams.core.money import is_currency
from streams.core.reported import REPORTED_COUNTS
from streams.kafka.backlog import APPENDED
from streams.kafka.produce import Headers, PacedProducer, ProduceError, by_key, read_ahead
from streams.kafka.qualify import campaign_partition
from streams.replay.files import FileError, LineFile
from streams.settings import Settings
from streams.sources.adapter import HEADER_WITHIN, BadRow, HeaderError, Options, PriceIn, System
from streams.sources.gam import line_item_prices
from streams.sources.pool import HelperError, Judging, Task, as_lines, in_order
from streams.sources.systems import SYSTEMS, Batch, Reader, newest
from streams.wire.reported import reported_key

EPILOG: Final = (
    "Examples: [bold]streams ingest gam NetworkImpressions_*.gz --table LineItem.csv --to kafka[/bold] | "
    "[bold]streams ingest dv360 dcm_account_*.csv.gz --out ./events[/bold] | "
    "[bold]zcat notices.gz | streams ingest openrtb - --source dsp[/bold] | "
    "[bold]streams ingest meta insights.csv --tz Europe/Berlin --currency EUR --to kafka[/bold]"
)
_SHOWN: Final = 20
"""Bad rows that are told one by one; of the others it is said how many."""
LINES_A_TASK: Final = 1_000
"""Lines that are read together, and judged by one process."""

T = TypeVar("T")

# mypy wants to read the members of an enum; these are what SYSTEMS has.
SystemName = StrEnum("SystemName", {name.upper().replace("-", "_"): name for name in SYSTEMS})  # type: ignore[misc]


class Destination(StrEnum):
    """Where events go."""

    KAFKA = "kafka"
    JSONL = "jsonl"


class Kind(StrEnum):
    """What a file holds, where its name does not say."""

    RENDERS = RENDERS
    VIEWABILITY = VIEWABILITY
    CLICKS = CLICKS


def _currency(text: str) -> str:
    if not is_currency(text):
        raise typer.BadParameter(f"{text!r} is no currency such as EUR")
    return text


def command(
    name: Annotated[SystemName, typer.Argument(metavar="SYSTEM", help=f"Whose files they are: {', '.join(SYSTEMS)}.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files, gzip or not; - is standard input.")],
    to: Annotated[Destination, typer.Option(help="The topics, or lines of JSON.")] = Destination.JSONL,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="With jsonl: a file a topic in this folder.")] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="gam: line item table, for prices of direct line items.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row, with exit code 1.")] = False,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who counted. Views need that of their renders.")
    ] = None,
    kind: Annotated[Kind | None, typer.Option(help="gam: what the files hold, if their names do not say.")] = None,
    tz: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Of days and times that name none.", show_default="UTC")
    ] = None,
    currency: Annotated[
        Any, typer.Option(parser=_currency, metavar="CODE", help="Of money in columns that name none.")
    ] = "USD",
    price_in: Annotated[
        PriceIn, typer.Option(help="What CPMs in logs are counted in (openrtb, vast, prebid, kevel); fen are cents.")
    ] = "units",
    processes: Annotated[
        int | None, typer.Option(min=1, help="That judge the rows of long logs.", show_default="one a processor")
    ] = None,
    as_json: JsonOption = False,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Turn an ad system's own files into events or reported counts, for Kafka or as lines of JSON.

    Lines go to standard output while they are of one topic; else say with --out where renders.jsonl, viewability.jsonl
    and clicks.jsonl (or reported-counts.jsonl) are to be. A row that cannot be read is told with its line on standard
    error and stops nothing; a row that is no event, such as a quartile of a video, is counted. In Kafka, events are
    keyed by viewer_id, else by impression_id; with STREAMS_KEY=impression always by that.

    Give files in order of time: what is further behind than STREAMS_LATENESS when it is counted, is late.
    """
    if as_json and to is Destination.JSONL and out is None:
        fail("--json tells how it went on standard output, where the events go: say --out DIR", 2)
    if out is not None and to is Destination.KAFKA:
        fail("--out is for lines of JSON: leave it out, or say --to jsonl", 2)
    if table is not None and name != "gam":
        fail("--table is gam's line item table: it says nothing here", 2)
    settings = settings_from(broker=broker, topic_prefix=topic_prefix)
    system = SYSTEMS[name]
    options = Options(
        source=source or system.source or settings.billing_source,
        currency=currency,
        zone=zone_of(tz),
        kind=kind,
        price_in=price_in,
        prices={} if table is None else _prices(table),
    )
    run = Run(system, files, options, strict, processes or len(os.sched_getaffinity(0)))
    collect_seldom()
    with run.progress():
        if to is Destination.KAFKA:
            run.to_kafka(settings)
        elif out is None:
            run.to_stdout()
        else:
            run.to_folder(out)
    _tell(run.tally, as_json)
    for hint in _hints(system, options.source, settings) if to is Destination.KAFKA and not as_json else ():
        typer.echo(f"streams: {hint}", err=True)


def _prices(path: Path) -> dict[str, str]:
    try:
        with closing(LineFile(path)) as file:
            return line_item_prices(chain.from_iterable(piece.values for piece in file.chunks(LINES_A_TASK)))
    except FileError as error:
        fail(str(error))
    except HeaderError as error:
        fail(f"{path}: {error}")


@dataclass
class Tally:
    """What became of the rows so far."""

    files: int = 0
    lines: int = 0
    topics: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Sent(NamedTuple):
    """A record for Kafka."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers
    campaign_id: str | None = None
    at_ms: int = 0


class Run:
    """One run: reads files, tells of bad rows, and brings what is ready somewhere."""

    def __init__(self, system: System, files: list[Path], options: Options, strict: bool, processes: int) -> None:
        self.tally = Tally()
        self._system = system
        self._files = files
        self._options = options
        self._strict = strict
        self._processes = processes
        self._is_report = system.topics == (REPORTED_COUNTS,)
        self._read_bytes = 0
        self._file: LineFile | None = None
        self._tell: Callable[[int], None] = lambda lines: None

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show how far it is; at the end, or where it fails, it is said how long it took."""
        began = time.monotonic()
        known = [path.stat().st_size for path in self._files if path.is_file()]
        total = sum(known) if len(known) == len(self._files) else None
        try:
            with reading_bar("Reading", total, self._position) as self._tell:
                yield
        except (FileError, ProduceError) as error:
            fail(str(error))
        except HelperError as error:
            fail(f"{error}: was it killed, as there is too little memory? Try --processes 1")
        finally:
            self.tally.seconds = time.monotonic() - began

    def _position(self) -> int:
        return self._read_bytes + (0 if self._file is None else self._file.position)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _brought(self, make: Callable[[Batch], T]) -> Iterator[tuple[str, T]]:
        """Yield what is made of records, and their topic, in the order of the files."""
        for topic, number, made in self._reported(make) if self._is_report else self._logged(make):
            self.tally.topics[topic] += number
            yield topic, made

    def _logged(self, make: Callable[[Batch], T]) -> Iterator[tuple[str, int, T]]:
        judging = Judging(self._system.name, self._options, make)
        tasks = chain.from_iterable(self._tasks(path) for path in self._files)
        for judged in in_order(judging, tasks, self._processes):
            self._note(judged.file, judged.skipped, judged.bad)
            yield from judged.made

    def _tasks(self, path: Path) -> Iterator[Task]:
        with self._opened(path) as (reader, lines):
            first = reader.header + 1
            while piece := list(islice(lines, LINES_A_TASK)):
                yield Task(reader.file, reader.head, first, piece)
                first += len(piece)

    def _reported(self, make: Callable[[Batch], T]) -> Iterator[tuple[str, int, T]]:
        """Yield the counts of reports: what later files say of a day holds."""
        batch = newest(chain.from_iterable(self._batches(path) for path in self._files))
        yield batch.topic, len(batch.values), make(batch)

    def _batches(self, path: Path) -> Iterator[Batch]:
        with self._opened(path) as (reader, lines):
            for piece in reader.all_pieces(lines):
                self._note(reader.file, piece.skipped, piece.bad)
                yield from piece.batches

    @contextmanager
    def _opened(self, path: Path) -> Iterator[tuple[Reader, Iterator[bytes]]]:
        """Yield what judges a file's lines, and those after the header."""
        with closing(LineFile(path)) as self._file:
            name = self._file.name
            lines = chain.from_iterable(self._lines(self._file))
            head = list(islice(lines, HEADER_WITHIN))
            try:
                reader = Reader(self._system, head, name, self._options)
            except HeaderError as error:
                fail(f"{name}: {error}")
            yield reader, chain(head[reader.header :], lines)
            self._read_bytes += self._file.size or 0
        self._file = None
        self.tally.files += 1

    def _lines(self, file: LineFile) -> Iterator[list[bytes]]:
        for piece in file.chunks(LINES_A_TASK):
            self.tally.lines += len(piece.values)
            self._tell(len(piece.values))
            yield piece.values

    def _note(self, file: str, skipped: Counter[str], bad: list[BadRow]) -> None:
        self.tally.skipped.update(skipped)
        for row in bad:
            if self._strict:
                fail(f"{_place(file, row)} (--strict)")
            shown = self.tally.bad.total()
            if shown < _SHOWN:
                typer.echo(f"streams: {_place(file, row)}", err=True)
            elif shown == _SHOWN:
                typer.echo("streams: more bad rows follow, they are only counted", err=True)
            self.tally.bad[row.reason] += 1

    # --- where it goes ------------------------------------------------------------------------------------------------

    def to_stdout(self) -> None:
        """Write lines to standard output; ends with a usage error where a second topic comes up."""
        first: str | None = None
        for topic, lines in self._brought(as_lines):
            first = first or topic
            if topic != first:
                sys.stdout.flush()
                fail(f"the files hold {first} and {topic}: say with --out DIR where a file of each is to be", 2)
            sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()

    def to_folder(self, folder: Path) -> None:
        """Write a file a topic, all of them whole or not at all."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                topics = (REPORTED_COUNTS,) if self._is_report else TOPICS
                files = {topic: stack.enter_context(whole_file(folder / f"{topic}.jsonl")) for topic in topics}
                for topic, lines in self._brought(as_lines):
                    files[topic].write(lines)
        except OSError as error:
            fail(f"{folder}: {error.strerror}")

    def to_kafka(self, settings: Settings) -> None:
        """Send to the topics; ends with an error if anything was not delivered. Ctrl-C ends it in order, with 1."""
        if finish(self._send(settings)):
            fail("stopped before the files were at their end: start again, what is sent twice counts once")

    async def _send(self, settings: Settings) -> bool:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        producer = PacedProducer[Sent](
            connection_from(settings),
            settings.topic_prefix,
            lambda record, partition: None,
            topics=self._system.topics,
            partition=_partition,
        )
        make = partial(_records, by_impression=settings.key == "impression")
        await producer.send_batches(read_ahead(records for _, records in self._brought(make)), stop)
        return stop.is_set()


def _place(file: str, row: BadRow) -> str:
    return f"{file}:{row.line}: {row.reason}: {row.detail}"


def _records(batch: Batch, by_impression: bool) -> list[Sent]:
    """Return what Kafka gets: events keyed as the worker wants them, reported counts by what they are about."""
    records = []
    for value, says, appended_ms in zip(batch.values, batch.says, batch.appended_ms, strict=True):
        if batch.topic == REPORTED_COUNTS:
            records.append(Sent(batch.topic, reported_key(says), value, (), says.campaign_id))
        else:
            headers = () if appended_ms is None else ((APPENDED, b"%d" % appended_ms),)
            viewer = "" if by_impression else says.viewer_id
            records.append(Sent(batch.topic, (viewer or says.impression_id).encode(), value, headers))
    return records


def _partition(record: Sent, partitions: int) -> int:
    """Return the partition of an event's key, or that of a campaign's figures for what is reported of it."""
    campaign = record.campaign_id
    return by_key(record, partitions) if campaign is None else campaign_partition(campaign, partitions)


def _tell(tally: Tally, as_json: bool) -> None:
    if as_json:
        write_json(
            {"files": tally.files, "lines": tally.lines, "records": dict(tally.topics)}
            | {"skipped": dict(tally.skipped), "bad": dict(tally.bad), "seconds": round(tally.seconds, 3)}
        )
    else:
        typer.echo(
            f"{tally.files:,} files, {tally.lines:,} lines in {tally.seconds:.1f} s: {_in_words(tally)}", err=True
        )
    if tally.bad and not tally.topics and not tally.skipped:
        fail("no row could be read: is this the right system?")


def _hints(system: System, source: str, settings: Settings) -> Iterator[str]:
    """Yield what may surprise somebody who looks for these events on a dashboard."""
    if RENDERS in system.topics and source != settings.billing_source:
        yield (
            f"{source} does not bill (STREAMS_BILLING_SOURCE is {settings.billing_source}): unless campaigns.toml says"
            " it does, these only feed the discrepancy figures"
        )
    if not system.knows_viewer and settings.key == "viewer":
        yield (
            "views without viewer_id are keyed by their impression: where renders have a viewer they are not found;"
            " use STREAMS_KEY=impression everywhere"
        )


def _in_words(tally: Tally) -> str:
    made = ", ".join(f"{count:,} {topic}" for topic, count in tally.topics.items()) or "nothing"
    skipped = "".join(f"; {count:,} skipped: {reason}" for reason, count in tally.skipped.items())
    bad = ", ".join(f"{count:,} {reason}" for reason, count in tally.bad.items())
    return made + skipped + (f"; {tally.bad.total():,} bad rows: {bad}" if bad else "")
