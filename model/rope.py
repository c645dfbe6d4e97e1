"""Interleaved 3-axis rotary positions (time, height, width).

Shape legend: B rows, S tokens, H heads, K channels of a head, 3 the axes (time, height, width).
"""

import torch
from torch import Tensor

from .configuration_genlip import GenLIPConfig


def rope_cos_sin(position_ids_B3S: Tensor, config: GenLIPConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every token and channel, each [B, S, K].

    Angles, cosines and sines are computed in float32 and then rounded to `dtype`, as in the official code. In bfloat16
    the rotation so has the relative error of any product there, at all positions alike: rounding the angles instead
    would cost whole radians from position 512 on.

    Channel pair i turns with frequency theta^(-2i/K) on one axis: height if i mod 3 = 1 and i < 3*section[1], width
    if i mod 3 = 2 and i < 3*section[2], time otherwise (section[0] is never read, as in the official code).
    """
    device = position_ids_B3S.device
    pair = torch.arange(config.head_dim // 2, device=device)
    frequency = 1.0 / config.rope_theta ** (2.0 * pair.float() / config.head_dim)
    _, num_height, num_width = config.mrope_section
    is_height = (pair % 3 == 1) & (pair < 3 * num_height)
    is_width = (pair % 3 == 2) & (pair < 3 * num_width)
    axis = is_height.long() + 2 * is_width.long()
    angle = position_ids_B3S.float().index_select(1, axis).transpose(1, 2) * frequency
    angle_BSK = torch.cat([angle, angle], dim=-1)
    return angle_BSK.cos().to(dtype), angle_BSK.sin().to(dtype)


def apply_rope(x_SHK: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
    """Rotates channel i against channel i + K/2, in the type of x; leading dimensions before S are free."""
    # Under autocast x is narrower than the residual stream, from which the type of cos and sin was taken.
    cos_SK, sin_SK = cos_SK.to(x_SHK.dtype), sin_SK.to(x_SHK.dtype)
    first, second = x_SHK.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_SHK * cos_SK.unsqueeze(-2) + turned * sin_SK.unsqueeze(-2)
