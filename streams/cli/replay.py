"""`streams replay`: a range of event time counted again, beside the live numbers and without touching them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Annotated, Any, Final

import orjson
import typer
from rich.console import Console

from streams.cli import replay_alerts, replay_diff, replay_rebuild
from streams.cli.files import ClicksFile, RendersFile, ViewabilityFile
from streams.cli.replay_count import Job, Plan, count_files, count_topics, dry_run
from streams.cli.replay_options import (
    FromOption,
    RunOption,
    ToOption,
    a_speed,
    an_exclusion,
    file_of,
    one_line_errors,
    run_name,
    some_topics,
)
from streams.cli.report import table
from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    campaigns_from,
    collect_seldom,
    fail,
    finish,
    settings_from,
    whole_file,
    write_json,
)
from streams.cli.text import listed
from streams.core.events import CLICKS, RENDERS, TOPICS, VIEWABILITY
from streams.metrics.backfill import Backfill, pages
from streams.replay.backtest import Firing
from streams.replay.document import Document
from streams.replay.html import write_html
from streams.replay.scope import Scope, texts
from streams.replay.store import Store
from streams.settings import Settings, duration_ms

EPILOG: Final = (
    "Examples: [bold]streams replay --from 2026-11-24T00:00 --to 2026-11-25T00:00 --report yesterday.json[/bold] | "
    "[bold]streams replay --from ... --to ... --set refresh_interval=0s --report other.json[/bold] | "
    "[bold]streams replay diff yesterday.json other.json[/bold] | "
    "[bold]streams replay --from ... --to ... --run fixed --exclude source=dsp,from=2026-11-24T10:00 --publish[/bold]"
)
RULES: Final = (
    "lateness", "dedup_horizon", "viewability_horizon", "refresh_interval", "refresh_slack", "count_user_refresh",
    "click_makes_viewable", "datacenter_cidrs", "billing_source", "key", "windows", "min_sample", "idle",
)  # fmt: skip
"""The settings that a replay may be given other values of: those that what is counted depends on."""

_ALL: Final = ",".join(TOPICS)

app = typer.Typer(invoke_without_command=True, epilog=EPILOG)


app.command("diff", epilog=replay_diff.EPILOG)(replay_diff.command)
app.command("rebuild", epilog=replay_rebuild.EPILOG)(replay_rebuild.command)


@app.callback()
def command(
    context: typer.Context,
    start: FromOption = None,
    stop: ToOption = None,
    topics: Annotated[Any, typer.Option(parser=some_topics, metavar="NAMES", help="Which topics are read.")] = _ALL,
    campaigns: Annotated[
        Path | None, typer.Option("--campaigns", metavar="FILE", help="What is agreed (STREAMS_CAMPAIGNS).")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Another value of a setting. Repeatable.")
    ] = None,
    excluded: Annotated[
        list[Any] | None,
        typer.Option(
            "--exclude", parser=an_exclusion, metavar="source=S,from=T,to=T", help="Leave a feed out. Repeatable."
        ),
    ] = None,
    speed: Annotated[Any, typer.Option(parser=a_speed, metavar="10x|max", help="How fast event time passes.")] = "max",
    run: RunOption = None,
    restart: Annotated[bool, typer.Option("--restart", help="Count anew, not from where it was interrupted.")] = False,
    only_plan: Annotated[bool, typer.Option("--dry-run", help="Say what is read, and how long it takes.")] = False,
    reports: Annotated[
        list[Path] | None, typer.Option("--report", metavar="FILE", help="Write a report: .json or .html. Repeatable.")
    ] = None,
    openmetrics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write OpenMetrics for promtool, labelled with the run.")
    ] = None,
    step: Annotated[str, typer.Option(metavar="DURATION", help="Time between samples of it, panes of 10s.")] = "1m",
    alerts: Annotated[bool, typer.Option("--alerts", help="Say which alerts would have fired when.")] = False,
    rules: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Rules to test instead of the shipped ones. Repeatable.")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Write windows to campaign-windows-NAME.")] = False,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Go on without what retention deleted.")] = False,
    renders: RendersFile = None,
    viewability: ViewabilityFile = None,
    clicks: ClicksFile = None,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count a range of event time again, with the same or other rules, beside the live numbers.

    Reads the topics (or files: JSON lines, .gz, .parquet) as far back as anything can lie that decides what counts in
    the range, and on until nothing can change it. Never writes to a live topic and never commits offsets of the
    workers' group. Interrupted, by Ctrl-C or a kill, the same command goes on where it was. Equal input gives equal
    reports, byte for byte.
    """
    if context.invoked_subcommand is not None:
        return
    files = {RENDERS: renders, VIEWABILITY: viewability, CLICKS: clicks}
    settings = _settings(changes or [], broker=broker, topic_prefix=topic_prefix, campaigns=campaigns)
    agreed = campaigns_from(settings)
    _check_usage(start, stop, files, reports or [], publish, only_plan, speed)
    scope = Scope(start, stop, topics, tuple(sorted(excluded or [])))
    parameters = {
        "from": start,
        "to": stop,
        "topics": list(topics),
        "excluded": texts(scope.excluded),
        "rules": settings.rules.plain(),
        "campaigns": agreed.digest(1 << 62),
    }
    work = [parameters, settings.broker, settings.topic_prefix, [str(path) for path in files.values()]]
    job = Job(
        run_name(run, work), settings, agreed, scope, speed, publish, accept_loss,
        files if any(files.values()) else {},
    )  # fmt: skip
    if only_plan:
        _show_plan(job, *finish(dry_run(job)), as_json)
        return
    step_ms, rule_paths = _step(step), replay_alerts.rule_files(rules or []) if alerts else []
    with one_line_errors(job.run), Store(file_of(job.run)) as store:
        _bind(store, job, parameters, restart)
        _count(job, store)
        document = Document(store, agreed)
        for path in reports or []:
            with written(path) as file:
                (write_html if path.suffix == ".html" else Document.write)(document, file)
        if openmetrics is not None:
            write_openmetrics(job, store, openmetrics, step_ms)
        found = _tested(job, store, rule_paths, step_ms) if alerts else None
        _show(document, job, found, as_json)
        store.delete()


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that is there when all of it is written; one that cannot be written ends the command."""
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        fail(f"{path}: cannot be written: {error.strerror or error}")


def _check_usage(
    start: int | None, stop: int | None, files: dict[str, Path | None], reports: list[Path],
    publish: bool, only_plan: bool, speed: float,
) -> None:  # fmt: skip
    if start is not None and stop is not None and start >= stop:
        fail("--from lies not before --to", 2)
    if bad := [path for path in reports if path.suffix not in (".json", ".html")]:
        fail(f"--report {bad[0]}: a report is a .json or an .html file", 2)
    if any(files.values()) and (publish or only_plan or speed):
        fail("--publish, --dry-run and --speed are for topics, not for files", 2)
    if any(path == Path("-") for path in files.values()):
        fail("- cannot be standard input here: a run that is interrupted reads again", 2)


def _settings(changes: list[str], **flags: Any) -> Settings:
    for change in changes:
        name, sign, value = change.partition("=")
        name = name.strip().lower().removeprefix("streams_")
        if not sign or name not in RULES:
            fail(f"--set {change}: not NAME=VALUE with one of {', '.join(RULES)}", 2)
        flags[name] = value
    return settings_from(**flags)


def _step(text: str) -> int:
    try:
        step_ms = int(duration_ms(text))
    except ValueError as error:
        fail(f"--step {text}: {error}", 2)
    if step_ms <= 0 or step_ms % 10_000:
        fail(f"--step {text}: a step is a multiple of 10s", 2)
    return step_ms


def _bind(store: Store, job: Job, parameters: dict[str, Any], restart: bool) -> None:
    """Let a run be what it was begun as, or begin it."""
    settings = job.settings
    whole = parameters | {
        "origin": [settings.broker, settings.topic_prefix, [str(path) for path in job.files.values()], job.publish]
    }
    begun = store.get("begun")
    if begun is not None and not restart and begun != orjson.loads(orjson.dumps(whole)):
        fail(f"run {job.run} was begun with other parameters: take another --run, or --restart", 2)
    if begun is None or restart:
        store.restart(("published",))
        store.keep("parameters", parameters)
        store.keep("begun", whole)


def _count(job: Job, store: Store) -> None:
    collect_seldom()
    console = Console(stderr=True)
    if job.files and store.get("summary") is None:
        count_files(job, store, console)
    elif not job.files:
        finish(count_topics(job, store, console))


# --- what is written and shown ----------------------------------------------------------------------------------------


def write_openmetrics(job: Job, store: Store, path: Path, step_ms: int) -> None:
    """Write what a worker would have shown, as OpenMetrics."""
    windows = dict(zip(job.settings.windows, job.settings.windows_ms, strict=True))
    with Backfill(job.run) as backfill, written(path) as file:
        for now, families in pages(store.cells_by_pane(), windows, job.campaigns, step_ms, job.settings.min_sample):
            backfill.add(now, families)
        backfill.write(file)


def _tested(job: Job, store: Store, rules: list[Path], step_ms: int) -> list[Firing]:
    """Return which alerts would have fired in the range, as far as anything was counted there."""
    first, last = store.extent()
    start, stop = job.scope.start or first, min(job.scope.stop or last, last)
    with TemporaryDirectory() as folder:
        series = Path(folder) / "series.om"
        write_openmetrics(job, store, series, step_ms)
        return replay_alerts.tested(series, rules, (start, stop), step_ms) if stop > start else []


def _show_plan(job: Job, plan: Plan, rate: float, as_json: bool) -> None:
    seconds = plan.records / rate if rate else 0.0
    offsets = [
        (topic, number, plan.starts[topic, number], plan.likely_ends[topic, number])
        for topic, number in sorted(plan.starts, key=lambda place: (TOPICS.index(place[0]), place[1]))
    ]
    if as_json:
        partitions = [dict(zip(("topic", "partition", "from", "to"), one, strict=True)) for one in offsets]
        told = {"partitions": partitions, "events": plan.records, "events_per_s": round(rate), "seconds": seconds}
        write_json({"run": job.run} | told)
        return
    for topic, number, begin, end in offsets:
        typer.echo(f"{topic}/{number}: offsets {begin:,} to {end:,}, {max(0, end - begin):,} events")
    typer.echo(f"{plan.records:,} events, about {seconds:,.0f} s at {rate:,.0f} events a second (measured here)")


def _show(document: Document, job: Job, found: list[Firing] | None, as_json: bool) -> None:
    summary = document.summary
    if as_json:
        told = {"run": job.run} | document.parameters | summary | {"campaigns": [*document.campaigns()]}
        write_json(told if found is None else told | {"alerts": [*map(replay_alerts.as_json_values, found)]})
        return
    rows = [*document.campaigns()]
    typer.echo("\n".join(table(["campaign_id", "currency"], rows)) if rows else "nothing counts in this range")
    typer.echo("")
    for topic, outcomes in summary["events"].items():
        typer.echo(f"{topic}: {sum(outcomes.values()):,} events read = {listed(outcomes)}")
    stop = document.parameters["to"]
    if stop is None or summary["final_before"] < stop:
        typer.echo("The newest windows are not final: events that change them may still come.")
    if found is not None:
        typer.echo("\n".join(["", *replay_alerts.lines(found)]))
