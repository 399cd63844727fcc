"""`streams ingest`: to files, to standard output, to a real broker whose worker counts it; bad rows; exit codes."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from streams.cli import app
from streams.cli.ingest import LINES_A_TASK
from streams.core.events import TOPICS
from streams.core.reported import ReportedCount
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.produce import partition_of
from streams.kafka.qualify import campaign_partition
from streams.sources.pool import ALONE
from streams.sources.systems import SYSTEMS
from streams.wire.reported import decode_reported, reported_key
from tests.conftest import create_topics
from tests.test_adapters import BACKFILL, CLICKS, DATA, IMPRESSIONS, VIEWS, csv_of, lines
from tests.worker import WorkerProcess, read_topic, wait_until

PARTITIONS = 3
NOBODY = "127.0.0.1:1"
REVENUE = "0.00032199999999999997"


def ingest(system: str, *arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["ingest", system, *map(str, arguments)], input=stdin)


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: [json.loads(line) for line in path.read_bytes().splitlines()] for path in folder.iterdir()}


def broken(folder: Path, bad_rows: int) -> Path:
    """A file of backfill with so many bad rows between two good ones."""
    path = folder / "NetworkBackfillImpressions_1_20260131_05"
    path.write_bytes(lines("KeyPart,TimeUsec2", "a,1000", *["b"] * bad_rows, "c,2000"))
    return path


# --- files ------------------------------------------------------------------------------------------------------------


def test_one_kind_of_event_goes_to_standard_output_and_how_it_went_to_standard_error():
    result = ingest("gam", DATA / CLICKS)
    assert result.exit_code == 0
    assert [json.loads(line)["source"] for line in result.stdout.splitlines()] == ["gam", "gam"]
    assert result.stderr.startswith("1 files, 3 lines in ") and result.stderr.endswith(": 2 clicks\n")


def test_several_kinds_of_events_need_a_folder_and_get_a_file_each(tmp_path):
    result = ingest("gam", DATA / IMPRESSIONS, DATA / CLICKS)
    assert result.exit_code == 2
    assert "--out DIR" in result.stderr
    assert ingest("gam", DATA / IMPRESSIONS, DATA / CLICKS, "--out", tmp_path / "to").exit_code == 0
    assert {topic: len(events) for topic, events in written(tmp_path / "to").items()} == {
        "renders": 4, "viewability": 3, "clicks": 2,
    }  # fmt: skip


def test_a_folder_of_events_is_what_report_counts(tmp_path):
    files = [DATA / name for name in (IMPRESSIONS, BACKFILL, VIEWS, CLICKS)]
    table = ("--table", DATA / "gam_line_items.csv", "--source", "adserver")
    assert ingest("gam", *files, *table, "--out", tmp_path).exit_code == 0
    paths = [text for topic in TOPICS for text in (f"--{topic}", str(tmp_path / f"{topic}.jsonl"))]
    report = json.loads(CliRunner().invoke(app, ["report", *paths, "--json"]).stdout)
    spend = {(row["campaign_id"], row["currency"]): row["spend"] for row in report["campaigns"]}
    assert spend == {
        ("0", "USD"): "0.000351", ("70001", "USD"): "0.005", ("70002", "USD"): "0.012345678", ("70002", "none"): "0",
    }  # fmt: skip


def test_gzip_and_standard_input_are_read_as_files_are(tmp_path):
    packed = tmp_path / f"{CLICKS}.gz"
    packed.write_bytes(gzip.compress((DATA / CLICKS).read_bytes()))
    plain = ingest("gam", DATA / CLICKS).stdout
    assert ingest("gam", packed).stdout == plain
    assert ingest("gam", "-", "--kind", "clicks", stdin=(DATA / CLICKS).read_bytes()).stdout == plain


def test_json_says_how_it_went(tmp_path):
    told = json.loads(ingest("openrtb", DATA / "openrtb.jsonl", "--out", tmp_path, "--json").stdout)
    told.pop("seconds")
    assert told == {
        "files": 1, "lines": 9, "records": {"renders": 6}, "skipped": {"nurl: a won bid is no impression": 2},
        "bad": {"out_of_range": 1},
    }  # fmt: skip


def test_a_report_that_is_read_twice_says_the_same_and_a_later_one_replaces_it(tmp_path):
    later = tmp_path / "later.csv"
    later.write_bytes((DATA / "ssp.csv").read_bytes().replace(b"5050000", b"5050007"))
    assert ingest("ssp", DATA / "ssp.csv", DATA / "ssp.csv", "--out", tmp_path / "a").exit_code == 0
    assert ingest("ssp", DATA / "ssp.csv", later, "--out", tmp_path / "b").exit_code == 0
    (once,), (newest,) = (written(tmp_path / name)["reported-counts"] for name in "ab")
    assert (once["impressions"], newest["impressions"]) == (5_050_000, 5_050_007)


# --- bad rows ---------------------------------------------------------------------------------------------------------


def test_bad_rows_are_told_with_file_and_line_and_stop_nothing(tmp_path):
    path = broken(tmp_path, 2)
    result = ingest("gam", path)
    assert result.exit_code == 0
    assert [json.loads(line)["impression_id"] for line in result.stdout.splitlines()] == ["a-1000", "c-2000"]
    assert result.stderr.splitlines()[:2] == [
        f"streams: {path}:{line}: wrong_columns: has 1 cells, and the header 2" for line in (3, 4)
    ]
    assert "2 bad rows: 2 wrong_columns" in result.stderr


def test_many_bad_rows_are_counted_and_the_first_ones_told(tmp_path):
    result = ingest("gam", broken(tmp_path, 500))
    assert "500 bad rows" in result.stderr
    assert len(result.stderr.splitlines()) == 22


def test_a_bad_row_tells_nothing_of_what_is_in_it(tmp_path):
    path = tmp_path / "openrtb.jsonl"
    path.write_bytes(lines('{"type":"burl","AUCTION_ID":"secret","AUCTION_IMP_ID":"1","ts":1,"cid":"x","w":"secret"}'))
    result = ingest("openrtb", path)
    assert result.exit_code == 1
    assert "secret" not in result.stderr


# --- many processes ---------------------------------------------------------------------------------------------------

LONG = LINES_A_TASK * (ALONE + 12)
"""Rows that are too many for one process."""
TORN = range(1, LONG, 17_777)
"""The lines of them that are broken."""


def test_any_number_of_processes_gives_the_same_lines_in_the_same_order_and_tells_the_same_of_bad_rows(tmp_path):
    path = tmp_path / "NetworkBackfillImpressions_1"
    rows = [f"k{number},1769864401000000,{number},0.000001\n" for number in range(LONG)]
    text = ["KeyPart,TimeUsec2,OrderId,EstimatedBackfillRevenue\n", *rows]
    path.write_text("".join('"torn\n' if number in TORN else line for number, line in enumerate(text)))
    found = {}
    for processes in (1, 2, 5):
        done = run_of(path, tmp_path / str(processes), "--processes", str(processes))
        assert done.returncode == 0, done.stderr
        *bad, summary = done.stderr.splitlines()
        found[processes] = (tmp_path / str(processes) / "renders.jsonl").read_bytes(), bad, summary.partition(" s: ")[2]
    assert found[1] == found[2] == found[5]
    events = [json.loads(line) for line in found[2][0].splitlines()]
    assert [event["campaign_id"] for event in events] == [str(row) for row in range(LONG) if row + 1 not in TORN]
    assert found[2][1] == [f"streams: {path}:{line + 1}: not_csv: a quote is not closed in its line" for line in TORN]


def run_of(path: Path, out: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "streams.cli", "ingest", "gam", str(path), "--out", str(out), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_from_without_it_leaves_neither_file_nor_process_nor_traceback(tmp_path, number):
    with endless(tmp_path) as (process, children):
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    wait_until(lambda: not any(is_running(pid) for pid in children), "no process is left")
    assert "Traceback" not in stderr
    if number != signal.SIGKILL:
        assert not list((tmp_path / "out").glob("renders.jsonl"))


GONE = "a process that judges rows is gone"


def test_a_process_that_was_killed_is_told_in_a_line(tmp_path):
    with endless(tmp_path) as (process, children):
        os.kill(children[0], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr == f"streams: {GONE}: was it killed, as there is too little memory? Try --processes 1\n"


ENDS_AS_IT_STARTS_HELPERS = """
import asyncio, itertools, threading, time
from multiprocessing import util
from streams.kafka.produce import read_ahead
from streams.sources.adapter import Options
from streams.sources.pool import Judging, Task, as_lines, in_order

def slowly(path, arguments, files, spawn=util.spawnv_passfds):
    pid = spawn(path, arguments, files)
    if "spawn_main" in str(arguments):
        begun.set()
        time.sleep(0.5)
    return pid

async def read(tasks):
    async for _ in read_ahead(in_order(Judging("gam", Options(source="gam"), as_lines), tasks, 2)):
        pass

async def main():
    tasks = (Task("NetworkBackfillImpressions_1", [b"KeyPart,TimeUsec2"], line, []) for line in itertools.count(2))
    reading = asyncio.create_task(read(tasks))
    await asyncio.to_thread(begun.wait)

util.spawnv_passfds, begun = slowly, threading.Event()
asyncio.run(main())
"""


def test_where_it_ends_while_others_are_started_to_help_none_of_them_complains():
    command = [sys.executable, "-c", ENDS_AS_IT_STARTS_HELPERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def endless(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A run that reads an endless pipe and has asked other processes to help, and those."""
    path = folder / "NetworkBackfillImpressions_1"
    os.mkfifo(path)
    command = [sys.executable, "-m", "streams.cli", "ingest", "gam", str(path), "--out", str(folder / "out")]
    with subprocess.Popen(
        [*command, "--processes", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        stop = threading.Event()
        feeder = threading.Thread(target=_feed, args=(path, stop))
        feeder.start()
        try:
            wait_until(lambda: len(judging(process.pid)) == 2, "two processes help")
            yield process, judging(process.pid)
        finally:
            stop.set()
            process.kill()
            feeder.join()


def _feed(path: Path, stop: threading.Event) -> None:
    rows = lines(*(f"k{number},1769864401000000" for number in range(LINES_A_TASK)))
    with suppress(BrokenPipeError), path.open("wb") as pipe:
        pipe.write(lines("KeyPart,TimeUsec2"))
        while not stop.is_set():
            pipe.write(rows)


def judging(pid: int) -> list[int]:
    """The processes that judge rows for one, and watch it with a thread of their own already."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    helpers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [int(child) for child in helpers if len(os.listdir(f"/proc/{child}/task")) > 1]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_strict_stops_at_the_first_bad_row_and_leaves_no_file(tmp_path):
    result = ingest("gam", broken(tmp_path, 1), "--out", tmp_path / "to", "--strict")
    assert result.exit_code == 1
    assert ":3: wrong_columns" in result.stderr
    assert list((tmp_path / "to").iterdir()) == []


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("ssp", "nowhere.csv"), 1, "nowhere.csv: No such file"),
        (("nothing", "x.csv"), 2, "nothing"),
        (("ssp",), 2, "FILE"),
        (("ssp", str(DATA / "ssp.csv"), "--json"), 2, "--out DIR"),
        (("ssp", str(DATA / "ssp.csv"), "--to", "kafka", "--out", "x"), 2, "--to jsonl"),
        (("ssp", str(DATA / "ssp.csv"), "--table", "x"), 2, "--table"),
        (("ssp", str(DATA / "ssp.csv"), "--tz", "Mars/Olympus"), 2, "Mars/Olympus"),
        (("ssp", str(DATA / "ssp.csv"), "--currency", "euro"), 2, "euro"),
        (("ssp", str(DATA / "kevel.jsonl"), "--strict"), 0, ""),
        (("dv360", str(DATA / "ssp.csv")), 1, "ssp.csv: has no header with the columns Event Type"),
        (("gam", str(DATA / IMPRESSIONS), "--table", str(DATA / "ssp.csv")), 1, "ssp.csv: has no header"),
        (("kevel", str(DATA / "ssp.csv")), 1, "no row could be read"),
        (("ssp", str(DATA / "ssp.csv"), "--to", "kafka", "--broker", NOBODY), 1, NOBODY),
    ],
    ids=lambda value: " ".join(Path(part).name for part in value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_in_a_line_with_the_right_exit_code(arguments, code, says):
    result = ingest(*arguments)
    assert result.exit_code == code
    assert says in result.stderr


def test_help_names_every_system():
    words = CliRunner().invoke(app, ["ingest", "--help"]).stdout.replace("│", " ").split()
    assert set(SYSTEMS) <= {word.strip(",.") for word in words}


# --- a real broker ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gam_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Impressions, views and clicks of 300 requests, twice: a third each of a viewer, of nobody, and backfill."""
    folder = tmp_path_factory.mktemp("gam")
    now_us = int(time.time() * 1e6) // 1_000_000 * 1_000_000 - 600_000_000
    times = [now_us + number * 1_000 for number in range(300)]
    rows = [[f"k{us}", str(us), str(us + 500), f"v{us}" if us % 3 else ""] for us in times]
    header = ["KeyPart", "TimeUsec2", "EventTimeUsec2", "UserId"]
    contents = {
        "NetworkImpressions_1_x": (["OrderId", "LineItemId"], [["shoes", "80001"]] * 200),
        "NetworkBackfillImpressions_1_x": (["OrderId", "EstimatedBackfillRevenue"], [["0", REVENUE]] * 100),
        "NetworkActiveViews_1_x": (
            ["ActiveViewMeasurableCount", "ActiveViewViewableCount"],
            [["1", str(number % 2)] for number in range(300)],
        ),
        "NetworkClicks_1_x": (["EventKeyPart"], [[f"c{number}"] for number in range(30)]),
    }
    for name, (columns, cells) in contents.items():
        its_rows = rows[-100:] if "Backfill" in name else rows
        made = [[*row, *more] for row, more in zip(its_rows, cells, strict=False)]
        (folder / name).write_bytes(csv_of([[*header, *columns], *made], "^"))
    yield [folder / name for name in contents]


def environment(broker: EmbeddedBroker, prefix: str, **settings: str) -> dict[str, str]:
    own = {"STREAMS_BROKER": broker.bootstrap, "STREAMS_TOPIC_PREFIX": prefix}
    return os.environ | own | settings


def to_kafka(broker: EmbeddedBroker, prefix: str, *arguments: str | Path, **settings: str) -> None:
    command = [sys.executable, "-m", "streams.cli", "ingest", *map(str, arguments), "--to", "kafka"]
    subprocess.run(command, env=environment(broker, prefix, **settings), check=True, timeout=60)


def test_a_worker_counts_what_was_ingested_money_included_and_files_sent_twice_once(broker, topic_prefix, gam_files):
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    table = ("--table", DATA / "gam_line_items.csv")
    to_kafka(broker, topic_prefix, "gam", *gam_files, *gam_files, *table)
    with WorkerProcess(broker.bootstrap, topic_prefix, billing_source="gam") as worker:
        worker.ready().wait_consumed(renders=600, viewability=600, clicks=60)
        wait_until(lambda: worker.totals() == {"shoes": (200, 200, 100), "0": (100, 100, 50)}, "all is counted")
        assert worker.metric("ads_clicks_total", campaign="shoes") == 30
        assert worker.metric("ads_spend_total", campaign="shoes") == 0.5  # 200 x 2.50 CPM
        assert worker.metric("ads_spend_total", campaign="0") == 0.0322  # 100 x 0.000322
        assert worker.metric("streams_events_total", topic="renders", outcome="duplicate") == 300


@pytest.mark.parametrize("key", ["viewer", "impression"])
def test_events_are_keyed_by_viewer_or_by_impression_and_lie_where_that_says(broker, topic_prefix, gam_files, key):
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    to_kafka(broker, topic_prefix, "gam", *gam_files, STREAMS_KEY=key)
    for topic, expected in (("renders", 300), ("viewability", 300), ("clicks", 30)):
        records = read_topic(broker.bootstrap, topic_prefix + topic, PARTITIONS)
        assert len(records) == expected
        for record in records:
            event = json.loads(record.value())
            viewer = event.get("viewer_id") if key == "viewer" else None
            assert record.key() == (viewer or event["impression_id"]).encode()
            assert record.partition() == partition_of(record.key(), PARTITIONS)
            assert record.headers() is None  # these files have no time of a record beside the event's


def test_what_a_server_recorded_is_told_in_the_header(broker, topic_prefix):
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    to_kafka(broker, topic_prefix, "openrtb", DATA / "openrtb.jsonl")
    records = read_topic(broker.bootstrap, topic_prefix + "renders", PARTITIONS)
    told = {json.loads(record.value())["impression_id"]: record.headers() for record in records}
    assert told["req-1-1"] == [("appended", b"1769864402000")]
    assert told["req-6-1"] == [("appended", b"1769864405000")]
    assert told["req-3-1"] is None


def test_reported_counts_lie_with_their_campaign_under_a_key_that_a_newer_report_has_too(broker, topic_prefix):
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    for _ in range(2):
        to_kafka(broker, topic_prefix, "google-ads", DATA / "google_ads.csv", "--tz", "Europe/Berlin")
    records = read_topic(broker.bootstrap, topic_prefix + "reported-counts", PARTITIONS)
    assert len(records) == 4 and len({record.key() for record in records}) == 2
    for record in records:
        count = decode_reported(record.value())
        assert isinstance(count, ReportedCount) and count.time_zone == "Europe/Berlin"
        assert record.key() == reported_key(count)
        assert record.partition() == campaign_partition(count.campaign_id, PARTITIONS)


STOPPED = "streams: stopped before the files were at their end: start again, what is sent twice counts once\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("endless", ["pipe that gives nothing", "file that takes long"])
def test_told_to_stop_it_delivers_what_it_sent_and_ends_with_1(broker, topic_prefix, tmp_path, number, endless):
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    path = tmp_path / "NetworkBackfillImpressions_1"
    length = 9_999 if "pipe" in endless else 1_000_000
    content = lines("KeyPart,TimeUsec2", *(f"k{number},1769864401000000" for number in range(length)))
    if "pipe" in endless:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    command = [sys.executable, "-m", "streams.cli", "ingest", "gam", str(path), "--to", "kafka"]
    process = subprocess.Popen(command, env=environment(broker, topic_prefix), stderr=subprocess.PIPE, text=True)
    with path.open("r+b" if "pipe" in endless else "rb", 0) as feed:
        if "pipe" in endless:
            feed.write(content)
        wait_until(lambda: len(renders_in(broker, topic_prefix)) >= 4_000, "some of it is in Kafka")
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (1, STOPPED)
    found = {json.loads(record.value())["impression_id"] for record in renders_in(broker, topic_prefix)}
    assert found == {f"k{number}-1769864401000000" for number in range(len(found))}
    assert len(found) < length


def renders_in(broker: EmbeddedBroker, prefix: str) -> list[Any]:
    return read_topic(broker.bootstrap, prefix + "renders", PARTITIONS)


# --- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_of_ingest_counts_exactly():
    command = [sys.executable, "-m", "benchmarks", "ingest", "--rows", "5000", "--runs", "1", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert told["exact"] is True
    assert told["runs"][0]["rows"] == 5_000
