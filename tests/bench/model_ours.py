"""The packed training step of genlip."""

from collections.abc import Callable

import torch
from torch import Tensor

from model import GenLIP, pack_rows
from tests.bench.model_inputs import StepSetup, make_rows

NAME = "genlip"

# Makes gradients and returns the mean loss; and the model they are in.
Step = tuple[Callable[[], Tensor], torch.nn.Module]


def make_step(setup: StepSetup) -> Step:
    """Forward and backward of packed rows; pixels arrive as uint8 and are normalised in the step."""
    model = GenLIP(setup.config).to(setup.device, getattr(torch, setup.dtype)).train()
    model.attention = setup.attention
    model.gradient_checkpointing = setup.gradient_checkpointing
    rows = pack_rows(make_rows(setup), setup.row_tokens).to(setup.device)

    def step() -> Tensor:
        loss_sum, num_labels, _ = model(rows)
        mean = loss_sum / num_labels
        mean.backward()
        return mean.detach()

    return step, model
