"""The moving average of the weights, at every ZeRO stage and over a checkpoint."""

from pathlib import Path

import pytest
import torch
from tiny_engines import tiny_engine, train
from torch import Tensor

from train.checkpoints import Checkpoints, TrainState
from train.checkpoints.engine_state import WEIGHT, EngineState
from train.ema import EMA
from train.engine import Ranks
from train.recipe import CheckpointSpec

DECAY = 0.3
"""Reached in the fourth step: (1 + 4) / (10 + 4) is more."""


def read(engine: object, kind: str) -> dict[str, Tensor]:
    state = EngineState(engine)
    return {name: state.read(name)[kind].clone() for name in state.parameters}


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_the_average_follows_its_formula(ranks: Ranks, stage: int, precision: str) -> None:
    engine, _ = tiny_engine(stage, precision, average=DECAY)
    train(engine, ranks, 0, 1)
    expected = read(engine, WEIGHT)
    for step in range(2, 7):
        train(engine, ranks, step - 1, step)
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, weight in read(engine, WEIGHT).items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
    for name, average in read(engine, EMA).items():
        torch.testing.assert_close(average, expected[name])


def test_the_average_goes_on_after_a_resume_at_another_stage(ranks: Ranks, tmp_path: Path) -> None:
    engine, _ = tiny_engine(1, average=DECAY)
    train(engine, ranks, 0, 3)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks)
    checkpoints.save(engine, TrainState(step=3))
    checkpoints.wait()
    train(engine, ranks, 3, 6)
    resumed, _ = tiny_engine(3, average=DECAY)
    Checkpoints(tmp_path, CheckpointSpec(), ranks).restore(resumed)
    train(resumed, ranks, 3, 6)
    straight = read(engine, EMA)
    for name, average in read(resumed, EMA).items():
        torch.testing.assert_close(average, straight[name])


def test_a_step_that_is_refused_does_not_move_the_average(ranks: Ranks) -> None:
    engine, _ = tiny_engine(1, average=DECAY)
    train(engine, ranks, 0, 3)
    before = read(engine, EMA)
    engine.backward(engine(torch.full((8, 3), torch.nan)).sum())
    engine.step()
    for name, average in read(engine, EMA).items():
        assert torch.equal(average, before[name])
