"""A global batch has one loss and one gradient, however it is dealt to processes and micro-batches.

Tolerance: the same fp32 numbers are added in another order, so losses agree to 1e-6 relative and each tensor of
gradients to 1e-5 of its norm (of 1e-3 of the largest norm, for tensors whose gradients cancel). A loss that is averaged
in the wrong place is off by parts of a whole.
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from step_workers import Captions, Measured, Setting, Workers, make_model, make_rows, micro_batch, workers
from torch import Tensor

NUM_LANES = 4
# Rows without samples and samples without a caption occur, but never a batch without any label.
CAPTIONS = st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=NUM_LANES, max_size=NUM_LANES).filter(
    lambda captions: sum(sum(row) for row in captions) > 0
)
DIVIDED = {
    1: [Setting(0, 1), Setting(1, 2), Setting(2, 4)],
    2: [Setting(0, 2), Setting(1, 1), Setting(2, 2), Setting(3, 1)],
    4: [Setting(1, 1), Setting(2, 1)],
}


@pytest.fixture(scope="module", params=[1, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 4))])
def group(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with workers(request.param, DIVIDED[request.param]) as group:
        yield group


def plain(captions: Captions) -> Measured:
    """What PyTorch alone makes of the batch: all rows at once, the mean over the labels."""
    model = make_model(drops=False)
    output = model(micro_batch(make_rows(captions)))
    loss = output.loss_sum / output.num_labels
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    return Measured(float(loss.detach()), float(norm), gradients)


def check_equal(ours: Measured, theirs: Measured) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    floor = 1e-3 * max(float(one.norm()) for one in theirs.gradients.values())
    for name, gradient in theirs.gradients.items():
        allowed = 1e-5 * max(float(gradient.norm()), floor)
        assert float(distance(ours.gradients[name], gradient)) <= allowed, name


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.view_as(b) - b).norm()


# A smaller batch would say no more, and a group takes long to look for one.
@settings(max_examples=5, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(CAPTIONS)
def test_loss_and_gradients_are_those_of_the_whole_batch(group: Workers, captions: Captions) -> None:
    expected = plain(captions)
    for measured in group.step(captions):
        check_equal(measured, expected)


@pytest.mark.slow
def test_drop_path_is_the_same_on_any_number_of_processes() -> None:
    captions = [[3, 5], [7], [2, 2, 2], [6]]
    found = []
    for world_size in (1, 2, 4):
        with workers(world_size, [Setting(1, 1, drops=True)]) as group:
            found += group.step(captions)
    for one in found[1:]:
        check_equal(one, found[0])
    assert found[0].loss != pytest.approx(plain(captions).loss, rel=1e-6)
