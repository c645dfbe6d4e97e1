"""Runs ours and a peer in turn and reports the medians, so that the noise of a shared machine hits both alike."""

import importlib.metadata
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from jobs.console import table

NUM_ROUNDS = 3

Measure = Callable[[], Mapping[str, float]]
"""One run; returns a value for each metric by its name."""


class BenchError(RuntimeError):
    """A run whose numbers would compare nothing; the message says what to do."""


@dataclass(frozen=True)
class Metric:
    """What is measured, and which direction is good."""

    name: str
    unit: str
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Peer:
    """What ours is compared with; `measure` is None where it is not installed."""

    name: str
    """With its version, or `NAME not installed`."""
    measure: Measure | None


@dataclass(frozen=True)
class Result:
    """One metric: the medians of both sides. Its fields are the keys of a JSON line."""

    bench: str
    metric: str
    value: float
    unit: str
    peer: str
    peer_value: float | None
    ratio: float | None
    """Above 1 where ours is better; None without a peer, or where it would divide by zero."""


def find_peer(distribution: str, measure: Measure) -> Peer:
    """The peer by the name that pip knows it by, if it is installed."""
    try:
        return Peer(f"{distribution} {importlib.metadata.version(distribution)}", measure)
    except importlib.metadata.PackageNotFoundError:
        return Peer(f"{distribution} not installed", None)


def rounds(
    bench: str, metrics: Sequence[Metric], ours: Measure, peer: Peer, num_rounds: int = NUM_ROUNDS
) -> list[Result]:
    """Measures ours, the peer, ours, the peer and so on; writes every round to stderr.

    Args:
        bench: name of the benchmark.
        metrics: what both sides measure; one result is made of each.
        ours: one run of ours.
        peer: the other side.
        num_rounds: runs of each side.
    """
    our_runs: list[Mapping[str, float]] = []
    peer_runs: list[Mapping[str, float]] = []
    for number in range(1, num_rounds + 1):
        our_runs.append(ours())
        _show_run(bench, number, "ours", our_runs[-1])
        if peer.measure:
            peer_runs.append(peer.measure())
            _show_run(bench, number, peer.name, peer_runs[-1])
    return [_result(bench, metric, our_runs, peer_runs, peer.name) for metric in metrics]


def report(results: Sequence[Result], as_json: bool) -> None:
    """Prints one line per result: JSON, or an aligned table of the same numbers."""
    if as_json:
        for result in results:
            print(json.dumps(asdict(result), allow_nan=False))
        return
    header = ["bench", "metric", "value", "unit", "peer", "peer_value", "ratio"]
    print(table([header, *([_cell(value) for value in asdict(result).values()] for result in results)]))


def _show_run(bench: str, number: int, side: str, values: Mapping[str, float]) -> None:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    print(f"{bench} round {number}, {side}: {shown}", file=sys.stderr, flush=True)


def _result(
    bench: str,
    metric: Metric,
    our_runs: Sequence[Mapping[str, float]],
    peer_runs: Sequence[Mapping[str, float]],
    peer_name: str,
) -> Result:
    value = statistics.median(run[metric.name] for run in our_runs)
    peer_value = statistics.median(run[metric.name] for run in peer_runs) if peer_runs else None
    ratio = None
    if peer_value is not None:
        better, worse = (value, peer_value) if metric.better == "higher" else (peer_value, value)
        ratio = better / worse if worse else None
    return Result(bench, metric.name, value, metric.unit, peer_name, peer_value, ratio)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"
