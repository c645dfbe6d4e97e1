"""What a checkpointed block recomputes changes the work of the backward pass, never its result."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model import EncodedSample, GenLIP, GenLIPConfig, PackedRows, pack_rows


def rows() -> PackedRows:
    numbers = np.random.default_rng(0)
    samples = [
        EncodedSample(numbers.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8), (2, 3), [1, 2], [3, 4, 5, 6])
        for _ in range(4)
    ]
    return pack_rows([samples[:2], samples[2:]], row_tokens=32)


def run(gradient_checkpointing: bool, recompute: str = "all") -> tuple[int, int, dict[str, Tensor]]:
    """FLOPs of the forward and of both passes, and the gradients, with DropPath on."""
    model = GenLIP(GenLIPConfig.preset("nano8", num_hidden_layers=2, vocab_size=64, drop_path_rate=0.5)).train()
    model.gradient_checkpointing, model.recompute = gradient_checkpointing, recompute
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        loss_sum = model(rows()).loss_sum
        forward = counter.get_total_flops()
        loss_sum.backward()
        both = counter.get_total_flops()
    return forward, both, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", ["all", "cheap"])
def test_gradients_are_those_without_checkpoints(recompute: str) -> None:
    _, _, expected = run(False)
    _, _, found = run(True, recompute)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_all_costs_a_forward_pass_of_the_blocks_and_cheap_no_product_at_all() -> None:
    _, plain, _ = run(False)
    forward, full, _ = run(True, "all")
    _, selective, _ = run(True, "cheap")
    assert plain + 0.8 * forward < full < plain + forward
    assert selective == plain
