"""Prefix-LM attention over packed rows without a dense mask.

Inside a sample, image tokens see all image tokens and text sees the image and earlier text; nothing crosses samples.
Samples of equal image length are stacked, so the cost grows with the sum of squared sample lengths.

Shape legend: N flat tokens of the batch (B rows x S), M places in the stacks, H heads, K channels of a head, G samples
of one stack, P image tokens, T text tokens, L = P + T tokens of a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# Samples of a stack have their text padded to the longest; texts this close in length share a stack.
TEXT_BUCKET_TOKENS = 64

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stack:
    """Samples with the same number of image tokens, their text padded to the longest.

    Attributes:
        num_samples: G.
        num_image_tokens: P.
        num_text_tokens: T.
        mask_TL: which keys each text query sees.
    """

    num_samples: int
    num_image_tokens: int
    num_text_tokens: int
    mask_TL: Tensor


@dataclass(frozen=True)
class Source:
    """For every row of a result, the row it is copied from.

    Attributes:
        index: row numbers; any valid number where there is no source.
        empty: the result rows without a source; they become zero.
    """

    index: Tensor
    empty: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """Where every sample of a batch sits; computed once per batch and shared by all layers.

    Attributes:
        stacks: the stacks, laid one after the other over the M places.
        token_of_place: fills the places; those behind a shorter text are empty.
        place_of_token: the inverse; padding tokens are empty.
    """

    stacks: tuple[Stack, ...]
    token_of_place: Source
    place_of_token: Source


def plan_attention(segments_M4: Tensor, num_rows: int, row_tokens: int, device: torch.device) -> AttentionPlan:
    """Stacks the samples of packed rows.

    Args:
        segments_M4: (row, start, image tokens, tokens) per sample, on the CPU.
        num_rows: B.
        row_tokens: S.
        device: where attention will run.
    """
    stacks = []
    tokens_of_stacks = [np.zeros(0, np.int64)]
    for num_image, start_G, length_G in _samples_by_shape(segments_M4.numpy(), row_tokens):
        longest = int(length_G.max())
        offset_L = np.arange(longest)
        tokens_of_stacks.append(np.where(offset_L < length_G[:, None], start_G[:, None] + offset_L, -1).ravel())
        mask_TL = text_mask(longest - num_image, num_image, device)
        stacks.append(Stack(len(start_G), num_image, longest - num_image, mask_TL))
    token_of_place = np.concatenate(tokens_of_stacks)
    filled = np.flatnonzero(token_of_place >= 0)
    place_of_token = np.full(num_rows * row_tokens, -1, np.int64)
    place_of_token[token_of_place[filled]] = filled
    return AttentionPlan(tuple(stacks), _source(token_of_place, device), _source(place_of_token, device))


def prefix_attention(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, plan: AttentionPlan) -> Tensor:
    """Softmax attention under the prefix-LM rule, [N, H, K]; zero at padding."""
    q, k, v = (_take_rows(x_NHK, plan.token_of_place, plan.place_of_token) for x_NHK in (q_NHK, k_NHK, v_NHK))
    sizes = [stack.num_samples * stack.mask_TL.shape[1] for stack in plan.stacks]
    pieces = zip(torch.split(q, sizes), torch.split(k, sizes), torch.split(v, sizes), plan.stacks, strict=True)
    # Without samples the (empty) sum keeps q, k and v in the graph: data-parallel ranks must agree on which
    # parameters have a gradient.
    outputs = [_attend_stack(*piece) for piece in pieces] or [q + k + v]
    return _take_rows(torch.cat(outputs), plan.place_of_token, plan.token_of_place)


def text_mask(num_text_tokens: int, num_seen_before: int, device: torch.device) -> Tensor:
    """True where a text query [T] may see a key [num_seen_before + T]: everything before it and itself."""
    ones = torch.ones(num_text_tokens, num_seen_before + num_text_tokens, dtype=torch.bool, device=device)
    return ones.tril(num_seen_before)


def _attend_stack(q_MHK: Tensor, k_MHK: Tensor, v_MHK: Tensor, stack: Stack) -> Tensor:
    """Attention of one stack, [G * L, H, K]. What empty places get is finite and never read."""
    q, k, v = (torch.unflatten(x, 0, (stack.num_samples, -1)).transpose(1, 2) for x in (q_MHK, k_MHK, v_MHK))
    num_image = stack.num_image_tokens
    image_q, text_q = torch.split(q, [num_image, stack.num_text_tokens], dim=2)
    parts = []
    if num_image:
        parts.append(F.scaled_dot_product_attention(image_q, k[:, :, :num_image], v[:, :, :num_image]))
    if stack.num_text_tokens:
        parts.append(F.scaled_dot_product_attention(text_q, k, v, attn_mask=stack.mask_TL))
    return torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1)


class _TakeRows(torch.autograd.Function):
    """Copies rows by a one-to-one map, so that the gradient is a copy back by the inverse map.

    Plain indexing would add the gradients up instead, which is several times slower on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Source, inverse: Source) -> Tensor:
        ctx.inverse = inverse
        return _copy_rows(x, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _copy_rows(grads[0], ctx.inverse), None, None


def _take_rows(x: Tensor, source: Source, inverse: Source) -> Tensor:
    taken: Tensor = _TakeRows.apply(x, source, inverse)  # type: ignore[no-untyped-call]
    return taken


def _copy_rows(x: Tensor, source: Source) -> Tensor:
    if not len(x):
        return x.new_zeros(len(source.index), *x.shape[1:])
    return x.index_select(0, source.index).index_fill_(0, source.empty, 0)


def _samples_by_shape(segments_M4: IntArray, row_tokens: int) -> Iterator[tuple[int, IntArray, IntArray]]:
    """Yields (image tokens, flat start of each sample, length of each sample) per stack."""
    row, start, num_image, length = segments_M4.T
    bucket = -(-(length - num_image) // TEXT_BUCKET_TOKENS)
    for image_tokens, text_bucket in np.unique(np.stack([num_image, bucket], axis=1), axis=0):
        chosen = (num_image == image_tokens) & (bucket == text_bucket)
        yield int(image_tokens), (row * row_tokens + start)[chosen], length[chosen]


def _source(index: IntArray, device: torch.device) -> Source:
    """`index` with -1 where there is no source."""
    empty = np.flatnonzero(index < 0)
    tensors = [torch.from_numpy(array).to(device, non_blocking=True) for array in (index.clip(min=0), empty)]
    return Source(*tensors)
