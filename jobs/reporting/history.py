"""The log of a run as columns, however long it is, and what of them a chart of a few hundred pixels can show."""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.metrics import iter_metrics, read_evaluations

MAX_POINTS = 400
"""Of a curve: about one for each pixel of a chart."""
_SMOOTHED_SHARE = 0.03
"""Of a curve's points, averaged into one."""

_CLOCK_DRIFT_S = 1.0
"""A life of a run begins at one moment, but the clocks that say so may drift between two lines."""

HELDOUT_LOSS, NEIGHBOURS = "language/loss", "knn/top1"
"""What `train.evaluation.during` measures."""

Column = NDArray[np.float64]
Points = tuple[Column, Column]
"""Samples seen, and what was measured there."""
Heldout = Mapping[str, Points]
"""By metric."""


@dataclass(frozen=True)
class History:
    """N logged steps."""

    columns: dict[str, Column]
    """[N] each; parts of a metric as `passes/web`. NaN where a line does not have it."""

    def __len__(self) -> int:
        return len(self.columns["samples"]) if self.columns else 0

    def __getitem__(self, name: str) -> Column:
        """A column; of NaN where no line has it."""
        return self.columns.get(name, np.full(len(self), np.nan))

    def parts(self, name: str) -> list[str]:
        """The parts of a metric, as `web` of `passes/web`."""
        return [column.removeprefix(f"{name}/") for column in self.columns if column.startswith(f"{name}/")]

    def ends_life_N(self) -> NDArray[np.bool_]:
        """Whether a line is the last before the run was resumed, or the last of all."""
        began_s = self["unix_s"] - self["uptime_s"]
        return np.append(np.diff(began_s) > _CLOCK_DRIFT_S, True)

    def resumed_at(self) -> list[float]:
        """Samples seen where the run began again from a checkpoint."""
        return [float(x) for x in self["samples"][1:][self.ends_life_N()[:-1]]]

    def saved_at(self) -> list[float]:
        """Samples seen at the first line after each checkpoint."""
        return [float(x) for x in self["samples"][self["checkpoint_stall_s"] > 0]]


def read_history(run_dir: Path) -> History:
    """Read a run's log line by line: a step takes a hundred bytes or two, not the thousands of its dictionary."""
    columns: dict[str, array[float]] = {}
    num_lines = 0
    for line in iter_metrics(run_dir):
        for name, value in _numbers(line):
            column = columns.setdefault(name, array("d"))
            column.extend([np.nan] * (num_lines - len(column)))
            column.append(value)
        num_lines += 1
    for column in columns.values():
        column.extend([np.nan] * (num_lines - len(column)))
    return History({name: np.array(column) for name, column in columns.items()})


def read_heldout(run_dir: Path) -> Heldout:
    """What was measured on held-out images during training; empty where nothing was."""
    found: dict[str, list[tuple[float, float]]] = {}
    for evaluation in read_evaluations(run_dir):
        for name, value in evaluation.metrics.items():
            found.setdefault(name, []).append((float(evaluation.samples), value))
    return {name: (np.array(points)[:, 0], np.array(points)[:, 1]) for name, points in found.items()}


def _numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, dict) and name != "read":
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


@dataclass(frozen=True)
class Curve:
    """At most `MAX_POINTS` points: the mean of the lines that fall together, and their extremes."""

    x: Column
    mean: Column
    low: Column
    high: Column

    @property
    def is_reduced(self) -> bool:
        """Whether points stand for more than one line."""
        return bool((self.low < self.high).any())

    def smoothed(self) -> Column:
        """Moving averages around each point, over fewer points at the ends."""
        reach = round(_SMOOTHED_SHARE * len(self.mean) / 2)
        sums = np.concatenate([[0.0], np.cumsum(self.mean)])
        at = np.arange(len(self.mean))
        first, end = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(self.mean))
        return np.asarray((sums[end] - sums[first]) / (end - first))


def reduce(x_N: Column, y_N: Column) -> Curve:
    """A curve of the finite values, cut into stretches of equally many samples seen."""
    is_finite = np.isfinite(y_N)
    x_N, y_N = x_N[is_finite], y_N[is_finite]
    if len(x_N) <= MAX_POINTS:
        return Curve(x_N, y_N, y_N, y_N)
    edges = np.linspace(x_N[0], x_N[-1], MAX_POINTS + 1)[:-1]
    starts = np.unique(np.searchsorted(x_N, edges))
    counts = np.diff(starts, append=len(x_N))
    return Curve(
        x=np.add.reduceat(x_N, starts) / counts,
        mean=np.add.reduceat(y_N, starts) / counts,
        low=np.minimum.reduceat(y_N, starts),
        high=np.maximum.reduceat(y_N, starts),
    )
