"""Packed attention on any device by scaled dot products over stacks of samples.

Samples with equal numbers of image tokens are stacked, their texts padded to nearly equal length, so the cost grows
with the sum of squared sample lengths and few kernels run. All of it is one operator: to `torch.compile` it is one
node, whatever the packing.

Shape legend: N flat tokens of the batch, A places in the stacks, M samples, H heads, K channels of a head, G samples of
one stack, Z = G * H, P image tokens, T text tokens, L = P + T tokens of a sample, Q queries, S keys.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# Samples of a stack have their text padded to the longest; texts this close in length share a stack.
TEXT_BUCKET_TOKENS = 64
# The backward pass holds the scores of so many pairs at a time: 16 MiB of float32, within a processor's cache.
SCORES_PER_CHUNK = 2**22

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SdpaPlan:
    """Where every sample sits in the stacks, which are laid one after the other over the A places.

    Attributes:
        index: four lists of row numbers, one after the other, on the device: the token of every place (any token where
            a shorter text has ended), the places without a token, the place of every token (any place at padding),
            the padding tokens.
        table: on the CPU: the lengths of the four lists, then (G, P, T) of every stack.
    """

    index: Tensor
    table: Tensor

    def attend(self, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """[N, H, K], zero at padding."""
        out_NHK: Tensor = stacked_attention(q_NHK, k_NHK, v_NHK, self.index, self.table)
        return out_NHK


def plan_sdpa(segments_M4: Tensor, num_tokens: int, row_tokens: int, device: torch.device) -> SdpaPlan:
    """Stacks the samples of packed rows.

    Args:
        segments_M4: (row, start, image tokens, tokens) per sample, on the CPU.
        num_tokens: N.
        row_tokens: tokens of a row.
        device: where attention will run.
    """
    stacks: list[int] = []
    tokens_of_stacks = [np.zeros(0, np.int64)]
    for num_image, start_G, length_G in _samples_by_shape(segments_M4.numpy(), row_tokens):
        longest = int(length_G.max())
        offset_L = np.arange(longest)
        tokens_of_stacks.append(np.where(offset_L < length_G[:, None], start_G[:, None] + offset_L, -1).ravel())
        stacks += [len(start_G), num_image, longest - num_image]
    token_of_place = np.concatenate(tokens_of_stacks)
    filled = np.flatnonzero(token_of_place >= 0)
    place_of_token = np.full(num_tokens, -1)
    place_of_token[token_of_place[filled]] = filled
    lists = []
    for source in (token_of_place, place_of_token):
        lists += [source.clip(min=0), np.flatnonzero(source < 0)]
    table = torch.tensor([*map(len, lists), *stacks])
    return SdpaPlan(torch.from_numpy(np.concatenate(lists)).to(device, non_blocking=True), table)


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """True where a query [Q] may see a key [S], the last query being the last key (bottom-right alignment)."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


class _Stack(NamedTuple):
    """Its range of places, and G, P, T."""

    places: slice
    num_samples: int
    num_image_tokens: int
    num_text_tokens: int

    def cut(self, x_AHK: Tensor) -> Tensor:
        """The samples of this stack, a view [G, H, L, K]."""
        return torch.unflatten(x_AHK[self.places], 0, (self.num_samples, -1)).transpose(1, 2)

    def parts(self, device: torch.device) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """(queries, keys, mask [Q, S]) of the image and of the text, as ranges of L."""
        num_image, num_text = self.num_image_tokens, self.num_text_tokens
        if num_image:
            yield slice(0, num_image), slice(0, num_image), None
        if num_text:
            end = num_image + num_text
            yield slice(num_image, end), slice(0, end), causal_mask(num_text, end, device)


def _forward(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, index: Tensor, table: Tensor) -> Tensor:
    token_of_place, _, place_of_token, padding = _lists(index, table)
    # A place without a token gets any token's values: no query of a real token sees it.
    q_AHK, k_AHK, v_AHK = (x_NHK[token_of_place] for x_NHK in (q_NHK, k_NHK, v_NHK))
    out_AHK = torch.empty_like(q_AHK)
    for stack in _stacks(table):
        q, k, v, out = (stack.cut(x_AHK) for x_AHK in (q_AHK, k_AHK, v_AHK, out_AHK))
        for queries, keys, mask in stack.parts(q.device):
            part = F.scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=mask)
            out[:, :, queries] = part
    return _take_rows(out_AHK, place_of_token, padding)


def _backward(
    grad_NHK: Tensor, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, out_NHK: Tensor, index: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. They are computed and summed in float32 at least."""
    token_of_place, unfilled, place_of_token, padding = _lists(index, table)
    q_AHK, k_AHK, v_AHK, out_AHK = (x_NHK[token_of_place] for x_NHK in (q_NHK, k_NHK, v_NHK, out_NHK))
    grad_AHK = _take_rows(grad_NHK, token_of_place, unfilled)
    gradients_AHK = [torch.empty_like(x_AHK) for x_AHK in (q_AHK, k_AHK, v_AHK)]
    dtype = torch.promote_types(q_NHK.dtype, torch.float32)
    for stack in _stacks(table):
        # One copy each, with the heads before the tokens (Z = G * H), spares every product below its own.
        q, k, v, out, grad = (
            stack.cut(x_AHK).flatten(0, 1).to(dtype) for x_AHK in (q_AHK, k_AHK, v_AHK, out_AHK, grad_AHK)
        )
        mean_ZL1 = (grad * out).sum(dim=-1, keepdim=True)
        sums = [torch.zeros_like(x) for x in (q, k, v)]
        for queries, keys, mask in stack.parts(q.device):
            per_query = (q[:, queries], grad[:, queries], mean_ZL1[:, queries])
            per_key = (k[:, keys], v[:, keys])
            results = (sums[0][:, queries], sums[1][:, keys], sums[2][:, keys])
            _add_gradients(per_query, per_key, results, mask)
        for sum_ZLK, gradient_AHK in zip(sums, gradients_AHK, strict=True):
            stack.cut(gradient_AHK).copy_(torch.unflatten(sum_ZLK, 0, (stack.num_samples, -1)))
    dq_NHK, dk_NHK, dv_NHK = (_take_rows(x_AHK, place_of_token, padding) for x_AHK in gradients_AHK)
    return dq_NHK, dk_NHK, dv_NHK


def _add_gradients(
    per_query: tuple[Tensor, Tensor, Tensor],
    per_key: tuple[Tensor, Tensor],
    results: tuple[Tensor, Tensor, Tensor],
    mask_QS: Tensor | None,
) -> None:
    """Sets dq and adds to dk and dv of one attention, in chunks of Z and Q; the weights are computed again."""
    q_ZQK, grad_ZQK, mean_ZQ1 = per_query
    k_ZSK, v_ZSK = per_key
    dq_ZQK, dk_ZSK, dv_ZSK = results
    num_heads, num_queries, num_channels = q_ZQK.shape
    num_keys = k_ZSK.shape[1]
    step_q = min(num_queries, max(1, SCORES_PER_CHUNK // num_keys))
    step_z = max(1, SCORES_PER_CHUNK // (num_keys * step_q))
    for first_head, first_query in itertools.product(range(0, num_heads, step_z), range(0, num_queries, step_q)):
        heads, queries = slice(first_head, first_head + step_z), slice(first_query, first_query + step_q)
        q, grad = q_ZQK[heads, queries] * num_channels**-0.5, grad_ZQK[heads, queries]
        k, v = k_ZSK[heads], v_ZSK[heads]
        scores = q @ k.mT
        if mask_QS is not None:
            scores.masked_fill_(~mask_QS[queries], float("-inf"))
        weights = scores.softmax(dim=-1)
        dscores = (grad @ v.mT).sub_(mean_ZQ1[heads, queries]).mul_(weights)
        dq_ZQK[heads, queries] = (dscores @ k).mul_(num_channels**-0.5)
        dk_ZSK[heads] += dscores.mT @ q
        dv_ZSK[heads] += weights.mT @ grad


def _samples_by_shape(segments_M4: IntArray, row_tokens: int) -> Iterator[tuple[int, IntArray, IntArray]]:
    """Yields (image tokens, flat start of each sample, length of each sample) per stack."""
    row, start, num_image, length = segments_M4.T
    bucket = -(-(length - num_image) // TEXT_BUCKET_TOKENS)
    for image_tokens, text_bucket in np.unique(np.stack([num_image, bucket], axis=1), axis=0):
        chosen = (num_image == image_tokens) & (bucket == text_bucket)
        yield int(image_tokens), (row * row_tokens + start)[chosen], length[chosen]


def _lists(index: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    return torch.split(index, table[:4].tolist())


def _stacks(table: Tensor) -> Iterator[_Stack]:
    begin = 0
    for num_samples, num_image, num_text in table[4:].view(-1, 3).tolist():
        end = begin + num_samples * (num_image + num_text)
        yield _Stack(slice(begin, end), num_samples, num_image, num_text)
        begin = end


def _take_rows(x: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    if not len(x):
        return x.new_zeros(len(index), *x.shape[1:])
    return x.index_select(0, index).index_fill_(0, empty, 0)


def _define(
    name: str,
    schema: str,
    compute: Callable[..., Any],
    shapes: Callable[..., Any],
    differentiate: Callable[..., Any] | None = None,
) -> Any:
    """The operator, its name ending in this module's.

    Operators live in one table per process, also those of other copies of this file, which exported models bring.
    """
    name = re.sub(r"\W", "_", f"{name}_{__name__}")
    if not hasattr(torch.ops.genlip, name):
        # `torch.library.custom_op` would be shorter, but its first call loads the whole compiler.
        torch.library.define(f"genlip::{name}", schema)
        torch.library.impl(f"genlip::{name}", "default", compute)
        torch.library.register_fake(f"genlip::{name}", shapes)
        if differentiate is not None:
            torch.library.register_autograd(f"genlip::{name}", differentiate, setup_context=_save)
    return getattr(torch.ops.genlip, name).default


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _differentiate(ctx: Any, grad_NHK: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, index, table, out = ctx.saved_tensors
    return *stacked_attention_backward(grad_NHK, q, k, v, out, index, table), None, None


stacked_attention = _define(
    "stacked_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor index, Tensor table) -> Tensor",
    _forward,
    lambda q, k, v, index, table: _like(q),
    _differentiate,
)
stacked_attention_backward = _define(
    "stacked_attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor index, Tensor table) -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda grad, q, k, v, out, index, table: (_like(q), _like(k), _like(v)),
)
