"""Command line of the benchmarks: `python -m tests.bench` lists them, `python -m tests.bench NAME` runs one."""

import argparse
import importlib

from jobs.leaving import leave
from tests.bench.harness import BenchError, report

# Name, which is the module's too: options of its own, and what it compares.
BENCHMARKS = {
    "curate": (
        "[--part PART]",
        "annotators, near-duplicates, selection and shards, against DuckDB, webdataset, imagededup",
    ),
    "driver_scale": (
        "[--units N …]",
        "time and memory of the driver up to 8 billion rows in 800,000 units",
    ),
    "ingest": ("[--images N]", "CPU time and speed of downloading and re-encoding images, against img2dataset"),
    "model": ("[--cuda]", "training step and caption scoring, against the official GenLIP and open_clip"),
    "stream": (
        "[--peers-python PATH]",
        "CPU time from shards to training batches, resuming and planning, against four other loaders",
    ),
    "trainer": ("[--preset NAME]", "training from the store, against loops around open_clip's and the official model"),
}


def main() -> int:
    """Runs the named benchmark, or lists all."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compares genlip with its peers.")
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="without it, the benchmarks are listed")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    options, own_arguments = parser.parse_known_args()
    if options.name is None:
        if own_arguments:
            parser.error(f"name a benchmark before its options {own_arguments}: one of {', '.join(BENCHMARKS)}")
        for name, (own_options, compared) in BENCHMARKS.items():
            print(f"{name:12} {own_options:14} {compared}")
        return 0
    try:
        results = importlib.import_module(f"tests.bench.{options.name}").run(own_arguments)
    except BenchError as error:
        parser.exit(1, f"{parser.prog} {options.name}: {error}\n")
    report(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    leave(main())
