"""A copy of the engine's numbers in host memory, each parameter on the rank that will write it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.checkpoints.engine_state import WEIGHT, EngineState
from train.ema import EMA
from train.engine import Ranks

MODEL_FOLDERS = {WEIGHT: "model", EMA: "model-ema"}
"""Where the models are exported that are made of one kind of tensor."""


@dataclass(frozen=True)
class Staged:
    """What one rank writes."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Of the parameters that this rank writes: by name, then by kind; fp32."""
    models: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """On the first rank, what is exported: all weights in the precision of the forward pass, by folder."""


def stage(engine: EngineState, ranks: Ranks, with_models: bool) -> Staged:
    """Copy everything that a checkpoint needs to host memory. Called by all ranks together."""
    folders = {kind: folder for kind, folder in MODEL_FOLDERS.items() if kind in engine.kinds} if with_models else {}
    staged = Staged(models={folder: {} for folder in folders.values()} if ranks.is_first else {})
    writers = assign({name: parameter_numel(shape) for name, shape in engine.shapes.items()}, ranks.world_size)
    for name, parameter in engine.parameters.items():
        whole = engine.read(name)
        if writers[name] == ranks.rank:
            staged.tensors[name] = {kind: _to_host(tensor) for kind, tensor in whole.items()}
        if ranks.is_first:
            for kind, folder in folders.items():
                staged.models[folder][name] = _to_host(whole[kind].to(parameter.dtype))
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    return staged


def assign(sizes: Mapping[str, int], num_ranks: int) -> dict[str, int]:
    """A rank for each name, so that the sizes add up to about the same on all: the largest first, to the emptiest."""
    loads, ranks = [0] * num_ranks, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        ranks[name] = loads.index(min(loads))
        loads[ranks[name]] += sizes[name]
    return ranks


def parameter_numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _to_host(tensor: Tensor) -> Tensor:
    """A copy that later steps do not change; complete after a synchronisation."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)
