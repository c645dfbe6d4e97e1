"""Curation, part by part: annotators, near-duplicates, selection, shards. Options go to the part that is named."""

import argparse
import importlib
from collections.abc import Sequence

from tests.bench.harness import Result

PARTS = ("annotate", "dedup", "select", "materialise")


def run(arguments: Sequence[str]) -> list[Result]:
    """Runs all parts with their defaults, or one of them with options of its own (`--part dedup --rows 1000000`)."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench curate")
    parser.add_argument("--part", choices=PARTS)
    options, of_part = parser.parse_known_args(list(arguments))
    if of_part and not options.part:
        parser.error(f"name the --part that {' '.join(of_part)} is for: one of {', '.join(PARTS)}")
    results = []
    for part in [options.part] if options.part else PARTS:
        results += importlib.import_module(f"tests.bench.curate_{part}").run(of_part)
    return results
