"""Packed attention by a flex block mask: blocks of 128 x 128 scores are skipped where no query sees a key.

Fused on CUDA. On a CPU it exists for checks: forward only, and with all scores of a row in memory.

Shape legend: B rows, S tokens of a row, N = B * S flat tokens, M samples, H heads, K channels of a head.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .errors import ModelError


@dataclass(frozen=True)
class FlexPlan:
    """The block mask of the rows."""

    block_mask: BlockMask
    num_rows: int

    def attend(self, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """[N, H, K], zero at padding."""
        if q_NHK.device.type == "cpu" and torch.is_grad_enabled() and q_NHK.requires_grad:
            raise ModelError(
                'attention="flex" has no backward pass on a CPU; choose attention="auto" or torch.no_grad()'
            )
        q, k, v = (torch.unflatten(x, 0, (self.num_rows, -1)).transpose(1, 2) for x in (q_NHK, k_NHK, v_NHK))
        attend: Any = flex_attention
        if q.is_cuda:
            attend = _fused(flex_attention)
        out_BHSK: Tensor = attend(q, k, v, block_mask=self.block_mask)
        return out_BHSK.transpose(1, 2).flatten(0, 1)


def plan_flex(segments_M4: Tensor, num_rows: int, row_tokens: int, device: torch.device) -> FlexPlan:
    """The block mask of packed rows.

    Args:
        segments_M4: (row, start, image tokens, tokens) per sample, on the CPU.
        num_rows: B.
        row_tokens: S.
        device: where attention will run.
    """
    # Per token the sample it belongs to, -1 at padding, and the first token of the sample's text.
    sample_BS = torch.full((num_rows, row_tokens), -1)
    text_start_BS = torch.zeros(num_rows, row_tokens, dtype=torch.int64)
    for number, (row, start, num_image, length) in enumerate(segments_M4.tolist()):
        sample_BS[row, start : start + length] = number
        text_start_BS[row, start : start + length] = start + num_image
    sample_BS, text_start_BS = sample_BS.to(device), text_start_BS.to(device)

    def is_seen(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_same_sample = (sample_BS[b, query] == sample_BS[b, key]) & (sample_BS[b, query] >= 0)
        return is_same_sample & ((key < text_start_BS[b, query]) | (query >= text_start_BS[b, query]) & (key <= query))

    create = _fused(create_block_mask) if device.type == "cuda" else create_block_mask
    return FlexPlan(create(is_seen, num_rows, None, row_tokens, row_tokens, device=device), num_rows)


@functools.cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled, so that neither scores nor the dense mask are ever in memory."""
    return torch.compile(function)
