"""From the evaluations of many runs to means, intervals and paired differences.

Shape legend: S seeds, I images, P measurements during training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.compare.plan import Cost
from jobs.compare.reasons import why_not
from jobs.compare.results import Comparison, Curve, Difference, Missing, Row, System, Value
from jobs.compare.runs import Run
from jobs.evaluation import EVAL_FILE, IMAGES_FILE
from jobs.recipe import Recipe
from jobs.reporting.history import read_history
from jobs.runs import environment
from train.evaluation.bootstrap import difference_interval, interval
from train.evaluation.spec import TASKS
from train.jsonl import read_lines

Array = NDArray[np.float64]
DURING_FILE = "eval.jsonl"


@dataclass(frozen=True)
class Measured:
    """The evaluation of one run."""

    seed: int
    result: dict[str, Any]
    """Of eval.json."""
    keys: list[str]
    per_image: dict[str, Array]
    """[I] each."""


def aggregate(recipe: Recipe, runs: Sequence[Run], costs: Mapping[str, Cost]) -> Comparison:
    """Compare the runs that were trained and measured to the end."""
    done = [run for run in runs if run.is_done()]
    objectives = recipe.compare.objectives
    done_of: dict[str, list[Run]] = {}
    for run in sorted(done, key=lambda run: objectives.index(run.objective)):
        done_of.setdefault(run.objective, []).append(run)
    measured = {name: [_read(run) for run in found] for name, found in done_of.items()}
    keys = _common_keys(measured)
    return Comparison(
        name=recipe.name,
        objectives=objectives,
        seeds=recipe.compare.seeds,
        samples=recipe.train.length,
        num_images=len(keys),
        systems={name: _system(found, measured[name], costs[name]) for name, found in done_of.items()},
        rows=make_rows(objectives, measured, keys),
        curves={name: _curves(found) for name, found in done_of.items()},
        missing=[Missing(run.title, f"tail {run.log}") for run in runs if run not in done],
        notes={name: found[0].result["notes"] for name, found in measured.items()},
        details={name: found[0].result["details"] for name, found in measured.items()},
        recipe=recipe.model_dump(mode="json"),
        environment=environment(),
    )


def make_rows(objectives: Sequence[str], measured: Mapping[str, Sequence[Measured]], keys: list[str]) -> list[Row]:
    """A row for each metric: in the order of the tasks, and in a task those first that most objectives have.

    Args:
        objectives: Those that were asked for; the first is the reference of the differences.
        measured: By objective, of one or more seeds.
        keys: Images that all have measured.
    """
    names: dict[str, None] = {}  # in the order of their first appearance
    for found in measured.values():
        for one in found:
            names.update(dict.fromkeys(one.result["metrics"]))
    order: dict[str, int] = {task: place for place, task in enumerate(TASKS)}
    rows = [_row(name, objectives, measured, keys) for name in names]
    return sorted(rows, key=lambda row: (order.get(row.task, len(order)), -len(row.values)))


def _row(name: str, objectives: Sequence[str], measured: Mapping[str, Sequence[Measured]], keys: list[str]) -> Row:
    having = {
        objective: [one for one in measured.get(objective, ()) if _is_known(one, name)] for objective in objectives
    }
    having = {objective: found for objective, found in having.items() if found}
    about = [one.result["metrics"][name] for found in having.values() for one in found]
    chances = [metric["chance"] for metric in about if metric["chance"] is not None]
    images = {objective: _values_SI(found, name, keys) for objective, found in having.items()}
    values = {objective: _value(found, name, images[objective]) for objective, found in having.items()}
    first = objectives[0]
    return Row(
        name=name,
        unit=about[0]["unit"],
        better=about[0]["better"],
        chance=float(np.mean(chances)) if chances else None,
        values=values,
        reasons={one: why_not(one, name, one in measured) for one in objectives if one not in values},
        differences={
            other: _difference(values[first], values[other], images[first], images[other])
            for other in values
            if first in values and other != first
        },
    )


def _is_known(one: Measured, name: str) -> bool:
    metric = one.result["metrics"].get(name)
    return metric is not None and metric["value"] is not None and np.isfinite(metric["value"])


def _value(found: Sequence[Measured], name: str, values_SI: Array | None) -> Value:
    by_seed = {one.seed: float(one.result["metrics"][name]["value"]) for one in found}
    low, high = (None, None) if values_SI is None else interval(values_SI)
    seed_std = float(np.std(list(by_seed.values()), ddof=1)) if len(by_seed) > 1 else None
    return Value(float(np.mean(list(by_seed.values()))), low, high, seed_std, by_seed)


def _difference(first: Value, other: Value, first_SI: Array | None, other_SI: Array | None) -> Difference:
    mean = first.mean - other.mean
    if first_SI is None or other_SI is None:
        return Difference(mean, None, None)
    return Difference(mean, *difference_interval(first_SI, other_SI))


def _values_SI(found: Sequence[Measured], name: str, keys: list[str]) -> Array | None:
    """What the images got, in the order of `keys`; None where the metric is none of single images."""
    if not all(name in one.per_image for one in found):
        return None
    rows = []
    for one in found:
        place = {key: number for number, key in enumerate(one.keys)}
        rows.append(one.per_image[name][[place[key] for key in keys]])
    values_SI = np.array(rows)
    return values_SI if np.isfinite(values_SI).any(axis=1).all() else None


def _common_keys(measured: Mapping[str, Sequence[Measured]]) -> list[str]:
    lists = [one.keys for found in measured.values() for one in found]
    if not lists:
        return []
    common = set(lists[0]).intersection(*lists)
    return [key for key in lists[0] if key in common]


def _read(run: Run) -> Measured:
    result = json.loads((run.run_dir / EVAL_FILE).read_text(encoding="utf-8"))
    table = pq.read_table(run.run_dir / IMAGES_FILE)
    per_image = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
    return Measured(run.seed, result, table["key"].to_pylist(), per_image)


def _system(runs: Sequence[Run], measured: Sequence[Measured], cost: Cost) -> System:
    return System(
        parameters=cost.parameters,
        backbone_parameters=cost.backbone_parameters,
        flops_per_sample=cost.flops_per_sample,
        samples_seen={run.seed: run.samples_seen() for run in runs},
        train_s={run.seed: _train_s(run) for run in runs},
        eval_s={one.seed: one.result["took_s"] for one in measured},
    )


def _train_s(run: Run) -> float:
    """Of all lives of the run."""
    history = read_history(run.run_dir)
    return float(np.nansum(history["uptime_s"][history.ends_life_N()])) if len(history) else 0.0


def _curves(runs: Sequence[Run]) -> list[Curve]:
    curves = []
    for run in runs:
        if lines := read_lines(run.run_dir / DURING_FILE):
            names = [name for name in lines[0]["metrics"] if all(name in line["metrics"] for line in lines)]
            curves.append(
                Curve(
                    run.seed,
                    [line["samples"] for line in lines],
                    [line["flops"] for line in lines],
                    {name: [line["metrics"][name] for line in lines] for name in names},
                )
            )
    return curves
