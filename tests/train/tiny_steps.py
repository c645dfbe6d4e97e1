"""Real engines of a model with one block, and steps on a batch of two small rows."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import EncodedSample, GenLIP, GenLIPConfig, PackedRows, pack_rows
from train.checkpoints.engine_state import EngineState
from train.data.loader import StepBatch
from train.data.stream import Position
from train.engine import Ranks, build_engine, join_group
from train.loop import StepResult, train_step
from train.recipe import TrainSpec

CONFIG = GenLIPConfig.preset("nano8", num_hidden_layers=1, vocab_size=64)


def one_row(number: int) -> PackedRows:
    return pack_rows([_samples(number)], row_tokens=32)


def two_rows() -> PackedRows:
    """Those of `batch` in one micro-batch."""
    return pack_rows([_samples(0), _samples(1)], row_tokens=32)


def _samples(number: int) -> list[EncodedSample]:
    numbers = np.random.default_rng(number)
    patches = numbers.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    return 2 * [EncodedSample(patches, (2, 2), [1, 2], numbers.integers(3, 60, 5).tolist())]


def batch(step: int) -> StepBatch:
    """Two micro-batches of one row, the same ones in every step."""
    rows = [one_row(0), one_row(1)]
    return StepBatch(
        step=step,
        at=Position(),
        num_samples=4,
        num_tokens=44,
        flops=1,
        num_labels=sum(one.num_labels for one in rows),
        first_lane=0,
        keys=["a", "b", "c", "d"],
        num_micro_batches=2,
        micro_batches=rows,
        sources=[[0, 0], [0, 0]],
    )


def make_engine(stage: int, precision: str) -> tuple[Any, Ranks]:
    ranks = join_group()
    model = GenLIP(CONFIG)
    model.init_weights(0)
    content = {"length": 1000, "lanes": 2, "precision": precision, "zero": {"stage": stage}}
    return build_engine(model, TrainSpec.model_validate(content), ranks.world_size), ranks


def everything(engine: Any) -> dict[str, Tensor]:
    """Weights and moments, and the number of updates."""
    state = EngineState(engine)
    found = {f"{kind}/{name}": one.clone() for name in state.shapes for kind, one in state.read(name).items()}
    return found | {"steps": torch.tensor(state.num_steps)}


def multiply_once(engine: Any, factor: float) -> Any:
    """Multiply the activations of the next forward pass, as a broken device would."""
    block = engine.module.visual.layers[0]

    def hook(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        handle.remove()
        return output * factor

    handle = block.register_forward_hook(hook)


def step(engine: Any, ranks: Ranks, number: int, **options: Any) -> StepResult:
    return train_step(engine, batch(number), 1e-3, ranks, seed=number, **options)
