"""The recipe as a DeepSpeed engine. The only module that imports deepspeed."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from model import GenLIP
from train.recipe import OptimSpec, TrainSpec


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
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def build_engine(model: GenLIP, spec: TrainSpec, world_size: int) -> Any:
    """Wrap a model for training: ZeRO, precision, accumulation and clipping as the recipe says.

    The loss that goes into `engine.backward` is averaged over ranks and micro-batches; see `loop.loss_scale`.
    """
    import deepspeed

    on_gpu = torch.cuda.is_available()
    optimizer = build_optimizer(model, spec.optim, fused=on_gpu)
    config = {
        "train_batch_size": spec.lanes,
        "train_micro_batch_size_per_gpu": spec.micro_rows,
        "gradient_accumulation_steps": spec.lanes // (world_size * spec.micro_rows),
        "gradient_clipping": spec.optim.clip,
        "zero_optimization": {"stage": spec.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": spec.precision == "bf16"},
        "steps_per_print": 1 << 62,
    }
    if spec.precision == "bf16":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def build_optimizer(model: GenLIP, spec: OptimSpec, fused: bool) -> torch.optim.AdamW:
    """AdamW with the same decay on every parameter, as the official recipe has it."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=fused,
    )
