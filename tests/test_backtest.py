"""A run as series: blocks by promtool, answers of a real Prometheus, and alerts that would have fired; from files."""

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest

from streams.core.rules import MINUTE
from streams.replay.backtest import Alert, firings
from streams.replay.document import read
from tests.loaded import a_start, clock, made, run
from tests.logs import TOPICS
from tests.monitoring import Server

LENGTH_MIN = 150
DROP = "campaign-1:80m:120m:0.7"
TRAFFIC = ("--campaigns", "4", "--skew", "0", "--viewable", "0.7", "--seed", "11", "--drop", DROP)


class Made(NamedTuple):
    """Files of some hours in which one campaign is seen less for a while."""

    files: dict[str, Path]
    start: int
    folder: Path

    def at(self, minute: int) -> int:
        return self.start + minute * MINUTE

    def replay(self, *flags: str, files: dict[str, Path] | None = None) -> "subprocess.CompletedProcess[str]":
        named = [part for topic, path in (files or self.files).items() for part in (f"--{topic}", str(path))]
        done = run("replay", *named, *flags, cache=str(self.folder))
        assert done.returncode == 0, done.stderr
        return done


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("log")
    start = a_start()
    return Made(made(folder, start, *TRAFFIC, rate=8, minutes=LENGTH_MIN), start, folder)


class Blocks(Server):
    """Prometheus on blocks that promtool made of a run's OpenMetrics."""

    def __init__(self, openmetrics: Path, folder: Path) -> None:
        data = folder / "data"
        made = subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", "-q", str(openmetrics), str(data)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        (folder / "prometheus.yml").write_text("{}")
        flags = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={data}")
        super().__init__("prometheus", *flags, "--storage.tsdb.retention.time=100y", log=folder / "log")

    def value(self, expression: str, ts_ms: int) -> float:
        answer = json.loads(self.get("/api/v1/query", query=expression, time=ts_ms / 1000))
        (sample,) = answer["data"]["result"]
        return float(sample["value"][1])


def test_a_real_prometheus_answers_what_the_report_says(log: Made, tmp_path: Path) -> None:
    report, series = tmp_path / "report.json", tmp_path / "series.om"
    log.replay("--report", str(report), "--openmetrics", str(series), "--run", "yesterday")
    windows = read(report).windows
    with Blocks(series, tmp_path) as prometheus:
        for minute in (70, 119, 149):
            for campaign in ("campaign-1", "campaign-3"):
                hour = [
                    row
                    for place, row in windows.items()
                    if place[0] == campaign and log.at(minute - 60) <= place[2] < log.at(minute)
                ]
                spend = sum(Decimal(row["spend"]) for row in hour)
                viewable, measurable = (sum(row[name] for row in hour) for name in ("viewable", "measurable"))
                labels = f'{{campaign="{campaign}",window="1h",run="yesterday"}}'
                vcpm = prometheus.value(f"ads_vcpm{labels}", log.at(minute))
                assert vcpm == pytest.approx(float(spend * 1000 / viewable), rel=1e-9)
                rate = prometheus.value(f"ads_viewable_rate{labels}", log.at(minute))
                assert rate == pytest.approx(viewable / measurable, rel=1e-12)
        for row in json.loads(report.read_bytes())["campaigns"]:
            total = f'ads_served_impressions_total{{campaign="{row["campaign_id"]}"}}'
            assert prometheus.value(total, log.at(LENGTH_MIN)) == row["served"]


def test_the_back_test_finds_the_drop_of_viewability_and_nothing_else(log: Made) -> None:
    told = json.loads(log.replay("--alerts", "--json").stdout)
    (alert,) = told["alerts"]
    assert (alert["alert"], alert["labels"]["campaign"]) == ("CampaignViewabilityDropped", "campaign-1")
    # Of the last 15 minutes less than 0.8 of before, for 5 minutes; it keeps firing for 15 after that is over.
    assert log.at(85) < alert["since"] < log.at(110)
    assert log.at(125) < alert["until"] < log.at(150)
    assert 0.4 < alert["value"] < 0.6


def test_without_the_drop_no_alert_would_have_fired(log: Made) -> None:
    done = log.replay("--alerts", "--from", clock(log.at(0)), "--to", clock(log.at(80)))
    assert done.stdout.endswith("no alert would have fired\n")


def as_gzip(path: Path) -> None:
    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)


def as_parquet(path: Path) -> Path:
    """The same lines as rows, those that are objects: what is malformed has no columns."""
    rows = [row for row in map(parsed, path.read_bytes().splitlines()) if row]
    lines = path.with_name(f"rows-{path.name}")
    lines.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    columns = {name: [row.get(name) for row in rows] for name in sorted({name for row in rows for name in row})}
    columns["ts"] = pa.array(columns["ts"], pa.timestamp("ms"))
    pyarrow.parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return lines


def parsed(line: bytes) -> dict[str, Any] | None:
    """An event that is one; Parquet has one type a column, and times that Python knows."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    fits = isinstance(row, dict) and all(isinstance(row.get(name, ""), str) for name in ("impression_id", "price"))
    return row if fits and isinstance(row.get("ts"), int) and 0 <= row["ts"] < 1 << 42 else None


def test_json_lines_gzip_and_parquet_of_the_same_events_give_the_same_bytes(log: Made, tmp_path: Path) -> None:
    lines = {}
    for topic, path in made(tmp_path / "few", log.start, "--seed", "3", rate=20, minutes=10).items():
        lines[topic] = as_parquet(path)
        as_gzip(lines[topic])
    ways = {
        "lines": lines,
        "gzip": {topic: Path(f"{path}.gz") for topic, path in lines.items()},
        "parquet": {topic: tmp_path / "few" / f"{topic}.parquet" for topic in TOPICS},
    }
    reports = {}
    for way, files in ways.items():
        log.replay("--report", str(tmp_path / f"{way}.json"), files=files)
        reports[way] = (tmp_path / f"{way}.json").read_bytes()
    assert json.loads(reports["lines"])["events"]["renders"]["counted"] > 5_000
    assert reports["gzip"] == reports["lines"]
    assert reports["parquet"] == reports["lines"]


def test_what_is_no_parquet_is_one_clear_line(log: Made, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no, not really PAR1")
    done = run("replay", "--renders", str(broken), cache=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, f"streams: {broken}: is not Parquet, or damaged\n")


# --- when an alert fires ----------------------------------------------------------------------------------------------


def fired(answers: str, wait_s: int = 0, keep_s: int = 0) -> Iterator[tuple[float, float | None]]:
    """When an alert fires whose expression gives something at each x; a mark is ten seconds."""
    times = [10.0 * number for number in range(len(answers))]
    given = {now: 1.0 for now, mark in zip(times, answers, strict=True) if mark == "x"}
    for one in firings(Alert("A", "up", wait_s, keep_s), {}, given, times):
        yield one.since, one.until


@pytest.mark.parametrize(
    ("answers", "wait_s", "keep_s", "expected"),
    [
        ("..xxx..", 0, 0, [(20, 50)]),
        ("..xxx..", 20, 0, [(40, 50)]),
        ("..xx.xx", 20, 0, []),
        ("..xxx.x", 20, 20, [(40, None)]),
        ("xxx...x...", 0, 20, [(0, 50), (60, 90)]),
        (".......", 0, 0, []),
        ("xxxx", 60, 0, []),
    ],
)
def test_an_alert_fires_after_its_for_and_until_its_keep_firing_for(
    answers: str, wait_s: int, keep_s: int, expected: list[tuple[float, float | None]]
) -> None:
    assert [*fired(answers, wait_s, keep_s)] == expected
