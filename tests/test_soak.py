"""Benchmarks soak and flood, shortened: what a worker holds does not grow, and its counts are exact.

Under steady load, and in a flood of campaign ids. And what a benchmark says that cannot measure.
"""

import json
import os
import re
import subprocess
import sys
from typing import Any

RATE = 1_000
FOR = os.environ.get("STREAMS_TEST_SOAK", "90s")
IDS, WAVES = 11_000, 8


def told_by(*benchmark: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", *benchmark, "--json"]
    told: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return told


def test_memory_and_descriptors_are_flat_and_counts_exact_under_steady_load() -> None:
    soak = told_by("soak", "--for", FOR, "--rate", str(RATE))
    assert soak["exact"]
    assert soak["undelivered"] == 0
    assert soak["new_descriptors"] <= 0
    assert soak["growth_mib"] < 16
    came = RATE / 2 * soak["seconds"]
    assert soak["samples"][-1]["impressions"] < 0.9 * came, "what lies more than some 70 s back is forgotten"


def test_campaign_ids_drawn_at_random_are_counted_exactly_and_forgotten_after_their_time() -> None:
    waves = told_by("flood", "--ids", str(IDS), "--waves", str(WAVES))["waves"]
    assert [wave["exact"] for wave in waves] == [True] * WAVES
    assert waves[-1]["held"] < IDS * WAVES, "those of the first waves are gone"


def test_a_benchmark_that_cannot_measure_says_why_in_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "scale", "--only", "events", "--events", "1000", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"benchmarks: no steady rate: 1,000 events .* more events\n", done.stderr), done.stderr
