"""Keys and values of a common prefix, computed once and attended to by the tokens that follow.

What follows may be a tree: several continuations share one cache, and a mask says which of the tokens behind the prefix
are a token's own past. So neither the prefix nor a common beginning is ever copied.

Shape legend: G images or prefixes, L prefix tokens, M new tokens, S filled slots of the cache, H heads, K channels of a
head, D hidden width, 3 position axes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import NO_LABEL, EncodedSample, PackedRows, pack_rows
from .errors import ModelError
from .layers import Attend
from .modeling_genlip import GenLIP, ImagePatches

# Buffers are allocated in steps of this many tokens.
GROWTH_TOKENS = 64


@dataclass
class LayerCache:
    """Keys and values of one layer, [G, H, capacity, K]; None until the first tokens arrive."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def write(self, k_GMHK: Tensor, v_GMHK: Tensor, begin: int) -> tuple[Tensor, Tensor]:
        """Puts M tokens into the slots from `begin` on; returns the keys and values up to them, [G, H, S, K]."""
        end = begin + k_GMHK.shape[1]
        self.keys = _with_room(self.keys, k_GMHK, begin, end)
        self.values = _with_room(self.values, v_GMHK, begin, end)
        self.keys[:, :, begin:end] = k_GMHK.transpose(1, 2)
        self.values[:, :, begin:end] = v_GMHK.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]


def _with_room(buffer: Tensor | None, like_GMHK: Tensor, num_filled: int, needed: int) -> Tensor:
    if buffer is not None and buffer.shape[2] >= needed:
        return buffer
    num_prefixes, _, num_heads, channels = like_GMHK.shape
    capacity = -(-needed // GROWTH_TOKENS) * GROWTH_TOKENS
    larger = like_GMHK.new_empty(num_prefixes, num_heads, capacity, channels)
    if buffer is not None:
        larger[:, :, :num_filled] = buffer[:, :, :num_filled]
    return larger


@dataclass
class Cache:
    """Keys and values of all layers, grown in place.

    Attributes:
        layers: one entry per block.
        num_tokens: filled slots, S. Setting it back forgets the tokens behind.
    """

    layers: list[LayerCache]
    num_tokens: int


@dataclass(frozen=True)
class Prefix:
    """G prefixes of equal length, ready to be continued.

    Attributes:
        cache: keys and values of their tokens.
        last_GD: block output at the last token (it predicts the next one).
        next_position_G: position of the next token, the same on all three axes.
    """

    cache: Cache
    last_GD: Tensor
    next_position_G: Tensor


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the training mode is restored afterwards.

    Not torch's inference mode, whose tensors cannot take part in the training of a probe.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def prefill(model: GenLIP, images: Sequence[ImagePatches], prompt_ids: Sequence[int]) -> Prefix:
    """The prefix image + prompt of images that have the same number of patches."""
    samples = [EncodedSample(patches, grid, prompt_ids, caption_ids=()) for patches, grid in images]
    rows = pack_rows([[sample] for sample in samples], samples[0].num_tokens)
    starts = [max(sample.grid) + len(prompt_ids) for sample in samples]
    return _prefill_rows(model, rows, torch.tensor(starts))


def prefill_text(model: GenLIP, prompt_ids: Sequence[int], first_position: int) -> Prefix:
    """The prefix of a prompt alone, at the positions it would have after an image: G = 1."""
    if not prompt_ids:
        raise ModelError("a text-only prefix needs at least one prompt token to predict the next one from")
    ids_BS = torch.tensor([list(prompt_ids)])
    positions_S = first_position + torch.arange(ids_BS.shape[1])
    side = model.config.patch_size
    rows = PackedRows.from_tensors(
        input_ids_BS=ids_BS,
        labels_BS=torch.full_like(ids_BS, NO_LABEL),
        position_ids_B3S=positions_S.expand(1, 3, -1),
        sample_ids_BS=torch.zeros_like(ids_BS),
        image_mask_BS=torch.zeros_like(ids_BS, dtype=torch.bool),
        pixel_values=torch.zeros(0, model.config.num_channels, side, side),
        patch_size=side,
    )
    return _prefill_rows(model, rows, positions_S[-1:] + 1)


def append_token(model: GenLIP, prefix: Prefix, ids_G: Tensor) -> Prefix:
    """One more token for every prefix, [G]; returns the longer prefix. The cache of the given one grows with it."""
    x_GMD = append_tokens(model, prefix.cache, ids_G.unsqueeze(1), prefix.next_position_G.unsqueeze(1), mask=None)
    return Prefix(prefix.cache, x_GMD[:, -1], prefix.next_position_G + 1)


def append_tokens(model: GenLIP, cache: Cache, ids_GM: Tensor, positions_GM: Tensor, mask: Tensor | None) -> Tensor:
    """Runs M new tokens behind each prefix and keeps their keys and values: block outputs [G, M, D].

    Args:
        model: the model that filled the cache.
        cache: grows by M tokens.
        ids_GM: the same tokens behind all prefixes may be an expanded view.
        positions_GM: their positions, the same on all three axes.
        mask: what the new tokens see of the S + M slots, themselves included, as scores to add (0 or -inf); any shape
            that broadcasts to [G, H, M, S + M]. None: everything, which is right for a single token.
    """
    begin = cache.num_tokens

    def attend_layer(layer: LayerCache) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = layer.write(k, v, begin)
            return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask).transpose(1, 2)

        return attend

    position_ids_G3M = positions_GM.unsqueeze(1).expand(-1, 3, -1)
    attends = [attend_layer(layer) for layer in cache.layers]
    x_GMD = model.run_blocks(model.embed_text(ids_GM), position_ids_G3M, attends)
    cache.num_tokens += ids_GM.shape[1]
    return x_GMD


def additive_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Booleans as scores to add, made once for all layers: 0 where true, -inf where false."""
    return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, -torch.inf)


def group_by(keys: Sequence[object]) -> list[list[int]]:
    """Indices with equal keys, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def check_ids(what: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuses ids that the model does not have."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ModelError(
                f"{what} has token id {token_id} but the model has ids 0 to {vocab_size - 1} (its vocab_size is"
                f" {vocab_size}); encode with the model's own tokenizer"
            )


def _prefill_rows(model: GenLIP, rows: PackedRows, next_position_G: Tensor) -> Prefix:
    rows = rows.to(model.device)
    shape = rows.input_ids_BS.shape
    packed = model.packed_attend(rows)

    def attend_layer(layer: LayerCache) -> Attend:
        def attend(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
            layer.write(torch.unflatten(k_NHK, 0, shape), torch.unflatten(v_NHK, 0, shape), begin=0)
            return packed(q_NHK, k_NHK, v_NHK)

        return attend

    cache = Cache([LayerCache() for _ in range(model.config.num_hidden_layers)], num_tokens=shape[1])
    attends = [attend_layer(layer) for layer in cache.layers]
    x_ND = model.run_blocks(model.embed_rows(rows), rows.position_ids_B3S, attends)
    last_GD = torch.unflatten(x_ND, 0, shape)[:, -1]
    if not bool(last_GD.isfinite().all()):
        raise ModelError(
            "the model's output is not finite: its weights are damaged, or too large for the number format; use an"
            " earlier checkpoint, or float32 or bfloat16"
        )
    return Prefix(cache, last_GD, next_position_G.to(model.device))
