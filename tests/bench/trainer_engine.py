"""What DeepSpeed costs over a plain PyTorch loop, and which operations a step consists of.

`python -m tests.bench.trainer_engine SETUP_JSON`: both loops take the same batch in turn, in one process.
"""

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from jobs.leaving import leave
from model import GenLIP
from tests.bench.trainer_inputs import TrainerSetup
from train.data.loader import Loader
from train.engine import build_engine, join_group
from train.optimizer import build_optimizer
from train.setup import set_up

PARTS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "attention": ("genlip::stacked_attention", "aten::_scaled_dot_product", "aten::bmm", "aten::softmax"),
    "optimiser": ("aten::_fused_adamw_",),
    "silu and products": ("aten::silu", "aten::mul", "aten::sigmoid"),
    "norms": ("aten::native_layer_norm",),
    "copies and sums": ("aten::copy_", "aten::add", "aten::cat", "aten::index", "aten::clone"),
    "cross entropy": ("aten::_log_softmax", "aten::nll_loss"),
}
"""What an operation belongs to, by the beginning of its name."""


def main(setup_json: str) -> None:
    """Prints the median CPU time of a step of both, and the shares of the engine's by part."""
    setup = TrainerSetup(**json.loads(setup_json))
    run = set_up(Path(setup.run_dir))
    ranks = join_group()
    with closing(iter(Loader(run, Path(setup.run_dir)))) as steps:
        batch = next(steps)
        rows = next(iter(batch.micro_batches))
    scale = 1 / batch.num_labels
    engine = build_engine(GenLIP(run.config), run.job.train, ranks.world_size)
    model = GenLIP(run.config).train()
    if setup.compile:
        model.compile_blocks()
    optimizer = build_optimizer(model, run.job.train.optim)

    def engine_step() -> None:
        engine.backward(engine(rows).loss_sum * scale)
        engine.step()

    def plain_step() -> None:
        (model(rows).loss_sum * scale).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.job.train.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    times_s: dict[str, list[float]] = {"engine": [], "plain": []}
    for number in range(setup.num_steps + setup.num_warmup):
        for name, step in (("engine", engine_step), ("plain", plain_step)):
            seconds = _cpu_s(step)
            if number >= setup.num_warmup:
                times_s[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times_s.items()}
    print(json.dumps(medians | {"num_samples": len(rows.segments_M4), "parts": _parts(engine_step)}))


def _cpu_s(step: Callable[[], None]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def _parts(step: Callable[[], None]) -> dict[str, float]:
    """Shares of a step's CPU time, largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times: Counter[str] = Counter()
    for event in profile.key_averages():
        times[part_of(event.key)] += event.self_cpu_time_total
    return {name: time / times.total() for name, time in times.most_common()}


def part_of(operation: str) -> str:
    """Of `PARTS`, or `other`."""
    for part, beginnings in PARTS.items():
        if operation.startswith(beginnings):
            return part
    return "other"


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
