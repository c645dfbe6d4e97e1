"""The plain loss that ours replaces: the logits of all tokens exist at once."""

import torch.nn.functional as F

from tests.bench.model_inputs import StepSetup
from tests.bench.model_loss import step_of
from tests.bench.model_ours import Step

NAME = "all logits at once"


def make_step(setup: StepSetup) -> Step:
    """Forward and backward of the LM head and torch's cross entropy."""
    return step_of(setup, lambda x_LD, y_L, head: F.cross_entropy(head(x_LD), y_L, reduction="sum"))
