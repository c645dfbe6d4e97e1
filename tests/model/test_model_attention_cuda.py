"""The fused attention back ends on a CUDA device: against `sdpa`, and compiled in training."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model import EncodedSample, GenLIP, GenLIPConfig, pack_rows
from model.attention import Backend, choose_backend, plan_attention, prefix_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("backend", ["varlen", "flex"])
@pytest.mark.parametrize("head_dim", [64, 72, 96])
def test_fused_backends_agree_with_sdpa_on_the_device(backend: Backend, head_dim: int) -> None:
    device = torch.device("cuda")
    assert choose_backend("auto", device, torch.bfloat16, head_dim) == "varlen"
    # Samples of image and text, image alone, text alone; a text of one token; a row with padding and an empty row.
    segments = torch.tensor([[0, 0, 196, 270], [0, 270, 64, 64], [0, 334, 0, 30], [1, 0, 49, 50], [1, 50, 130, 300]])
    num_rows, row_tokens = 3, 400
    generator = torch.Generator(device).manual_seed(0)
    shape = (num_rows * row_tokens, 4, head_dim)
    inputs = [torch.randn(shape, generator=generator, device=device).bfloat16().requires_grad_() for _ in range(3)]
    grad = torch.randn(shape, generator=generator, device=device).bfloat16()

    def run(name: Backend, *tensors: Tensor) -> list[Tensor]:
        out = prefix_attention(*tensors, plan_attention(segments, num_rows, row_tokens, device, name))
        return [out, *torch.autograd.grad(out, tensors, grad.to(out.dtype))]

    exact = run("sdpa", *(x.detach().float().requires_grad_() for x in inputs))
    for ours, reference in zip(run(backend, *inputs), exact, strict=True):
        assert (ours.float() - reference).norm() < 0.01 * reference.norm()


@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_model_trains_compiled_on_the_device(backend: Backend) -> None:
    config = GenLIPConfig.preset("nano8", vocab_size=64, num_hidden_layers=2, drop_path_rate=0.0)
    patches = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    rows = pack_rows([[EncodedSample(patches, (4, 4), (1,), (2, 3, 4))] * 3], 80).to("cuda")
    losses = []
    for name in (backend, "sdpa"):
        model = GenLIP(config).cuda().bfloat16().train()
        model.attention = name
        if name == backend:
            model.compile_blocks()
        out = model(rows)
        out.loss_sum.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        losses.append(out.loss_sum.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
