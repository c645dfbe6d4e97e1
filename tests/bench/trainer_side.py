"""Trains with one side in a process of its own: `python -m tests.bench.trainer_side SETUP_JSON`.

The last line of its output is JSON. Time is the CPU time of the process with all its threads, reading and decoding
included; no side has other processes.
"""

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

import torch

from jobs.leaving import leave
from tests.bench.trainer_inputs import TrainerSetup


@dataclass(frozen=True)
class Mark:
    """The clocks after a step."""

    num_samples: int
    """So far."""
    cpu_s: float
    wall_s: float
    shares: Mapping[str, float]
    """Of the step's wall time, by part."""


def main(setup_json: str) -> None:
    """Prints samples per second of CPU time and where the time went."""
    setup = TrainerSetup(**json.loads(setup_json))
    side = importlib.import_module(f"tests.bench.trainer_{setup.side}")
    marks = side.run(setup)
    print(json.dumps(summary(marks[setup.num_warmup - 1 :]) | {"name": side.NAME, "versions": _versions()}))


def summary(marks: list[Mark]) -> dict[str, object]:
    """Of all steps but the first, the last that warms up."""
    first, last = marks[0], marks[-1]
    wall_s = [after.wall_s - before.wall_s for before, after in pairwise(marks)]
    names = last.shares.keys()
    weighted = [
        {name: mark.shares[name] * step_s for name in names} for mark, step_s in zip(marks[1:], wall_s, strict=True)
    ]
    return {
        "samples_per_cpu_s": (last.num_samples - first.num_samples) / (last.cpu_s - first.cpu_s),
        "samples_per_s": (last.num_samples - first.num_samples) / (last.wall_s - first.wall_s),
        "samples_per_step": (last.num_samples - first.num_samples) / len(wall_s),
        "shares": {name: mean(one[name] for one in weighted) / mean(wall_s) for name in names},
    }


def _versions() -> dict[str, object]:
    return {"torch": importlib.metadata.version("torch"), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
