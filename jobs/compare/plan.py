"""What a comparison comes to, before it starts: parameters and FLOPs of each objective, and how long it may take."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from jobs.compare.pace import Pace
from jobs.compare.runs import Run
from jobs.compare.summary import seeds
from jobs.compare.work import num_cores
from jobs.console import duration, say, table
from jobs.recipe import Recipe
from train.network import Network
from train.plan import measure
from train.setup import set_up

_BACKBONE = ("vision_embeddings.", "visual.", "ln_post.")
_PRODUCT_WIDTH = 1_024
_PRODUCTS = 8


@dataclass(frozen=True)
class Cost:
    """Of an objective."""

    parameters: int
    backbone_parameters: int
    flops_per_sample: float
    """Forward + backward, mean over the plan."""


def costs(runs: Sequence[Run]) -> dict[str, Cost]:
    """Of each objective, by the data of its first run."""
    found: dict[str, Cost] = {}
    for run in runs:
        if run.objective not in found:
            setup = set_up(run.run_dir)
            found[run.objective] = Cost(
                setup.network.num_parameters, _backbone_parameters(setup.network), measure(setup.stream).flops
            )
    return found


def _backbone_parameters(network: Network) -> int:
    return sum(
        parameter.numel() for name, parameter in network.skeleton().named_parameters() if name.startswith(_BACKBONE)
    )


def say_plan(recipe: Recipe, runs: Sequence[Run], costs: Mapping[str, Cost], parallel: int, pace: Pace) -> None:
    """The table of objectives, the sum, and the time."""
    length, num_seeds = recipe.train.length, len(recipe.compare.seeds)
    rows = [["objective", "parameters", "backbone", "GFLOP a sample", "× samples", "× seeds", "= FLOP"]]
    for name, cost in costs.items():
        total = cost.flops_per_sample * length * num_seeds
        sizes = f"{cost.parameters:,}", f"{cost.backbone_parameters:,}"
        numbers = *sizes, f"{cost.flops_per_sample / 1e9:.3f}", f"{length:,}", str(num_seeds)
        rows.append([name, *numbers, f"{total:.3g}"])
    say(table(rows))
    trained = sum(run.is_trained() for run in runs)
    evaluated = sum(run.is_done() for run in runs)
    say(
        f"{len(runs)} runs = {len(costs)} objectives × {seeds(num_seeds)}; {trained} are trained, {evaluated} of them"
        f" measured; {parallel} at a time, of {num_cores()} cores"
    )
    say(f"training takes about {duration(pace.left_s(runs, parallel))}; measuring comes on top")


def speed_here(recipe: Recipe) -> float:
    """FLOP/s that one process may reach: those of a matrix product, timed now, × `train.devices.mfu`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    x_NN = torch.randn(_PRODUCT_WIDTH, _PRODUCT_WIDTH, device=device, dtype=dtype)
    float((x_NN @ x_NN)[0, 0])  # warms up
    began = time.perf_counter()
    for _ in range(_PRODUCTS):
        y_NN = x_NN @ x_NN
    float(y_NN[0, 0])  # waits for the device
    took_s = time.perf_counter() - began
    return 2 * _PRODUCT_WIDTH**3 * _PRODUCTS / took_s * recipe.train.devices.mfu
