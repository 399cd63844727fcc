"""Nowhere to write: a full disk, a folder that cannot be written to, a reader that has gone. One clear line each."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.logs import render
from tests.test_report import written
from tests.worker import listening, wait_until

FULL = "/dev/full"
READ_ONLY = "/proc/nowhere"
"""Nobody can make a folder there, root neither."""


def streams(*arguments: str, limit: Callable[[], None] | None = None, **files: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments], stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        preexec_fn=limit, **files,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["schema"], ["schema", "--asyncapi"], ["report", "--json"], ["report"], ["-h"]])
def test_output_onto_a_full_disk_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    file = ["--renders", str(written(tmp_path, renders=[render()])["renders"])] if "report" in arguments else []
    with open(FULL, "w") as full:
        done = streams(*arguments, *file, stdout=full)
    assert (done.returncode, done.stderr) == (1, "streams: the output cannot be written: No space left on device\n")


def test_a_reader_that_has_gone_is_no_news(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = streams("schema", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_generated_files_that_find_no_room_or_no_folder_are_one_line(tmp_path: Path) -> None:
    for topic in ("renders", "viewability", "clicks"):
        (tmp_path / f"{topic}.jsonl").symlink_to(FULL)
    for folder, why in ((str(tmp_path), "No space left on device"), (READ_ONLY, "No such file or directory")):
        done = streams("generate", "--max", "--events", "5000", "--out", folder, stdout=subprocess.PIPE)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"streams: {folder}: {why}")
        assert "Traceback" not in done.stderr


def test_a_truth_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    truth = f"{READ_ONLY}/truth.json"
    done = streams("generate", "--max", "--events", "50", "--dry-run", "--truth", truth, stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"streams: {truth}: No such file or directory"


def test_a_broker_without_room_or_folder_says_so(tmp_path: Path) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    full = streams("broker", "--dir", str(tmp_path), "--port", "0", limit=little_room, stdout=subprocess.PIPE)
    assert full.returncode == 1
    assert full.stderr.startswith("streams: Kafka ended while it started; the end of ")
    assert "File too large" in full.stderr and "Traceback" not in full.stderr
    nowhere = streams("broker", "--dir", READ_ONLY, "--port", "0", stdout=subprocess.PIPE)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (1, 1)
    assert f"{READ_ONLY} cannot hold a broker" in nowhere.stderr
    cache = {"STREAMS_CACHE": READ_ONLY}
    none = streams("broker", "--dir", str(tmp_path / "b"), stdout=subprocess.PIPE, env=os.environ | cache)
    assert (none.returncode, none.stderr.count("\n")) == (1, 1)
    assert f"cannot be downloaded into {READ_ONLY}" in none.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_worker_whose_log_finds_no_room_goes_on(unbuffered: str) -> None:
    with open(FULL, "w") as full:
        worker = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "worker", "--broker", "127.0.0.1:1", "--http-port", "0"],
            stdout=full, stderr=full, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    try:
        wait_until(lambda: bool(listening(worker.pid)), "it serves")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["schema"], 1),
        (["report", "--renders", "/nowhere"], 1),
        (["report"], 2),
        (["dlq", "ls", "--broker", "127.0.0.1:1"], 1),
        (["worker", "--broker", "127.0.0.1:1", "--http-host", "192.0.2.1"], 1),
        (["worker", "--http-port", "-1"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_told_at_all_still_has_its_exit_code(arguments: list[str], code: int, unbuffered: str) -> None:
    with open(FULL, "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "streams.cli", *arguments], stdout=full, stderr=full, check=False, timeout=60,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == code
