"""The parts of a GenLIP block, with the official parameter names.

Shape legend: N tokens (leading dimensions are free: flat packed tokens, or [samples, tokens]), D hidden width,
H heads, K channels of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_genlip import GenLIPConfig
from .rope import apply_rope

# (q, k, v), each [N, H, K], to the attention output [N, H, K].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def normalise(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1], by the official arithmetic."""
    return (pixels.float() / 255 - 0.5) / 0.5


class PatchEmbedding(nn.Conv2d):
    """A patch-sized convolution as the matrix product that it is; uint8 pixels are normalised here, on the device."""

    def forward(self, patches_NCPP: Tensor) -> Tensor:
        """[N, C, p, p] to [N, D]; channels may also be last in memory, as images are decoded."""
        if patches_NCPP.dtype == torch.uint8:
            patches_NCPP = normalise(patches_NCPP)
        weight_DCPP = self.weight
        if len(patches_NCPP) and patches_NCPP.is_contiguous(memory_format=torch.channels_last):
            patches_NCPP, weight_DCPP = patches_NCPP.permute(0, 2, 3, 1), weight_DCPP.permute(0, 2, 3, 1)
        # With an empty batch the patch size may be unknown, so the length is given instead of inferred.
        flat = patches_NCPP.reshape(len(patches_NCPP), self.weight[0].numel())
        return F.linear(flat.to(self.weight.dtype), weight_DCPP.flatten(1), self.bias)


class VisionEmbeddings(nn.Module):
    """Holder of the patch embedding, for its official name."""

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.patch_embedding = PatchEmbedding(config.num_channels, config.hidden_size, side, stride=side)

    def forward(self, patches_NCPP: Tensor) -> Tensor:
        """[N, C, p, p] to [N, D]."""
        embedded: Tensor = self.patch_embedding(patches_NCPP)
        return embedded


class SelfAttention(nn.Module):
    """Multi-head attention whose output is gated by the sigmoid of a projection of its own input."""

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.is_gated = config.gated_attention
        # Rows 0..D-1 are the query, rows D..2D-1 the gate.
        self.q_proj = nn.Linear(width, 2 * width if self.is_gated else width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_ND: Tensor, cos_NK: Tensor, sin_NK: Tensor, attend: Attend) -> Tensor:
        """[N, D] to [N, D]."""
        heads = (self.num_heads, -1)
        q_ND = self.q_proj(x_ND)
        gate_ND = None
        if self.is_gated:
            q_ND, gate_ND = q_ND.chunk(2, dim=-1)
        q_NHK = apply_rope(q_ND.unflatten(-1, heads), cos_NK, sin_NK)
        k_NHK = apply_rope(self.k_proj(x_ND).unflatten(-1, heads), cos_NK, sin_NK)
        v_NHK = self.v_proj(x_ND).unflatten(-1, heads)
        mixed_ND = attend(q_NHK, k_NHK, v_NHK).flatten(-2)
        if gate_ND is not None:
            mixed_ND = mixed_ND * gate_ND.sigmoid()
        out_ND: Tensor = self.out_proj(mixed_ND)
        return out_ND


class FeedForward(nn.Module):
    """SwiGLU: `gate_fc` is the activated branch, `fc1` the plain one. Without SwiGLU: fc1, silu, fc2."""

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate_fc = nn.Linear(config.hidden_size, config.intermediate_size) if config.use_swiglu_ffn else None
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_ND: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        up = self.fc1(x_ND)
        hidden = F.silu(up) if self.gate_fc is None else F.silu(self.gate_fc(x_ND)) * up
        out_ND: Tensor = self.fc2(hidden)
        return out_ND


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((width,), initial))

    def forward(self, x_ND: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        return x_ND * self.lambda1


class DropPath(nn.Module):
    """Drops a branch for whole groups of tokens in training; kept branches are scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_ND: Tensor, drop_group_N: Tensor | None) -> Tensor:
        """[N, D] to [N, D]; tokens with equal `drop_group_N` (values below N) are kept or dropped together."""
        if not self.training or self.rate == 0 or drop_group_N is None:
            return x_ND
        # One draw per possible group: as many groups as tokens at most, and no wait for the device to count them.
        is_kept_N = torch.rand(len(drop_group_N), device=x_ND.device) >= self.rate
        scale_N = is_kept_N.to(x_ND.dtype) / (1 - self.rate)
        return x_ND * scale_N[drop_group_N].unsqueeze(-1)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with LayerScale and DropPath."""

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.layer_scale1 = LayerScale(width, config.ls_init_value) if config.has_layer_scale else nn.Identity()
        self.layer_scale2 = LayerScale(width, config.ls_init_value) if config.has_layer_scale else nn.Identity()
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(
        self, x_ND: Tensor, cos_NK: Tensor, sin_NK: Tensor, attend: Attend, drop_group_N: Tensor | None
    ) -> Tensor:
        """[N, D] to [N, D]."""
        attention_ND: Tensor = self.self_attn(self.layer_norm1(x_ND), cos_NK, sin_NK, attend)
        x_ND = x_ND + self.drop_path(self.layer_scale1(attention_ND), drop_group_N)
        mlp_ND: Tensor = self.mlp(self.layer_norm2(x_ND))
        out_ND: Tensor = x_ND + self.drop_path(self.layer_scale2(mlp_ND), drop_group_N)
        return out_ND
