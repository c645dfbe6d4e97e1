"""The parts of the baselines: running blocks, plain attention, attention pooling, and sizes of towers.

Shape legend: M samples, S tokens of a sequence, P tokens of the sequence attended to, H heads, K channels of a head,
D width.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpointing import checkpoint_contexts
from ..configuration_genlip import GenLIPConfig
from ..layers import Attend, FeedForward

Recompute = Literal["all", "cheap"]


def run_blocks(blocks: Iterable[nn.Module], x_MSD: Tensor, *others: object, recompute: Recompute | None) -> Tensor:
    """Runs blocks one after the other; `recompute` says what each computes again in the backward pass, if anything."""
    for block in blocks:
        if recompute:
            contexts = checkpoint_contexts(recompute)
            x_MSD = checkpoint(block, x_MSD, *others, use_reentrant=False, context_fn=contexts)
        else:
            x_MSD = block(x_MSD, *others)
    return x_MSD


def make_attend(mask: Tensor | None = None, is_causal: bool = False) -> Attend:
    """Attention of [M, S, H, K] within each sample; `mask` is true where a query sees a key, of a shape that
    broadcasts to [M, H, S, S]."""

    def attend(q_MSHK: Tensor, k_MSHK: Tensor, v_MSHK: Tensor) -> Tensor:
        q, k, v = q_MSHK.transpose(1, 2), k_MSHK.transpose(1, 2), v_MSHK.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal).transpose(1, 2)

    return attend


class Attention(nn.Module):
    """Multi-head attention of a sequence to another, or to itself, that knows no positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_MSD: Tensor, source_MPD: Tensor, mask: Tensor | None) -> Tensor:
        """[M, S, D] to [M, S, D]; `mask` is true where a query sees a key, and broadcasts to [M, H, S, P]."""
        heads = (self.num_heads, -1)
        q_MSHK = self.q_proj(x_MSD).unflatten(-1, heads)
        k_MPHK = self.k_proj(source_MPD).unflatten(-1, heads)
        v_MPHK = self.v_proj(source_MPD).unflatten(-1, heads)
        out_MSD: Tensor = self.out_proj(make_attend(mask)(q_MSHK, k_MPHK, v_MPHK).flatten(-2))
        return out_MSD


class MapHead(nn.Module):
    """One vector per image: a learned query attends to the patches, then a feed-forward branch.

    The "MAP head" of Zhai et al. 2022 (https://arxiv.org/abs/2106.04560), as SigLIP has it.
    """

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        self.query = nn.Embedding(1, config.hidden_size)
        self.attention = Attention(config.hidden_size, config.num_attention_heads)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, z_MPD: Tensor, mask: Tensor | None) -> Tensor:
        """[M, P, D] to [M, D]; `mask` as in `Attention`."""
        query_M1D = self.query.weight.expand(len(z_MPD), 1, -1)
        pooled_M1D = self.attention(query_M1D, z_MPD, mask)
        out_M1D: Tensor = pooled_M1D + self.mlp(self.norm(pooled_M1D))
        return out_M1D.squeeze(1)


def key_mask(is_key_MP: Tensor | None) -> Tensor | None:
    """Which keys exist, as a mask for all heads and queries."""
    return None if is_key_MP is None else is_key_MP[:, None, None, :]


def text_config(config: GenLIPConfig) -> GenLIPConfig:
    """The text tower beside a backbone: a plain pre-norm Transformer of at most 12 blocks.

    Its width is the backbone's up to 384 (ViT-S and smaller), 512 beside 768 and 768 beside 1024 as CLIP has it for
    B and L, and two thirds of the backbone's, in whole heads of 64 channels, elsewhere.
    """
    backbone = config.hidden_size
    published = {768: 512, 1024: 768}
    width = backbone if backbone <= 384 else published.get(backbone, 64 * round(backbone / 96))
    num_heads = config.num_attention_heads if width == backbone else width // 64
    return _plain(config, width, num_heads, min(12, config.num_hidden_layers))


def mae_decoder_config(config: GenLIPConfig) -> GenLIPConfig:
    """The decoder of MAE: 8 blocks of width 512 as published, two thirds of a smaller backbone's depth and width.

    Heads have 32 channels, as published.
    """
    width = min(512, 32 * max(1, round(config.hidden_size / 48)))
    depth = min(8, max(1, round(2 * config.num_hidden_layers / 3)))
    return _plain(config, width, width // 32, depth)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Patches that MAE's encoder sees, rounded; of two patches and more at least one is seen and one masked."""
    return max(1, min(num_patches - 1, round(num_patches * (1 - mask_ratio))))


def _plain(config: GenLIPConfig, width: int, num_heads: int, depth: int) -> GenLIPConfig:
    """The backbone's block without gate, LayerScale and DropPath, at another width."""
    ratio = config.intermediate_size / config.hidden_size
    inner = config.intermediate_size if width == config.hidden_size else 32 * max(1, round(ratio * width / 32))
    return replace(
        config,
        hidden_size=width,
        text_embed_dim=width,
        intermediate_size=inner,
        num_attention_heads=num_heads,
        num_hidden_layers=depth,
        gated_attention=False,
        ls_init_value=0.0,
        drop_path_rate=0.0,
    )
