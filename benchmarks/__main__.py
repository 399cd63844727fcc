"""`python -m benchmarks NAME [--json]`: starts its own broker and real workers, measures, prints medians and ranges."""

import argparse
import json

from benchmarks import job, latency, recovery, scrape
from benchmarks.report import heading, machine, versions

BENCHMARKS = {"job": job, "recovery": recovery, "latency": latency, "scrape": scrape}
RUNS = 3
PARTITIONS = 4


def main() -> None:
    """Run the benchmark that was asked for."""
    options = _parser().parse_args()
    benchmark = BENCHMARKS[options.name]
    before = machine()
    result = benchmark.measure(options)
    if options.json:
        print(json.dumps({"machine": before, "versions": versions()} | benchmark.summary(result), indent=2))
    else:
        print(heading(before))
        benchmark.show(result)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, benchmark in BENCHMARKS.items():
        text = benchmark.__doc__ or ""
        one = names.add_parser(name, help=text.splitlines()[0], description=text)
        one.add_argument("--runs", type=int, default=RUNS, help=f"how often (default {RUNS})")
        one.add_argument(
            "--partitions", type=int, default=PARTITIONS, help=f"partitions of every topic (default {PARTITIONS})"
        )
        one.add_argument("--json", action="store_true", help="print JSON")
        benchmark.add_options(one)
    return parser


main()
