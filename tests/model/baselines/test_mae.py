"""MAE: which patches are masked, who sees them, and what is predicted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import EncodedSample
from model.baselines import Mae
from model.baselines.mae import Masking, draw_masking
from model.baselines.parts import num_visible
from model.baselines.unpack import ImageBatch, unpack_images
from tests.model.baselines.toys import make_sample, pack, tiny_baseline, tiny_config


def mae(**changes: object) -> Mae:
    model = tiny_baseline("mae", **changes)
    assert isinstance(model, Mae)
    return model


def batch_of(*grids: tuple[int, int]) -> ImageBatch:
    return unpack_images(pack([make_sample(seed, grid) for seed, grid in enumerate(grids)]), tiny_config())


@given(num_patches=st.integers(1, 2000), mask_ratio=st.floats(0.01, 0.99))
def test_ratio_is_exact(num_patches: int, mask_ratio: float) -> None:
    visible = num_visible(num_patches, mask_ratio)
    assert abs(visible - num_patches * (1 - mask_ratio)) <= 0.5 + 1e-9 or visible in (1, num_patches - 1)
    assert 1 <= visible <= max(1, num_patches - 1)


def test_masks_are_uniform_and_differ_between_samples() -> None:
    torch.manual_seed(0)
    images = batch_of(*[(4, 4)] * 200)
    visible = torch.zeros(16)
    chosen = set()
    for _ in range(10):
        masking = draw_masking(images, 0.75)
        assert masking.num_visible_M.tolist() == [4] * 200
        assert (masking.order_MP.sort(dim=1).values == torch.arange(16)).all()
        seen = masking.order_MP[:, :4]
        chosen |= {tuple(sorted(places)) for places in seen.tolist()}
        visible += torch.bincount(seen.flatten(), minlength=16)
    # 2000 draws of 4 of 16: each patch 500 times, with a deviation of sqrt(2000 * 3/16) = 19.
    assert (visible - 500).abs().max() < 5 * 19
    assert len(chosen) > 1000  # of 1820


def test_masks_follow_torchs_seed() -> None:
    images = batch_of((4, 4), (2, 3))
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(draw_masking(images, 0.75).order_MP)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_padding_is_never_chosen() -> None:
    images = batch_of((4, 4), (2, 3), (1, 1))
    masking = draw_masking(images, 0.5)
    assert masking.num_visible_M.tolist() == [8, 3, 1]
    assert set(masking.order_MP[1, :6].tolist()) == set(range(6))


def test_encoder_does_not_see_masked_pixels() -> None:
    model = mae().eval()
    samples = [make_sample(0, (4, 4)), make_sample(1, (2, 3))]
    images = unpack_images(pack(samples), model.config)
    masking = draw_masking(images, 0.75)
    counts = masking.num_visible_M.tolist()
    changed = []
    for number, sample in enumerate(samples):
        patches = 255 - sample.patches
        kept = masking.order_MP[number, : counts[number]].numpy()
        patches[kept] = sample.patches[kept]
        changed.append(EncodedSample(patches, sample.grid, sample.prompt_ids, sample.caption_ids))
    others = unpack_images(pack(changed), model.config)
    with torch.no_grad():
        before, after = model.encode_visible(images, masking), model.encode_visible(others, masking)
        for number, count in enumerate(counts):
            assert torch.equal(before[number, :count], after[number, :count])
        everything = model.encode(images), model.encode(others)
    assert not torch.allclose(*everything)


def test_visible_patches_keep_their_positions() -> None:
    """A model that sees all patches in another order has the same features in that order."""
    model = mae().eval()
    images = batch_of((3, 4))
    order = torch.randperm(12)
    with torch.no_grad():
        shuffled = model.encode_visible(images, Masking(order.unsqueeze(0), torch.tensor([12])))
        torch.testing.assert_close(shuffled[0], model.encode(images)[0, order])


def test_loss_is_the_normalised_error_of_masked_patches() -> None:
    """A decoder that predicts 0 errs by each patch's variance: 1, but for nearly flat patches, and 0 for flat ones."""
    model = mae()
    torch.nn.init.zeros_(model.decoder_out.weight)
    samples = [make_sample(0, (4, 4)), make_sample(1, (2, 3))]
    flat = EncodedSample(np.full((6, 3, 4, 4), 7, np.uint8), (2, 3), [], [3])
    assert float(model(pack(samples)).loss_sum.detach()) == pytest.approx(2, rel=1e-4)
    assert float(model(pack([*samples, flat])).loss_sum.detach()) == pytest.approx(2, rel=1e-4)
    # A constant c adds c ** 2, whatever the number of masked patches.
    torch.nn.init.constant_(model.decoder_out.bias, 0.5)
    assert float(model(pack([*samples, flat])).loss_sum.detach()) == pytest.approx(2 + 3 * 0.25, rel=1e-4)


def test_only_masked_patches_are_predicted_and_from_their_own_image() -> None:
    """The gradient of one image's loss reaches no pixel of another."""
    model = mae()
    pixels = torch.randn(16 + 16, 3, 4, 4, requires_grad=True)
    rows = pack([make_sample(0, (4, 4))], [make_sample(1, (4, 4))])
    images = unpack_images(rows, model.config)
    images = ImageBatch(pixels, images.positions_M3P, images.num_patches_M, images.is_patch_MP, images.index_MP)
    masking = draw_masking(images, 0.75)
    z_MKD = model.encode_visible(images, masking)
    z_MKD[0].sum().backward()
    reached = pixels.grad.flatten(1).abs().sum(dim=1) > 0
    assert set(reached.nonzero().flatten().tolist()) == set(masking.order_MP[0, :4].tolist())
