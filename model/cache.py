"""Keys and values of a common prefix, computed once and attended to by the tokens that follow.

Shape legend: G images or prefixes, n continuations per prefix, L prefix tokens, T following tokens, H heads, K channels
of a head, D hidden width, 3 position axes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import text_mask
from .batch import NO_LABEL, EncodedSample, PackedRows, pack_rows
from .errors import ModelError
from .layers import Attend
from .modeling_genlip import GenLIP, ImagePatches


@dataclass(frozen=True)
class Prefix:
    """What G prefixes of equal length leave behind.

    Attributes:
        keys_GLHK: one tensor per layer.
        values_GLHK: one tensor per layer.
        last_GD: block output at the last token (it predicts the next one).
        next_position_G: position of the next token, the same on all three axes.
    """

    keys_GLHK: tuple[Tensor, ...]
    values_GLHK: tuple[Tensor, ...]
    last_GD: Tensor
    next_position_G: Tensor


@contextmanager
def inference(model: GenLIP) -> Iterator[None]:
    """Evaluation mode without gradients; the training mode is restored afterwards."""
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
    """One more token for every prefix, [G]; returns the longer prefix."""
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend_layer(layer: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.append(torch.cat([prefix.keys_GLHK[layer], k], dim=1))
            values.append(torch.cat([prefix.values_GLHK[layer], v], dim=1))
            return _attend(q, keys[-1], values[-1], mask=None)

        return attend

    position_ids_G31 = prefix.next_position_G[:, None, None].expand(-1, 3, 1)
    attends = [attend_layer(layer) for layer in range(model.config.num_hidden_layers)]
    x_G1D = model.run_blocks(model.embed_text(ids_G.unsqueeze(1)), position_ids_G31, attends)
    return Prefix(tuple(keys), tuple(values), x_G1D[:, -1], prefix.next_position_G + 1)


def run_continuations(model: GenLIP, prefix: Prefix, ids_nT: Tensor) -> Tensor:
    """Runs n texts behind each of the G prefixes, each blind to the others: block outputs [G, n, T, D].

    All prefixes must share `next_position_G`.
    """
    num_prefixes, num_texts, num_tokens = len(prefix.last_GD), *ids_nT.shape
    num_seen = prefix.keys_GLHK[0].shape[1]
    mask = text_mask(num_tokens, num_seen, ids_nT.device)

    def attend_layer(layer: int) -> Attend:
        def behind_prefix(prefix_GLHK: Tensor, own: Tensor) -> Tensor:
            shared = prefix_GLHK.unsqueeze(1).expand(-1, num_texts, -1, -1, -1).flatten(0, 1)
            return torch.cat([shared, own], dim=1)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = prefix.keys_GLHK[layer], prefix.values_GLHK[layer]
            return _attend(q, behind_prefix(keys, k), behind_prefix(values, v), mask)

        return attend

    position_ids_T = prefix.next_position_G[0] + torch.arange(num_tokens, device=ids_nT.device)
    attends = [attend_layer(layer) for layer in range(model.config.num_hidden_layers)]
    x = model.embed_text(ids_nT).repeat(num_prefixes, 1, 1)
    x = model.run_blocks(x, position_ids_T.expand(1, 3, -1), attends)
    return torch.unflatten(x, 0, (num_prefixes, num_texts))


def group_by(keys: Sequence[object]) -> list[list[int]]:
    """Indices with equal keys, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _prefill_rows(model: GenLIP, rows: PackedRows, next_position_G: Tensor) -> Prefix:
    rows = rows.to(model.device)
    shape = rows.input_ids_BS.shape
    packed = model.packed_attend(rows)
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        keys.append(torch.unflatten(k_NHK, 0, shape))
        values.append(torch.unflatten(v_NHK, 0, shape))
        return packed(q_NHK, k_NHK, v_NHK)

    attends = [attend] * model.config.num_hidden_layers
    x_ND = model.run_blocks(model.embed_rows(rows), rows.position_ids_B3S, attends)
    last_GD = torch.unflatten(x_ND, 0, shape)[:, -1]
    return Prefix(tuple(keys), tuple(values), last_GD, next_position_G.to(model.device))


def _attend(q_NTHK: Tensor, k_NSHK: Tensor, v_NSHK: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_NTHK, k_NSHK, v_NSHK))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
