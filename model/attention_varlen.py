"""Packed attention by two variable-length flash calls (CUDA, half precision).

The first call lets the image tokens of every sample see each other. In the second the text queries see image and text
of their sample, causally; flash attention aligns the last query with the last key (bottom right), which makes the
image and all earlier text visible. So no score outside the prefix-LM mask is ever computed, but for the kernels' tiles.

Shape legend: N flat tokens, M samples, H heads, K channels of a head, Q queries, S keys.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]

MAX_HEAD_DIM = 256
HEAD_DIM_MULTIPLE = 8


@dataclass(frozen=True)
class VarlenCall:
    """One call: sequences of queries and keys, none of them empty, one after the other.

    Attributes:
        query_index_Q: flat token of every query.
        key_index_S: flat token of every key.
        query_bounds: first query of every sequence and the total, int32.
        key_bounds: the same for keys.
        max_queries: length of the longest query sequence.
        max_keys: length of the longest key sequence.
        is_causal: causal with bottom-right alignment, or everything.
    """

    query_index_Q: Tensor
    key_index_S: Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    max_queries: int
    max_keys: int
    is_causal: bool


@dataclass(frozen=True)
class VarlenPlan:
    """The image call and the text call, each only if the batch has such tokens."""

    calls: tuple[VarlenCall, ...]

    def attend(self, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """[N, H, K], zero at padding."""
        # Not plain zeros: without samples q, k and v must stay in the graph, because data-parallel ranks must agree
        # on which parameters have a gradient.
        out_NHK = torch.zeros_like(q_NHK) if self.calls else (q_NHK + k_NHK + v_NHK) * 0
        for call in self.calls:
            answers_QHK = flash_varlen(
                q_NHK.index_select(0, call.query_index_Q),
                k_NHK.index_select(0, call.key_index_S),
                v_NHK.index_select(0, call.key_index_S),
                call,
            )
            out_NHK = out_NHK.index_copy(0, call.query_index_Q, answers_QHK)
        return out_NHK


def plan_varlen(segments_M4: Tensor, row_tokens: int, device: torch.device) -> VarlenPlan:
    """The calls for packed rows; indices and bounds are computed on the CPU and moved without waiting.

    Args:
        segments_M4: (row, start, image tokens, tokens) per sample, on the CPU.
        row_tokens: tokens of a row.
        device: where attention will run.
    """
    row, start, num_image, length = segments_M4.numpy().T
    first, text = row * row_tokens + start, row * row_tokens + start + num_image
    has_image, has_text = num_image > 0, length > num_image
    calls = []
    if has_image.any():
        images = first[has_image], num_image[has_image]
        calls.append(_call(images, images, is_causal=False, device=device))
    if has_text.any():
        texts = text[has_text], (length - num_image)[has_text]
        wholes = first[has_text], length[has_text]
        calls.append(_call(texts, wholes, is_causal=True, device=device))
    return VarlenPlan(tuple(calls))


def flash_varlen(q_QHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, call: VarlenCall) -> Tensor:
    """The kernel: softmax attention inside every sequence of the call, [Q, H, K]."""
    # Imported here because a torch without it can still run the other back ends.
    from torch.nn.attention.varlen import varlen_attn

    window_size = (-1, 0) if call.is_causal else (-1, -1)
    bounds = (call.query_bounds, call.key_bounds, call.max_queries, call.max_keys)
    out_QHK = varlen_attn(q_QHK, k_SHK, v_SHK, *bounds, window_size=window_size)
    assert isinstance(out_QHK, Tensor)  # a pair only when the log-sum-exp is asked for
    return out_QHK


def find_problem(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the flash kernels cannot run there, as the end of a sentence; None if they can."""
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 or float16, not {dtype}"
    if head_dim % HEAD_DIM_MULTIPLE or head_dim > MAX_HEAD_DIM:
        return f"takes heads of a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM} channels, not {head_dim}"
    if not torch.backends.cuda.is_flash_attention_available() or not _has_windows():
        return f"needs a torch of at least 2.11 with flash attention; this is {torch.__version__}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or later"
    return None


def _has_windows() -> bool:
    """Up to torch 2.10 the kernel was missing or took other arguments."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def _call(
    queries: tuple[IntArray, IntArray], keys: tuple[IntArray, IntArray], is_causal: bool, device: torch.device
) -> VarlenCall:
    """`queries` and `keys`: first flat token and length of every sequence."""

    def move(array: npt.NDArray[np.integer[Any]]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return VarlenCall(
        query_index_Q=move(_concatenate_ranges(*queries)),
        key_index_S=move(_concatenate_ranges(*keys)),
        query_bounds=move(_bounds(queries[1])),
        key_bounds=move(_bounds(keys[1])),
        max_queries=int(queries[1].max()),
        max_keys=int(keys[1].max()),
        is_causal=is_causal,
    )


def _concatenate_ranges(first: IntArray, length: IntArray) -> IntArray:
    """[first, first + length) of every sequence, one after the other."""
    before = np.cumsum(length) - length
    tokens: IntArray = np.arange(length.sum()) + np.repeat(first - before, length)
    return tokens


def _bounds(length: IntArray) -> npt.NDArray[np.int32]:
    bounds = np.zeros(len(length) + 1, np.int32)
    bounds[1:] = np.cumsum(length)
    return bounds
