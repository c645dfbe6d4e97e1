"""A number that is not finite reaches neither weights nor moments, at any stage and precision; a spike neither."""

import math

import pytest
import torch
from tiny_steps import everything, make_engine, multiply_once, step

from train.faults import SpikeGuard
from train.recipe import SpikeSpec
from train.sanity import GradientCheck

STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_neither_nan_nor_a_spike_reaches_weights_or_moments(stage: int, precision: str) -> None:
    engine, ranks = make_engine(stage, precision)
    with GradientCheck(engine.module, ranks) as check:
        first = step(engine, ranks, 1)
    check.verify()
    assert first.is_applied
    before = everything(engine)

    multiply_once(engine, math.nan)
    not_a_number = step(engine, ranks, 2)
    spike = step(engine, ranks, 2, max_loss=first.loss / 2)
    assert math.isnan(not_a_number.loss)
    assert math.isfinite(spike.loss)
    assert not not_a_number.is_applied
    assert not spike.is_applied
    after = everything(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)

    # The next step is the one that would have come without them: no gradient of theirs was left behind.
    again = step(engine, ranks, 2)
    undisturbed, _ = make_engine(stage, precision)
    step(undisturbed, ranks, 1)
    assert again == step(undisturbed, ranks, 2)
    assert again.is_applied
    ours, theirs = everything(engine), everything(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_limit_is_a_multiple_of_the_running_median_and_goes_on_after_a_resume() -> None:
    spec = SpikeSpec(factor=2, window=3)
    guard = SpikeGuard(spec)
    for loss in (9.0, 5.0):
        guard.add(loss)
        assert guard.max_loss == math.inf
    guard.add(6.0)
    assert guard.max_loss == 12.0
    guard.add(1.0)
    assert guard.max_loss == 10.0
    resumed = SpikeGuard(spec, guard.recent)
    guard.add(0.5)
    resumed.add(0.5)
    assert resumed.max_loss == guard.max_loss == 2.0
    assert SpikeGuard(SpikeSpec()).recent == ()
