"""`streams demo`: the whole job on a real log, from an empty machine to a verdict."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from streams.cli.broker import download_progress
from streams.cli.shared import duration, fail, finish
from streams.core.events import TOPICS
from streams.kafka.broker import BrokerError, EmbeddedBroker
from streams.kafka.produce import PacedProducer, ProduceError
from streams.kafka.topics import TopicAdmin, all_topics
from streams.settings import Settings
from streams.sources.open_bandit import FASTEST, OpenBandit
from streams.sources.schedule import Scheduled
from streams.sources.truth import Truth

PARTITIONS: Final = 4
WINDOW: Final = "5m"
_READY_S: Final = 60.0
_REST_S: Final = 60.0
_STOP_S: Final = 15.0
_LEAD_MS: Final = 500

_ABOUT: Final = (
    "Open Bandit log: real impressions and clicks of six campaigns, moved to now and {speed:g} times faster.\n"
    "Synthetic, because no public log has them: prices, viewability, viewers, and everything that goes wrong."
)


_FIGURES: Final = {
    "ads_served_impressions_total": "served",
    "ads_measurable_impressions_total": "measurable",
    "ads_viewable_impressions_total": "viewable",
    "ads_clicks_total": "clicks",
    "ads_spend_total": "spend",
    "ads_gross_impressions_total": "gross",
}


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def command(
    for_ms: Annotated[
        int | None,
        typer.Option("--for", parser=duration, metavar="DURATION", help="End after so long; without it, on Ctrl-C."),
    ] = None,
    speed: Annotated[float, typer.Option(min=1, max=FASTEST, help="How many times faster than the log was.")] = 2_000,
    port: Annotated[int, typer.Option(help="Port of the page and of /metrics; 0 = any free one.")] = 6066,
    seed: Annotated[int, typer.Option(help="Seed of all that is synthetic.")] = 1,
) -> None:
    """Run everything on this machine: Kafka, topics, a worker, and a real log; then say whether the numbers are right.

    Exit code 0 only if every event is accounted for and every campaign's numbers equal the truth.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="streams-demo-") as folder, download_progress() as on_download:
            broker = EmbeddedBroker(0, Path(folder) / "kafka", on_download)
            differences = finish(_demo(broker, Path(folder), for_ms, speed, port, seed))
    except (BrokerError, DemoError, ProduceError) as error:
        fail(str(error))
    raise typer.Exit(1 if differences else 0)


async def _demo(
    broker: EmbeddedBroker, folder: Path, for_ms: int | None, speed: float, port: int, seed: int
) -> list[str]:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console = Console()
    console.print(_ABOUT.format(speed=speed), style="dim", soft_wrap=True)
    await asyncio.to_thread(broker.start)
    try:
        async with TopicAdmin(broker.bootstrap) as admin:
            defaults = Settings.model_construct()
            await admin.create(all_topics(defaults.topic_prefix, defaults.group), PARTITIONS)
        async with _worker(broker.bootstrap, port, folder / "worker.log") as url, aiohttp.ClientSession(url) as web:
            await _until_ready(web, stop)
            console.print(f"Page {url}/   metrics {url}/metrics   Kafka {broker.bootstrap}", soft_wrap=True)
            truth = await _play(broker.bootstrap, web, stop, console, for_ms, speed, seed)
            return await _verdict(web, truth, console)
    finally:
        await asyncio.to_thread(broker.stop)


@asynccontextmanager
async def _worker(bootstrap: str, port: int, log: Path) -> AsyncIterator[str]:
    """Run a worker of default settings as a process of its own, and yield the address of its page."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("STREAMS_")}
    environment = own | {"STREAMS_BROKER": bootstrap, "STREAMS_HTTP_PORT": str(port)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streams.cli", "worker"),
            env=environment,
            cwd=log.parent,  # no streams.toml of whoever runs the demo
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield await _address(process, log)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _address(process: asyncio.subprocess.Process, log: Path) -> str:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.returncode is None:
        for line in log.read_text().splitlines():
            if '"url": "' in line:
                return line.split('"url": "')[1].split('"')[0]
        await asyncio.sleep(0.1)
    raise DemoError(f"the worker does not start: {log.read_text().strip()}")


async def _until_ready(web: aiohttp.ClientSession, stop: asyncio.Event) -> None:
    deadline = time.monotonic() + _READY_S
    while not stop.is_set():
        async with web.get("/readyz") as answer:
            if answer.ok:
                return
            if time.monotonic() > deadline:
                raise DemoError(f"the worker does not get ready: {await answer.text()}")
        await asyncio.sleep(0.1)


async def _play(
    bootstrap: str,
    web: aiohttp.ClientSession,
    stop: asyncio.Event,
    console: Console,
    for_ms: int | None,
    speed: float,
    seed: int,
) -> Truth:
    """Send the log until told to stop, and show what is counted; return what was sent."""
    truth = Truth(seed)
    log = OpenBandit(start_ms=int(time.time() * 1000) + _LEAD_MS, seed=seed, speed=speed)

    def taken(record: Scheduled, partition: int) -> None:
        truth.note(record.fact, record.at_ms, partition)

    producer = PacedProducer(bootstrap, "", taken)
    showing = asyncio.create_task(_show(web, console))
    if for_ms is not None:
        asyncio.get_running_loop().call_later(for_ms / 1000, stop.set)
    try:
        await producer.send(log.events(), stop)
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
    return truth


async def _show(web: aiohttp.ClientSession, console: Console) -> None:
    if not console.is_terminal:
        return
    before: tuple[float, int] | None = None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            async with web.get("/api/campaigns") as answer:
                figures = await answer.json()
            now = time.monotonic(), _events(figures["stream"])
            rate = (now[1] - before[1]) / (now[0] - before[0]) if before else 0.0
            before = now
            live.update(_table(figures, rate), refresh=True)
            await asyncio.sleep(1)


def _events(stream: dict[str, Any]) -> int:
    counted: int = sum(sum(outcomes.values()) for outcomes in stream["events"].values())
    waiting: int = sum(stream["pending"].values())
    return counted + waiting


def _table(figures: dict[str, Any], rate: float) -> Table:
    table = Table(title=f"Last {WINDOW}", caption="Ctrl-C ends the demo with a verdict", title_justify="left")
    table.add_column("Campaign")
    for name in ("Served", "Measurable", "Viewable", "Viewable rate", "CPM", "vCPM", "Events/s", "Lag"):
        table.add_column(name, justify="right")
    for row in figures["campaigns"]:
        shown = row["windows"].get(WINDOW, {})
        counts = [f"{shown.get(name, 0):,}" for name in ("served", "measurable", "viewable")]
        money = [_text(price and Decimal(price), ".3f") for price in map(shown.get, ("cpm", "vcpm"))]
        table.add_row(row["campaign_id"], *counts, _text(shown.get("viewable_rate"), ".2%"), *money)
    table.add_section()
    table.add_row("all", *[""] * 6, f"{rate:,.0f}", f"{figures['stream']['lag']:,}")
    return table


def _text(value: float | Decimal | None, form: str) -> str:
    return "" if value is None else format(value, form)


async def _verdict(web: aiohttp.ClientSession, truth: Truth, console: Console) -> list[str]:
    """Wait until the worker has counted all that was sent, compare, and say what came out."""
    deadline = time.monotonic() + _REST_S
    while True:
        async with web.get("/metrics") as answer:
            differences = truth.compare(observed(await answer.text()))
        if not differences or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    if differences:
        console.print("Verdict: NOT exact.", style="bold red")
        for line in differences:
            console.print(f"  {line}", markup=False)
        return differences
    console.print("Verdict: exact.", style="bold green")
    told = truth.to_json()
    for topic in TOPICS:
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in told["events"][topic]["outcomes"].items())
        console.print(f"  {topic}: {told['events'][topic]['sent']:,} events = {outcomes or 'none'}", soft_wrap=True)
    console.print(f"  {len(told['campaigns'])} campaigns: served, measurable, viewable and spend equal the truth")
    return []


def observed(page: str) -> dict[str, Any]:
    """Return what a /metrics page says, in the form of the truth's JSON."""
    events: dict[str, Any] = {topic: {"sent": 0, "outcomes": {}} for topic in TOPICS}
    campaigns: dict[tuple[str, str], dict[str, Any]] = {}
    letters: dict[str, int] = {}
    for family in text_string_to_metric_families(page):
        for name, labels, value, *_ in family.samples:
            match name:
                case "streams_events_consumed_total":
                    events[labels["topic"]]["sent"] = int(value)
                case "streams_events_total":
                    events[labels["topic"]]["outcomes"][labels["outcome"]] = int(value)
                case "streams_events_pending":
                    events[labels["topic"]]["outcomes"]["pending"] = int(value)
                case "streams_dead_letters_total":
                    letters[labels["reason"]] = int(value)
                case _ if name in _FIGURES:
                    row = campaigns.setdefault((labels["campaign"], labels["currency"]), {})
                    row[_FIGURES[name]] = value if name == "ads_spend_total" else int(value)
    rows = [{"campaign_id": name, "currency": currency, **row} for (name, currency), row in campaigns.items()]
    return {"events": events, "dead_letters": letters, "campaigns": rows}
