"""A captioner's decoder: a plain pre-norm Transformer that attends to its caption and to the patches of an image.

Shape legend: M samples, P patches, T tokens of a caption, D width.
"""

import math

import torch
from torch import Tensor, nn

from ..configuration_genlip import GenLIPConfig
from ..layers import FeedForward
from .parts import Attention, Recompute, run_blocks


class DecoderBlock(nn.Module):
    """Attention to the caption, attention to the patches, feed-forward."""

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attention = Attention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.cross_attention = Attention(width, config.num_attention_heads)
        self.norm3 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(config)

    def forward(self, x_MTD: Tensor, sees: Tensor, z_MPD: Tensor, sees_patch: Tensor | None) -> Tensor:
        """[M, T, D] to [M, T, D]; see `CaptionDecoder.forward`."""
        h_MTD = self.norm1(x_MTD)
        x_MTD = x_MTD + self.self_attention(h_MTD, h_MTD, sees)
        x_MTD = x_MTD + self.cross_attention(self.norm2(x_MTD), z_MPD, sees_patch)
        out_MTD: Tensor = x_MTD + self.mlp(self.norm3(x_MTD))
        return out_MTD


class CaptionDecoder(nn.Module):
    """The decoder of CapPa: of the backbone's width and half its depth (6 blocks beside 12, as published).

    Positions are fixed sinusoids (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) where the paper learns a
    table, which would limit the length. Rotary ones would not do: between equal mask tokens they make no difference.
    """

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.position_std = config.initializer_range
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.begin = nn.Embedding(1, width)
        self.mask_token = nn.Embedding(1, width)
        self.layers = nn.ModuleList(DecoderBlock(config) for _ in range(decoder_depth(config)))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self,
        ids_MT: Tensor,
        place_T: Tensor,
        sees: Tensor,
        z_MPD: Tensor,
        sees_patch: Tensor | None,
        is_parallel_M: Tensor | None = None,
        recompute: Recompute | None = None,
    ) -> Tensor:
        """What the LM head reads behind the begin token and each given token: [M, 1 + T, D].

        Args:
            ids_MT: tokens behind the begin token.
            place_T: the place in its caption of the begin token (0) and of each of them, [1 + T].
            sees: true where one of these sees another; broadcasts to [M, H, 1 + T, 1 + T].
            z_MPD: features of the patches.
            sees_patch: true where a patch exists; broadcasts to [M, H, 1 + T, P]. None: all.
            is_parallel_M: samples that are given the mask token in place of every token.
            recompute: what blocks recompute in the backward pass.
        """
        begin_M1D = self.begin.weight.expand(len(ids_MT), 1, -1)
        x_MTD = torch.cat([begin_M1D, self.embeddings(ids_MT)], dim=1)
        if is_parallel_M is not None:
            x_MTD = torch.where(is_parallel_M[:, None, None], self.mask_token.weight.unsqueeze(0), x_MTD)
        x_MTD = x_MTD + _sinusoids(place_T, x_MTD.shape[-1], self.position_std).to(x_MTD.dtype)
        hidden_MTD: Tensor = self.norm(run_blocks(self.layers, x_MTD, sees, z_MPD, sees_patch, recompute=recompute))
        return hidden_MTD


def decoder_depth(config: GenLIPConfig) -> int:
    """Half of the backbone's."""
    return max(1, config.num_hidden_layers // 2)


def _sinusoids(place_T: Tensor, width: int, std: float) -> Tensor:
    """Sines, then cosines, of geometric wavelengths: float32 [T, D].

    Their deviation is `std`, that of fresh token embeddings, so that neither drowns the other.
    """
    half = torch.arange((width + 1) // 2, device=place_T.device)
    angle = place_T.float().unsqueeze(-1) * torch.exp(-math.log(10_000) * 2 * half / width)
    return math.sqrt(2) * std * torch.cat([angle.sin(), angle.cos()], dim=-1)[:, :width]
