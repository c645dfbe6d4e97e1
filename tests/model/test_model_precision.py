"""bfloat16 against float32: the whole model, rotary angles, softmax statistics."""

import numpy as np
import pytest
import torch

from model import EncodedSample, GenLIP, GenLIPConfig, PackedRows, pack_rows
from model.attention import plan_attention, prefix_attention
from model.rope import apply_rope, rope_cos_sin


def half_precision_rows() -> PackedRows:
    rng = np.random.default_rng(0)
    samples = [
        EncodedSample(rng.integers(0, 256, (n * n, 3, 8, 8), dtype=np.uint8), (n, n), (1,), (2, 3, 5))
        for n in (2, 3, 2)
    ]
    return pack_rows([samples[:2], samples[2:]], 30)


def loss_and_gradients(model: GenLIP) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    out = model.train()(half_precision_rows())
    out.loss_sum.backward()
    return out.loss_sum, {name: p.grad.float() for name, p in model.named_parameters()}


@pytest.mark.parametrize("how", ["parameters", "autocast"])
def test_bfloat16_is_near_float32_in_forward_and_backward(how: str) -> None:
    config = GenLIPConfig.preset("nano8", vocab_size=32, num_hidden_layers=2, drop_path_rate=0.0)
    exact_loss, exact = loss_and_gradients(GenLIP(config))
    model = GenLIP(config)
    if how == "parameters":
        rough_loss, rough = loss_and_gradients(model.bfloat16())
    else:
        with torch.autocast("cpu", torch.bfloat16):
            rough_loss, rough = loss_and_gradients(model)
    assert rough_loss.dtype == torch.float32
    assert rough_loss.item() == pytest.approx(exact_loss.item(), rel=0.01)
    for name, gradient in rough.items():
        assert gradient.isfinite().all(), name
        # The key bias shifts all scores of a query alike: its gradient is 0 but for rounding.
        if not name.endswith("k_proj.bias"):
            assert (gradient - exact[name]).norm() <= 0.05 * exact[name].norm(), name


def test_rotary_angles_are_exact_at_far_positions_in_bfloat16() -> None:
    """Angles in bfloat16 would be off by whole radians; rounding their cosine costs 2^-9."""
    config = GenLIPConfig.preset("nano8", vocab_size=32)
    positions = torch.tensor([0, 1, 257, 1001, 4095]).expand(1, 3, -1)
    exact = rope_cos_sin(positions.double(), config, torch.float64)
    rounded = rope_cos_sin(positions, config, torch.bfloat16)
    for ours, expected in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - expected).abs().max() <= 2**-9 + 4095 * 2**-22


def test_heads_are_rotated_in_their_own_precision() -> None:
    """Under autocast heads are narrower than cos and sin; queries and keys must stay like values."""
    cos, sin = rope_cos_sin(
        torch.arange(3).expand(1, 3, -1), GenLIPConfig.preset("nano8", vocab_size=32), torch.float32
    )
    heads = torch.randn(1, 3, 2, cos.shape[-1]).bfloat16()
    assert apply_rope(heads, cos, sin).dtype == torch.bfloat16


def test_softmax_statistics_are_not_rounded_to_bfloat16() -> None:
    """2,000 nearly equal weights: bfloat16 could not count them. Values and gradients err like one rounding."""
    segments, num_tokens = torch.tensor([[0, 0, 1990, 2000]]), 2000
    generator = torch.Generator().manual_seed(0)
    plan = plan_attention(segments, 1, num_tokens, torch.device("cpu"))
    q, k = (0.05 * torch.randn(num_tokens, 2, 64, generator=generator) for _ in range(2))
    v = torch.rand(num_tokens, 2, 64, generator=generator)
    rough = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in rough]
    grad = torch.rand(num_tokens, 2, 64, generator=generator).bfloat16()
    outputs = [prefix_attention(*inputs, plan) for inputs in (rough, exact)]
    assert ((outputs[0].double() - outputs[1]).abs() <= 2**-7 * outputs[1].abs()).all()
    gradients = torch.autograd.grad(outputs[0], rough, grad), torch.autograd.grad(outputs[1], exact, grad.double())
    for ours, expected in zip(*gradients, strict=True):
        assert (ours.double() - expected).norm() <= 2**-7 * expected.norm()
