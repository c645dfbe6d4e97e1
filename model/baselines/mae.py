"""MAE: the pixels of masked patches from the visible ones (He et al. 2022, https://arxiv.org/abs/2111.06377).

Shape legend: M samples, P patches of the largest image, N patches of the batch, K visible patches of the image with
most, D hidden width, W width of the decoder, F pixel values of a patch, C channels and p side of a patch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import PackedRows
from ..configuration_genlip import GenLIPConfig
from ..layers import normalise
from ..modeling_genlip import BlockStack, LossOutput
from ..rope import rope_cos_sin
from .baseline import Baseline
from .parts import key_mask, mae_decoder_config, make_attend, num_visible, run_blocks
from .unpack import ImageBatch, unpack_images

# As published: keeps the normalised target of a flat patch finite.
TARGET_EPS = 1e-6


@dataclass(frozen=True)
class Masking:
    """Which patches the encoder sees.

    Attributes:
        order_MP: the patches of each image shuffled: the visible ones, the masked ones, padding.
        num_visible_M: how many are visible; on the CPU.
    """

    order_MP: Tensor
    num_visible_M: Tensor


def draw_masking(images: ImageBatch, mask_ratio: float) -> Masking:
    """Draws the masked patches of each image from torch's global generator, uniformly and of the exact number.

    That is `mask_ratio` of the patches; see `num_visible`.
    """
    noise_MP = torch.rand(images.index_MP.shape, device=images.index_MP.device)
    if images.is_patch_MP is not None:
        noise_MP = noise_MP.masked_fill(~images.is_patch_MP, 2.0)  # behind all patches
    counts = [num_visible(num_patches, mask_ratio) for num_patches in images.num_patches_M.tolist()]
    return Masking(noise_MP.argsort(dim=1), torch.tensor(counts, dtype=torch.int64))


class Mae(Baseline):
    """A masked autoencoder on the backbone. Captions are not looked at.

    The order of patches means nothing to either part, whose positions are rotary, so both take them shuffled: first the
    visible ones, which are all that the encoder sees, then mask tokens for the others.
    """

    objective = "mae"
    loss_per = "sample"
    needs_whole_batch = False

    def __init__(self, config: GenLIPConfig, mask_ratio: float) -> None:
        super().__init__(config)
        self.mask_ratio = mask_ratio
        self.decoder_config = mae_decoder_config(config)
        width = self.decoder_config.hidden_size
        self.decoder_in = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Embedding(1, width)
        self.decoder = BlockStack(self.decoder_config)
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_out = nn.Linear(width, config.num_channels * config.patch_size**2)

    @property
    def options(self) -> dict[str, float]:
        """The share of masked patches."""
        return {"mask_ratio": self.mask_ratio}

    def forward(self, rows: PackedRows) -> LossOutput:
        """See `Baseline`: mean squared error of the masked patches, each normalised by its own mean and deviation."""
        images = unpack_images(rows, self.config)
        masking = draw_masking(images, self.mask_ratio)
        z_MKD = self.encode_visible(images, masking)
        # No image has a masked patch before this place, so nothing is predicted there.
        first = int(masking.num_visible_M.min()) if rows.num_samples else 0
        predicted_MPF = self._decode(z_MKD, images, masking)[:, first:]
        target_MPF = _take(images.pad(_targets(images.patches_NCPP, predicted_MPF.shape[-1])), masking.order_MP)
        error_MP = (predicted_MPF.float() - target_MPF[:, first:]).square().mean(dim=-1)
        weight_MP = _is_masked(images, masking)[:, first:].to(error_MP)
        loss_M = (error_MP * weight_MP).sum(dim=1) / weight_MP.sum(dim=1).clamp(min=1)
        return LossOutput(loss_M.sum(), torch.tensor(rows.num_labels, device=loss_M.device), None)

    def encode_visible(self, images: ImageBatch, masking: Masking) -> Tensor:
        """Features of the visible patches, in their shuffled order, [M, K, D]."""
        most = int(masking.num_visible_M.max()) if len(masking.num_visible_M) else 1
        order_MK = masking.order_MP[:, :most]
        is_visible_MK = None
        if bool((masking.num_visible_M < most).any()):
            is_visible_MK = _is_visible(masking)[:, :most]
        positions_MK3 = _take(images.positions_M3P.transpose(1, 2), order_MK)
        return self.run_backbone(_take(self.embed(images), order_MK), positions_MK3.transpose(1, 2), is_visible_MK)

    def _decode(self, z_MKD: Tensor, images: ImageBatch, masking: Masking) -> Tensor:
        """Predicted pixels in shuffled order, [M, P, F]."""
        x_MKW = self.decoder_in(z_MKD)
        num_others = masking.order_MP.shape[1] - x_MKW.shape[1]
        mask_11W = self.mask_token.weight.unsqueeze(0).to(x_MKW.dtype)
        x_MPW = torch.cat([x_MKW, mask_11W.expand(len(x_MKW), num_others, -1)], dim=1)
        x_MPW = torch.where(_is_visible(masking).unsqueeze(-1), x_MPW, mask_11W)
        positions_MP3 = _take(images.positions_M3P.transpose(1, 2), masking.order_MP)
        cos_MPK, sin_MPK = rope_cos_sin(positions_MP3.transpose(1, 2), self.decoder_config, x_MPW.dtype)
        # Padding is last in the shuffled order as it was before.
        attend = make_attend(key_mask(images.is_patch_MP))
        x_MPW = run_blocks(self.decoder.layers, x_MPW, cos_MPK, sin_MPK, attend, None, recompute=self.recompute_now)
        predicted_MPF: Tensor = self.decoder_out(self.decoder_norm(x_MPW))
        return predicted_MPF


def _take(x_MP: Tensor, order_MS: Tensor) -> Tensor:
    """Places [M, S] of [M, P, ...]: [M, S, ...]."""
    return x_MP.gather(1, order_MS.unsqueeze(-1).expand(-1, -1, x_MP.shape[-1]))


def _is_visible(masking: Masking) -> Tensor:
    """Per place of the shuffled order, [M, P]."""
    device = masking.order_MP.device
    place_P = torch.arange(masking.order_MP.shape[1], device=device)
    return place_P < masking.num_visible_M.unsqueeze(1).to(device, non_blocking=True)


def _is_masked(images: ImageBatch, masking: Masking) -> Tensor:
    is_hidden_MP = ~_is_visible(masking)
    return is_hidden_MP if images.is_patch_MP is None else is_hidden_MP & images.is_patch_MP


def _targets(patches_NCPP: Tensor, num_values: int) -> Tensor:
    """Pixels of each patch with mean 0 and variance 1, float32 [N, F]."""
    pixels = normalise(patches_NCPP) if patches_NCPP.dtype == torch.uint8 else patches_NCPP.float()
    pixels_NF = pixels.reshape(len(pixels), num_values)
    return F.layer_norm(pixels_NF, (num_values,), eps=TARGET_EPS)
