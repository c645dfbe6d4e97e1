"""Tiny engines trained on seeded numbers, and processes that train and save them."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.ema import keep_average
from train.engine import Ranks, join_group

ROWS = 8
"""Of a global batch; the ranks share them."""
MAX_WAIT_S = 300
CASES = [(0, "fp32"), *((stage, precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16"))]
"""ZeRO stages and precisions that go together: stage 0 has no master weights beside bf16 ones."""


@dataclass(frozen=True)
class TwoProcesses:
    """What a group of two left."""

    run_dir: Path
    """With a checkpoint of step 3 for each case, such as fp32-1."""
    results: list[Any]
    """By rank."""


class Tiny(nn.Module):
    """Sizes that two ranks do not divide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 1, bias=False)

    def forward(self, x_B3: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x_B3)))
        return out


def tiny_engine(stage: int, precision: str = "fp32", width: int = 5, average: float = 0.0) -> tuple[Any, Ranks]:
    """A fresh engine with two groups of parameters, in the process group that the environment describes."""
    ranks = join_group()
    import deepspeed

    torch.manual_seed(0)
    model = Tiny(width)
    groups = [{"params": [model.first.weight, model.second.weight]}, {"params": [model.first.bias], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1, fused=True)
    if average:
        keep_average(optimizer, average)
    config = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // ranks.world_size,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 1 << 62,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, ranks


def train(engine: Any, ranks: Ranks, first: int, last: int) -> list[float]:
    """Losses of the steps from `first` to before `last`, each on a batch of its own; the same on all ranks."""
    losses = []
    for step in range(first, last):
        x_B3 = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(step))
        mine_B3 = x_B3[ranks.rank :: ranks.world_size].to(next(engine.module.parameters()).dtype)
        loss = F.mse_loss(engine(mine_B3).float(), mine_B3.float().sum(1, keepdim=True))
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(float(total) / ranks.world_size)
    return losses


def launch(scenario: str, run_dir: Path, world_size: int = 1, wrapper: tuple[str, ...] = ()) -> list[Any]:
    """Start a function of `scenarios.py` as a launcher would, once for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    here, root = Path(__file__).parent, Path(__file__).parents[3]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(here)]), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*wrapper, sys.executable, str(here / "scenarios.py"), scenario, str(run_dir)],
            env=os.environ | group | paths | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]


def finish(processes: list[Any]) -> None:
    """Wait until all have ended well."""
    for process in processes:
        output, _ = process.communicate(timeout=MAX_WAIT_S)
        assert process.returncode == 0, output
