"""Times the training step of one side, in a process of its own: `python -m tests.bench.model_side SETUP_JSON`.

The last line of its output is JSON. A fresh process keeps the memory of one side out of the other's.
"""

import importlib
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time

import torch
from torch import nn

from jobs.leaving import leave
from tests.bench.model_inputs import StepSetup, make_rows


def main(setup_json: str) -> None:
    """Prints the loss, the gradient's norm, the median time and the peak memory of the step."""
    setup = StepSetup(**json.loads(setup_json))
    try:
        print(json.dumps(measure(setup)))
    except torch.cuda.OutOfMemoryError as error:
        print(json.dumps({"out_of_memory": str(error)}))


def measure(setup: StepSetup) -> dict[str, object]:
    """Builds the side and runs its step."""
    side = importlib.import_module(f"tests.bench.model_{setup.side}")
    step, model = side.make_step(setup)
    before = _memory_now(setup.device)
    loss = step()
    grad_norm = _grad_norm(model)
    times_s: list[float] = []
    for _ in range(setup.num_steps):
        model.zero_grad(set_to_none=True)
        began = _clock_s(setup.device)
        step()
        times_s.append(_clock_s(setup.device) - began)
    return {
        "name": side.NAME,
        "loss": loss.item(),
        "grad_norm": grad_norm,
        "num_samples": sum(len(row) for row in make_rows(setup)),
        "step_s": statistics.median(times_s) if times_s else None,
        "peak_bytes": _memory_peak(setup.device) - before,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def _grad_norm(model: nn.Module) -> float:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def _memory_now(device: str) -> int:
    if device == "cpu":
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _memory_peak(device: str) -> int:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def _clock_s(device: str) -> float:
    """On the CPU the time that this process has computed, which other processes hardly change."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
