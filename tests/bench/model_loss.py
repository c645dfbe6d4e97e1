"""Our loss alone: cross entropy over a large vocabulary, forward and backward.

Shape legend: L labelled tokens, D channels, V vocabulary entries.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.loss import cross_entropy
from tests.bench.model_inputs import SEED, StepSetup
from tests.bench.model_ours import Step

NAME = "genlip loss"
NUM_TOKENS, WIDTH = 3_072, 64

Loss = Callable[[Tensor, Tensor, nn.Linear], Tensor]


def make_step(setup: StepSetup) -> Step:
    """Forward and backward of the LM head and its loss."""
    return step_of(setup, lambda x_LD, y_L, head: cross_entropy(x_LD, y_L, head, setup.vocab_size).sum())


def step_of(setup: StepSetup, loss_sum: Loss) -> Step:
    """Any loss on the same random hidden states."""
    torch.manual_seed(SEED)
    head = nn.Linear(WIDTH, setup.vocab_size, bias=False)
    hidden_LD = torch.randn(NUM_TOKENS, WIDTH, requires_grad=True)
    targets_L = torch.randint(setup.vocab_size, (NUM_TOKENS,))

    def step() -> Tensor:
        mean = loss_sum(hidden_LD, targets_L, head) / NUM_TOKENS
        mean.backward()
        return mean.detach()

    return step, head
