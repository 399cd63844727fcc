"""`streams generate`: made events with a known truth, to Kafka at their time, or to files."""

import asyncio
import gzip
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from io import BufferedWriter
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console

from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    connection_from,
    duration,
    fail,
    finish,
    settings_from,
    whole_file,
    write_json,
)
from streams.core.events import TOPICS
from streams.core.money import PriceError, is_currency, nano_of
from streams.kafka.produce import PacedProducer, ProduceError, Sending
from streams.settings import Settings
from streams.sources.open_bandit import OpenBandit
from streams.sources.schedule import Mix, Scheduled
from streams.sources.synthetic import Drop, Rotation, Traffic
from streams.sources.truth import Truth

EPILOG: Final = (
    "Examples: [bold]streams generate --rate 2000 --for 5m --truth truth.json[/bold] | "
    "[bold]streams generate --drop campaign-1:2m:4m:0.3[/bold] | "
    "[bold]streams generate --source open-bandit --speed 60[/bold] | "
    "[bold]streams generate --events 1000000 --max[/bold] | "
    "[bold]streams generate --events 10000 --out ./events --gzip[/bold]"
)
MIX: Final = Mix()
SYNTHETIC_ONLY: Final = frozenset(
    {"rate", "campaigns", "viewers", "skew", "currencies", "drops", "untagged", "rotation", "viewable"}
)
_TELL_EVERY: Final = 20_000
_TELL_S: Final = 0.5

Source = Traffic | OpenBandit


class SourceName(StrEnum):
    """Where renders come from."""

    SYNTHETIC = "synthetic"
    OPEN_BANDIT = "open-bandit"


def _parts(text: str, form: str) -> list[str]:
    parts = text.split(":")
    if len(parts) != form.count(":") + 1:
        raise typer.BadParameter(f"{text!r} has not the form {form}")
    return parts


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= 1:
        raise typer.BadParameter(f"{text!r} is no factor between 0 and 1")
    return factor


def _drop(text: str) -> Drop:
    campaign, start, end, factor = _parts(text, "CAMPAIGN:START:END:FACTOR")
    return Drop(campaign, duration(start), duration(end), _factor(factor))


def _untagged(text: str) -> Drop:
    return replace(_drop(text), share="measurable")


def _rotation(text: str) -> Rotation:
    every, length, factor = _parts(text, "EVERY:LENGTH:FACTOR")
    rotation = Rotation(duration(every), duration(length), _factor(factor))
    if rotation.every_ms == 0:
        raise typer.BadParameter("EVERY is not 0")
    return rotation


def _nano(text: str) -> int:
    try:
        nano = nano_of(text)
    except PriceError as error:
        raise typer.BadParameter(str(error)) from None
    if nano < 0:
        raise typer.BadParameter("a price is not negative")
    return nano


def _currencies(text: str) -> tuple[str, ...]:
    codes = tuple(text.split(","))
    if not all(is_currency(code) for code in codes):
        raise typer.BadParameter(f"{text!r} is no list of currencies such as USD,EUR")
    return codes


def _start(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time such as 2026-01-31T12:00:00") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _option(*names: str, panel: str = "", **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel or None, **details)


def _share(text: str) -> Any:
    return typer.Option(min=0, max=1, help=f"Share {text}", rich_help_panel="What goes in")


def command(
    context: typer.Context,
    source: Annotated[SourceName, typer.Option(help="Made traffic, or a real log of 60,000 impressions.")] = (
        SourceName.SYNTHETIC
    ),
    length_ms: Annotated[
        int | None, typer.Option("--for", parser=duration, metavar="DURATION", help="Stop after this event time.")
    ] = None,
    events: Annotated[int | None, typer.Option(min=1, help="Stop after so many events.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and start give the same bytes.")] = 0,
    start_ms: Annotated[
        int | None,
        typer.Option("--start", parser=_start, metavar="TIME", help="Event time to begin at.", show_default="now"),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Write here what has to come out, as JSON, at the end.")] = None,
    at_once: Annotated[bool, typer.Option("--max", help="As fast as possible, into the past up to now.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write files by topic into this folder, not to Kafka.")] = None,
    compress: Annotated[bool, typer.Option("--gzip", help="With --out: compress the files.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Make the events and send them nowhere.")] = False,
    rate: Annotated[float, _option(min=0.001, panel="Synthetic", help="Renders a second.")] = 1_000,
    campaigns: Annotated[int, _option(min=1, panel="Synthetic", help="Number of campaigns.")] = 20,
    viewers: Annotated[int, _option(min=1, panel="Synthetic", help="Number of viewers.")] = 100_000,
    skew: Annotated[float, _option(min=0, panel="Synthetic", help="Exponent of Zipf's law; 0 = even.")] = 1.0,
    currencies: Annotated[
        Any, _option(parser=_currencies, panel="Synthetic", metavar="CODES", help="Dealt out to campaigns.")
    ] = "USD",
    drops: Annotated[
        list[Any] | None,
        _option(
            "--drop",
            parser=_drop,
            panel="Synthetic",
            metavar="CAMPAIGN:START:END:FACTOR",
            help="Multiply a campaign's viewable share for a while. Repeatable.",
        ),
    ] = None,
    untagged: Annotated[
        list[Any] | None,
        _option(
            "--break-tag",
            parser=_untagged,
            panel="Synthetic",
            metavar="CAMPAIGN:START:END:FACTOR",
            help="Multiply a campaign's measurable share for a while. Repeatable.",
        ),
    ] = None,
    rotation: Annotated[
        Any,
        _option(
            "--rotate-drops",
            parser=_rotation,
            panel="Synthetic",
            metavar="EVERY:LENGTH:FACTOR",
            help="Let one campaign after the other drop.",
        ),
    ] = None,
    speed: Annotated[float, _option(min=0.001, max=10_000, panel="Open Bandit", help="Times faster.")] = 1.0,
    cpm: Annotated[Any, _option(parser=_nano, panel="What goes in", metavar="PRICE", help="Mean CPM.")] = "2.071",
    measurable: Annotated[float, _share("of renders that can be measured.")] = MIX.measurable,
    viewable: Annotated[float, _share("of measurable ones that are viewable (synthetic).")] = MIX.viewable,
    ctr: Annotated[float, _share("of renders that are clicked (synthetic).")] = MIX.ctr,
    anonymous: Annotated[float, _share("of renders without a viewer.")] = MIX.anonymous,
    duplicates: Annotated[float, _share("of events that come again.")] = MIX.duplicates,
    refreshes: Annotated[float, _share("of renders whose slot is refreshed within 30 s.")] = MIX.refreshes,
    bots: Annotated[float, _share("of renders by a known crawler.")] = MIX.bots,
    late: Annotated[float, _share("of events that come once more, 2 h behind.")] = MIX.late,
    malformed: Annotated[float, _share("of renders with a broken record beside them.")] = MIX.malformed,
    strays: Annotated[float, _share("of renders with a view or click of no impression beside them.")] = MIX.strays,
    big_record: Annotated[
        bool, _option("--big-record", panel="What goes in", help="Begin with a broken record of 5 MB.")
    ] = False,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make renders, views and clicks whose counts are known beforehand, and send them at their time.

    An open loop: a slow broker makes it fall behind, never slow down. Ctrl-C ends it in order: what was sent is
    delivered, and the truth is of exactly that.
    """
    settings = settings_from(broker=broker, topic_prefix=topic_prefix)
    paced = not (at_once or out is not None or dry_run)
    if not paced and events is None and length_ms is None:
        fail("--max, --out and --dry-run need an end: say --events or --for", 2)
    _refuse_idle_flags(context, source, {"compress"} if out is None else set())
    all_drops: list[Drop] = [*(drops or ()), *(untagged or ())]
    _refuse_unknown_campaigns(all_drops, campaigns)
    mix = Mix(
        anonymous=anonymous,
        duplicates=duplicates,
        refreshes=refreshes,
        bots=bots,
        late=late,
        malformed=malformed,
        strays=strays,
        measurable=measurable,
        viewable=viewable,
        ctr=ctr,
        big_record=big_record,
    )
    made: Source = (
        OpenBandit(start_ms=0, seed=seed, speed=speed, cpm_nano=cpm, mix=mix)
        if source is SourceName.OPEN_BANDIT
        else Traffic(
            start_ms=0,
            seed=seed,
            rate=rate,
            campaigns=campaigns,
            viewers=viewers,
            skew=skew,
            cpm_nano=cpm,
            currencies=currencies,
            mix=mix,
            drops=all_drops,
            rotation=rotation,
        )
    )
    run = Run(_started(made, start_ms, paced, length_ms, events), length_ms, events, nulls=out is None)
    if out is not None:
        run.to_files(out, compress)
    elif dry_run:
        run.to_nowhere()
    else:
        run.to_kafka(settings, paced)
    if truth is not None:
        write_truth(truth, run.truth)
    _tell(run, as_json)


def _refuse_idle_flags(context: typer.Context, source: SourceName, idle: set[str]) -> None:
    """End if a flag was given that does nothing in this run."""
    idle |= SYNTHETIC_ONLY if source is SourceName.OPEN_BANDIT else {"speed"}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "")
        if parameter.name in idle and given is not None and given.name == "COMMANDLINE":
            fail(f"{parameter.opts[0]} does nothing here: see streams generate --help", 2)


def _refuse_unknown_campaigns(drops: Iterable[Drop], campaigns: int) -> None:
    names = {f"campaign-{number}" for number in range(1, campaigns + 1)}
    for drop in drops:
        if drop.campaign_id not in names:
            fail(f"no {drop.campaign_id} to drop: there are campaign-1 to campaign-{campaigns}", 2)


def _started(made: Source, start_ms: int | None, paced: bool, length_ms: int | None, events: int | None) -> Source:
    """Return the source moved to its start: now, or so far back that it ends by now."""
    if start_ms is None:
        start_ms = int(time.time() * 1000)
        if not paced:
            spans = [length_ms] if length_ms is not None else []
            spans += [made.span_ms(events)] if events is not None else []
            start_ms -= min(spans)
    return replace(made, start_ms=start_ms)


class Run:
    """One run: takes events from a source, brings them somewhere, and notes the truth of what it brought."""

    def __init__(self, source: Source, length_ms: int | None, events: int | None, *, nulls: bool) -> None:
        self.truth = Truth(source.seed)
        self.topics: Counter[str] = Counter()
        self.sending = Sending()
        self.seconds = 0.0
        self._began = time.monotonic()
        self._stop = asyncio.Event()
        made = source.events() if nulls else (event for event in source.events() if event.value is not None)
        self._events = _until(made, None if length_ms is None else source.start_ms + length_ms, events)
        self._console = Console(stderr=True)

    def to_kafka(self, settings: Settings, paced: bool) -> None:
        """Send to the input topics; end with an error if anything was not delivered."""
        try:
            finish(self._send(settings, paced))
        except ProduceError as error:
            fail(str(error))
        self.seconds = time.monotonic() - self._began

    async def _send(self, settings: Settings, paced: bool) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        producer = PacedProducer[Scheduled](connection_from(settings), settings.topic_prefix, self._note)
        self.sending = producer.sending
        telling = asyncio.create_task(self._keep_telling())
        try:
            await producer.send(self._events, self._stop, paced=paced)
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling

    async def _keep_telling(self) -> None:
        with self._line() as tell:
            while True:
                tell()
                await asyncio.sleep(_TELL_S)

    def to_files(self, folder: Path, compress: bool) -> None:
        """Write a file a topic, an event a line. A line cannot hold a null value: such records are left out."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                files = {topic: stack.enter_context(_file(folder, topic, compress)) for topic in TOPICS}
                self._bring(lambda event: files[event.topic].write((event.value or b"") + b"\n"))
        except OSError as error:
            fail(f"{folder}: {error.strerror}")

    def to_nowhere(self) -> None:
        """Only make the events."""
        self._bring(lambda event: None)

    def _bring(self, write: Callable[[Scheduled], object]) -> None:
        with _on_signal(self._stop.set), self._line() as tell:
            for event in self._events:
                if self._stop.is_set():
                    break
                write(event)
                self._note(event, 0)
                self.sending.sent += 1
                if self.sending.sent % _TELL_EVERY == 0:
                    tell()
        self.seconds = time.monotonic() - self._began

    def _note(self, event: Scheduled, partition: int) -> None:
        self.truth.note(event.fact, event.at_ms, partition)
        self.topics[event.topic] += 1

    def _line(self) -> "_Line":
        return _Line(self._console, self._words)

    def _words(self) -> str:
        seconds = max(time.monotonic() - self._began, 0.001)
        return f"{self.sending.sent:,} events, {self.sending.sent / seconds:,.0f}/s{_behind(self.sending)}"


@contextmanager
def _on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call a function on Ctrl-C and SIGTERM, and nothing else."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Line:
    """A line on a terminal that follows the run; nothing elsewhere."""

    def __init__(self, console: Console, words: Callable[[], str]) -> None:
        self._status = console.status("") if console.is_terminal else None
        self._words = words

    def __enter__(self) -> Callable[[], None]:
        if self._status is not None:
            self._status.start()
        return self._tell

    def _tell(self) -> None:
        if self._status is not None:
            self._status.update(self._words())

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _until(made: Iterator[Scheduled], end_ms: int | None, events: int | None) -> Iterator[Scheduled]:
    return islice(made if end_ms is None else takewhile(lambda event: event.at_ms < end_ms, made), events)


def _behind(sending: Sending) -> str:
    return f", {sending.behind_ms / 1000:.1f} s behind" if sending.behind_ms > 0 else ""


def _file(folder: Path, topic: str, compress: bool) -> BufferedWriter | gzip.GzipFile:
    path = folder / f"{topic}.jsonl{'.gz' if compress else ''}"
    # Without the time that gzip would put in, the same seed gives the same file.
    return gzip.GzipFile(path, "wb", compresslevel=6, mtime=0) if compress else path.open("wb")


def write_truth(path: Path, truth: Truth) -> None:
    """Write the truth as JSON, whole or not at all."""
    try:
        with whole_file(path) as file:
            file.write(orjson.dumps(truth.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        fail(f"{path}: {error.strerror}")


def _tell(run: Run, as_json: bool) -> None:
    sent = {topic: run.topics[topic] for topic in TOPICS}
    if as_json:
        write_json({"sent": sent, "seconds": round(run.seconds, 3), "truth": run.truth.to_json()})
        return
    topics = ", ".join(f"{count:,} {topic}" for topic, count in sent.items())
    typer.echo(f"{run.truth.sent:,} events in {run.seconds:.1f} s: {topics}")
