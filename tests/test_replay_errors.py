"""What can go wrong with a replay: one clear line, nothing half-written, and it can be gone on with."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streams.cli import app
from streams.replay.store import Store
from tests.loaded import a_start, made, run

START = "2026-11-24T10:00"
NOWHERE = "/proc/nowhere"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    found = made(tmp_path_factory.mktemp("files"), a_start(), rate=20, minutes=10)
    return [part for topic, path in found.items() for part in (f"--{topic}", str(path))]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--from", "2026-11-24T11:00", "--to", START], "--from lies not before --to"),
        (["--from", START, "--to", START], "--from lies not before --to"),
        (["--from", "yesterday"], "no time such as 2026-11-24T10:00"),
        (["--from", "2026-11-24T10:00:30"], "no whole minute"),
        (["--topics", "renders,clikcs"], "clikcs: no input topic"),
        (["--topics", "clicks"], "without renders nothing can be counted"),
        (["--speed", "fast"], "neither max nor a speed such as 10x"),
        (["--exclude", "from=2026-11-24T10:00"], "has not the form source=S,from=TIME,to=TIME"),
        (["--set", "http_port=1"], "--set http_port=1: not NAME=VALUE with one of lateness"),
        (["--set", "lateness=long"], "a duration such as 30s"),
        (["--run", "a/b"], "--run a/b: a name has up to 64 of"),
        (["--report", "report.txt"], "a report is a .json or an .html file"),
        (["--step", "7s"], "a step is a multiple of 10s"),
        (["--rules", "no.yml", "--alerts"], "--rules no.yml: no such file"),
        (["--renders", "r.jsonl", "--publish"], "are for topics, not for files"),
        (["--renders", "-"], "cannot be standard input here"),
        (["diff", "none.json", "live"], "none.json: No such file or directory"),
        (["rebuild", "--into", "new-", "--run", "a/b"], "--run a/b: a name has up to 64 of"),
    ],
)
def test_a_usage_error_says_what_is_wrong(flags: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["replay", *flags])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "settings", "said"),
    [
        ([], {"broker": "127.0.0.1:1"}, "no answer from Kafka at 127.0.0.1:1"),
        (["--renders", "none.jsonl"], {}, "none.jsonl: No such file or directory"),
        ([], {"cache": NOWHERE}, f"{NOWHERE}/replays: cannot be made"),
    ],
)
def test_what_is_not_there_is_one_line(flags: list[str], settings: dict[str, str], said: str, tmp_path: Path) -> None:
    done = run("replay", *flags, **{"cache": str(tmp_path)} | settings)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr


def test_a_report_that_cannot_be_written_leaves_nothing_and_is_not_counted_again(
    files: list[str], tmp_path: Path
) -> None:
    done = run("replay", *files, "--report", f"{NOWHERE}/a.json", cache=str(tmp_path))
    said = f"streams: {NOWHERE}/a.json: cannot be written: No such file or directory\n"
    assert (done.returncode, done.stderr) == (1, said)
    (kept,) = (tmp_path / "replays").glob("*.sqlite")
    assert run("replay", *files, "--report", str(tmp_path / "a.json"), cache=str(tmp_path)).returncode == 0
    assert not kept.exists()


@pytest.mark.parametrize(("room", "where"), [(60_000, "sqlite"), (1_200_000, "series.om")])
def test_a_full_disk_is_one_line_and_when_there_is_room_the_run_goes_on(
    files: list[str], tmp_path: Path, room: int, where: str
) -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    out = tmp_path / "out"
    out.mkdir()
    flags = [*files, "--report", str(out / "report.json"), "--openmetrics", str(out / "series.om"), "--run", "r"]
    full = limited(flags, tmp_path, little)
    assert (full.returncode, full.stderr.count("\n")) == (1, 1), full.stderr
    assert where in full.stderr
    assert {path.name for path in out.iterdir()} <= {"report.json"}
    with_room = run("replay", *flags, cache=str(tmp_path))
    assert with_room.returncode == 0, with_room.stderr
    straight = run("replay", *files, "--report", str(tmp_path / "straight.json"), cache=str(tmp_path / "other"))
    assert straight.returncode == 0, straight.stderr
    assert (out / "report.json").read_bytes() == (tmp_path / "straight.json").read_bytes()


def limited(flags: list[str], cache: Path, limit: Callable[[], None]) -> "subprocess.CompletedProcess[str]":
    # Python would cut off what it compiles, too, and trip over that ever after.
    environment = os.environ | {"STREAMS_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", "replay", *flags], env=environment, capture_output=True, text=True,
        check=False, preexec_fn=limit,
    )  # fmt: skip


def test_one_process_at_a_time_is_at_work_on_a_run(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "replays").mkdir()
    with Store(tmp_path / "replays" / "busy.sqlite") as store:
        store.keep("begun", None)
        done = run("replay", *files, "--run", "busy", cache=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "another process is at work on this run" in done.stderr


def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(files: list[str], tmp_path: Path) -> None:
    assert run("replay", *files, "--run", "r", "--report", f"{NOWHERE}/a.json", cache=str(tmp_path)).returncode == 1
    other = ["--set", "refresh_interval=0s", "--run", "r"]
    done = run("replay", *files, *other, cache=str(tmp_path))
    assert (done.returncode, done.stderr) == (
        2, "streams: run r was begun with other parameters: take another --run, or --restart\n",
    )  # fmt: skip
    assert run("replay", *files, *other, "--restart", cache=str(tmp_path)).returncode == 0


def test_a_file_that_is_no_run_is_named(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "replays").mkdir()
    (tmp_path / "replays" / "r.sqlite").write_bytes(b"no database" * 500)
    done = run("replay", *files, "--run", "r", cache=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "r.sqlite: is no file of a run (file is not a database); delete it" in done.stderr
