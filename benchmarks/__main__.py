"""`python -m benchmarks job|recovery [--json]`: starts its own broker, measures, prints medians and ranges."""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

from benchmarks import job, recovery
from streams.kafka.broker import EmbeddedBroker


def main() -> None:
    """Run the benchmark that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=["job", "recovery"])
    parser.add_argument("--runs", type=int, default=3, help="how often (default 3)")
    parser.add_argument(
        "--renders", type=int, help="impressions in the load (default 1,000,000; of a recovery 10,000,000)"
    )
    parser.add_argument("--partitions", type=int, default=4, help="partitions of every topic (default 4)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    {"job": _job, "recovery": _recovery}[options.name](options)


def _job(options: argparse.Namespace) -> None:
    renders = options.renders or 1_000_000
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        pairs = [job.run(broker, f"run{n}-", renders, options.partitions) for n in range(options.runs)]
    workers, floors = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ratios = [worker.events_per_s / floor.events_per_s for worker, floor in pairs]
    if options.json:
        print(json.dumps(_summary(workers, floors, ratios), indent=2))
    else:
        _show(workers, floors, ratios)


def _recovery(options: argparse.Namespace) -> None:
    renders = options.renders or 10_000_000
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(0, Path(folder)) as broker:
        runs = [recovery.run(broker, f"run{n}-", renders, options.partitions) for n in range(options.runs)]
    if options.json:
        print(json.dumps({"machine": _machine(), "runs": [run._asdict() for run in runs]}, indent=2))
        return
    print(_machine())
    for run in runs:
        print(
            f"{run.impressions:,} impressions recovered in {run.seconds:.2f} s, {run.cpu_s:.2f} CPU-s;"
            f" {run.per_s:,.0f}/s;"
            f" {run.bytes_each:.1f} bytes each resident, {run.reported_each:.1f} by the worker's own account;"
            f" stock Faust {run.stock_per_s:,.0f} keys/s, {run.per_s / run.stock_per_s:.0f} times slower;"
            f" {'exact' if run.exact else 'NOT EXACT'}"
        )


def _summary(workers: list[job.Run], floors: list[job.Run], ratios: list[float]) -> dict[str, object]:
    return {
        "machine": _machine(),
        "runs": len(workers),
        "events_per_s": _median([run.events_per_s for run in workers]),
        "cpu_s_per_million": _median([run.cpu_s_per_million for run in workers]),
        "broker_cpu_s_per_million": _median([run.broker_cpu_s_per_million for run in workers]),
        "peak_mib": max(run.peak_mib for run in workers),
        "floor_events_per_s": _median([run.events_per_s for run in floors]),
        "ratio_to_floor": _median(ratios),
        "exact": all(run.exact for run in workers + floors),
    }


def _show(workers: list[job.Run], floors: list[job.Run], ratios: list[float]) -> None:
    print(_machine())
    for name, runs in (("worker", workers), ("floor", floors)):
        rates, cpu = [run.events_per_s for run in runs], [run.cpu_s_per_million for run in runs]
        print(
            f"{name:7} {_median(rates):>9,.0f} events/s ({min(rates):,.0f} to {max(rates):,.0f}),"
            f" {_median(cpu):.2f} CPU-s a million ({min(cpu):.2f} to {max(cpu):.2f}),"
            f" peak {max(run.peak_mib for run in runs)} MiB"
        )
    print(f"broker  {_median([run.broker_cpu_s_per_million for run in workers]):.2f} CPU-s a million beside the worker")
    print(f"ratio to floor {_median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {len(workers)} runs")
    exact = all(run.exact for run in workers + floors)
    print("exact: every campaign's served, measurable and viewable equal the truth" if exact else "NOT EXACT")


def _machine() -> str:
    load = os.getloadavg()[0]
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}, load before {load:.2f}"


def _median(values: list[float]) -> float:
    return statistics.median(values)


main()
