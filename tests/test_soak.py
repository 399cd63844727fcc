"""A worker under steady load: what it holds does not grow, and its counts are exact. Hours of it: benchmarks soak."""

import json
import os
import subprocess
import sys

RATE = 1_000
FOR = os.environ.get("STREAMS_TEST_SOAK", "90s")


def test_memory_and_descriptors_are_flat_and_counts_exact_under_steady_load() -> None:
    command = [sys.executable, "-m", "benchmarks", "soak", "--for", FOR, "--rate", str(RATE), "--json"]
    soak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert soak["exact"]
    assert soak["undelivered"] == 0
    assert soak["new_descriptors"] <= 0
    assert soak["growth_mib"] < 16
    came = RATE / 2 * soak["seconds"]
    assert soak["samples"][-1]["impressions"] < 0.9 * came, "what lies more than some 70 s back is forgotten"
