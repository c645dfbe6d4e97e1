"""The learning rate against the official formula, step for step."""

import math

from hypothesis import given
from hypothesis import strategies as st

from train.recipe import OptimSpec
from train.schedule import learning_rate


@given(st.integers(1, 5000), st.floats(0.001, 0.5), st.data())
def test_equals_the_official_formula_where_every_step_has_the_same_samples(
    num_steps: int, warmup_share: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, num_steps - 1))
    num_warmup, batch = int(num_steps * warmup_share), 32
    spec = OptimSpec(lr=1e-3, min_lr=1e-6, warmup=num_warmup * batch)
    if step < num_warmup:
        expected = 1e-3 * step / num_warmup
    else:
        progress = (step - num_warmup) / (num_steps - num_warmup)
        expected = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * progress)) / 2
    assert math.isclose(learning_rate(step * batch, num_steps * batch, spec), expected, rel_tol=1e-9)


def test_begins_at_zero_peaks_after_the_warm_up_and_never_goes_below_the_floor() -> None:
    spec = OptimSpec(lr=1e-3, min_lr=1e-5, warmup=100)
    assert learning_rate(0, 1000, spec) == 0
    assert learning_rate(100, 1000, spec) == 1e-3
    assert math.isclose(learning_rate(5000, 1000, spec), 1e-5)
