"""`python -m benchmarks NAME [--json]`: starts its own broker and real workers, measures, prints medians and ranges."""

import argparse
import json
import signal
import sys

from benchmarks import catchup, flood, ingest, job, latency, memory, recovery, replay, scale, scrape, soak
from benchmarks.report import heading, machine, versions

BENCHMARKS = {
    "job": job,
    "latency": latency,
    "scrape": scrape,
    "memory": memory,
    "scale": scale,
    "catchup": catchup,
    "recovery": recovery,
    "ingest": ingest,
    "replay": replay,
    "soak": soak,
    "flood": flood,
}
"""Each says which options it adds, measures, and shows what it measured: a line of text or JSON."""


def main() -> None:
    """Run the benchmark that was asked for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes that were started end, too
    options = _parser().parse_args()
    benchmark = BENCHMARKS[options.name]
    before = machine()
    try:
        result = benchmark.measure(options)
    except RuntimeError as error:  # what benchmarks raise when they cannot measure
        sys.exit(f"benchmarks: {error}")
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
        one.add_argument("--runs", type=int, default=3, help="how often (default %(default)s)")
        one.add_argument("--partitions", type=int, default=4, help="partitions of every topic (default %(default)s)")
        one.add_argument("--json", action="store_true", help="print JSON")
        benchmark.add_options(one)
    return parser


main()
