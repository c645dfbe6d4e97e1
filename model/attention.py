"""Prefix-LM attention over packed rows without a dense mask.

Inside a sample, image tokens see all image tokens and text sees the image and earlier text; nothing crosses samples.
Three back ends compute the same: `sdpa` (any device), `varlen` (flash kernels) and `flex` (block mask).

Shape legend: N flat tokens of the batch (B rows x S), M samples, H heads, K channels of a head.
"""

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from .attention_flex import plan_flex
from .attention_sdpa import plan_sdpa
from .attention_varlen import find_problem, plan_varlen
from .errors import ModelError

Backend = Literal["sdpa", "varlen", "flex"]
BackendChoice = Literal["auto", "sdpa", "varlen", "flex"]


class AttentionPlan(Protocol):
    """Where every sample of a batch sits, in the form one back end needs; shared by all layers."""

    def attend(self, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """See `prefix_attention`."""


def choose_backend(choice: BackendChoice, device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """The back end that runs: "auto" is varlen wherever its kernels run, sdpa elsewhere.

    Args:
        choice: "auto" or the name of a back end.
        device: where attention will run.
        dtype: type of queries, keys and values.
        head_dim: K.

    Raises:
        ModelError: there is no such back end, or it cannot run there.
    """
    if choice not in get_args(BackendChoice):
        raise ModelError(f"attention={choice!r} does not exist; choose one of {', '.join(get_args(BackendChoice))}")
    problem = find_problem(device, dtype, head_dim)
    if choice == "auto":
        return "sdpa" if problem else "varlen"
    if choice == "varlen" and problem:
        raise ModelError(f'attention="varlen" {problem}; choose attention="auto"')
    if choice == "flex" and device.type not in ("cpu", "cuda"):
        raise ModelError(f'attention="flex" needs CUDA or a CPU, not {device.type}; choose attention="auto"')
    return choice


def plan_attention(
    segments_M4: Tensor, num_rows: int, row_tokens: int, device: torch.device, backend: Backend = "sdpa"
) -> AttentionPlan:
    """Plans the attention of packed rows, once per batch.

    Args:
        segments_M4: (row, start, image tokens, tokens) per sample, on the CPU.
        num_rows: B.
        row_tokens: S.
        device: where attention will run.
        backend: from `choose_backend`.
    """
    if backend == "sdpa":
        return plan_sdpa(segments_M4, num_rows * row_tokens, row_tokens, device)
    if backend == "varlen":
        return plan_varlen(segments_M4, row_tokens, device)
    return plan_flex(segments_M4, num_rows, row_tokens, device)


def prefix_attention(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, plan: AttentionPlan) -> Tensor:
    """Softmax attention under the prefix-LM rule, [N, H, K]; zero at padding. Scale 1 / sqrt(K)."""
    return plan.attend(q_NHK, k_NHK, v_NHK)
