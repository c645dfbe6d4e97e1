"""The recipe as a DeepSpeed engine. The only module that imports deepspeed."""

import atexit
import os
import shutil
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from model import GenLIP
from model.baselines import Baseline
from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.deepspeed_config import deepspeed_config
from train.ema import keep_average
from train.optimizer import build_optimizer
from train.recipe import TrainSpec


@dataclass(frozen=True)
class Ranks:
    """This process's place in the group."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join_group() -> Ranks:
    """Join the process group that the launcher's environment describes; alone where there is none."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = "0" if os.environ["WORLD_SIZE"] == "1" else "29500"
    local_rank = int(os.environ["LOCAL_RANK"])
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before the import, which would warn that it found no GPU
    import deepspeed

    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # Would be compiled at start, for a minute and with a C++ compiler; only inference uses it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        # Left as it is, the group's threads may outlive the interpreter and abort the process when all is done.
        atexit.register(_leave_group)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def build_engine(model: GenLIP | Baseline, spec: TrainSpec, world_size: int) -> Any:
    """Wrap a model for training: ZeRO, precision, accumulation and clipping as the recipe says.

    The loss that goes into `engine.backward` is averaged over ranks and micro-batches; see `loop.train_step`.
    """
    import deepspeed

    model.gradient_checkpointing = spec.gradient_checkpointing != "none"
    model.recompute = "cheap" if spec.gradient_checkpointing == "selective" else "all"
    if spec.compile:
        _compile(model)
    optimizer = build_optimizer(model, spec.optim)
    if spec.ema:
        keep_average(optimizer, spec.ema.decay)
    config = deepspeed_config(spec, world_size, on_gpu=torch.cuda.is_available())
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if spec.zero.stage == 0:
        engine.clip_fp32_gradients = partial(_clip_or_discard, engine)
    return engine


def _compile(model: GenLIP | Baseline) -> None:
    """Raises UserError where there is nothing to compile, or nothing to compile it with."""
    if not isinstance(model, GenLIP):
        next_step = "--set train.compile=false; of one objective of a comparison: compare.overrides"
        raise UserError(f"train.compile is for the objective genlip, not {model.objective}", next_step=next_step)
    compiler = os.environ.get("CXX", "g++")  # as torch.compile finds it
    if not shutil.which(compiler):
        next_step = "install g++ on every node, or --set train.compile=false"
        raise UserError("train.compile", why=f"no {compiler} here", next_step=next_step, exit_code=EXIT_ENVIRONMENT)
    model.compile_blocks()


def _clip_or_discard(engine: Any) -> None:
    """Stage 0's clipping. DeepSpeed's own would make all weights NaN by a norm that is not finite.

    Such gradients are discarded, and `overflow` says so to the engine, as the optimisers of the other stages do.
    """
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    engine.optimizer.overflow = not norm.isfinite()
    if engine.optimizer.overflow:
        engine.zero_grad()
    else:
        torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), engine.gradient_clipping(), norm)
    engine._global_grad_norm = norm
