"""Captions by greedy decoding with a key/value cache.

Shape legend: G images decoded together, V vocabulary entries.
"""

from collections.abc import Sequence

import torch

from .cache import append_token, group_by, inference, prefill
from .errors import ModelError
from .modeling_genlip import GenLIP, ImagePatches
from .tokenizer import Tokenizer


def generate(
    model: GenLIP, images: Sequence[ImagePatches], tokenizer: Tokenizer, max_new_tokens: int = 64, batch_size: int = 32
) -> list[str]:
    """One caption per image, in order.

    Args:
        model: any device; left in the mode it was in.
        images: (patches, grid) pairs from ImageProcessor.patches.
        tokenizer: gives the prompt and the ending.
        max_new_tokens: a caption that has not ended by then is cut.
        batch_size: images decoded together at most; only images with equal numbers of patches are.
    """
    token_ids = generate_ids(model, images, tokenizer.prompt_ids, tokenizer.ending_ids[0], max_new_tokens, batch_size)
    return [tokenizer.decode(ids) for ids in token_ids]


def generate_ids(
    model: GenLIP,
    images: Sequence[ImagePatches],
    prompt_ids: Sequence[int],
    stop_id: int,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[list[int]]:
    """Greedy token ids per image, up to `stop_id` and without it."""
    if max_new_tokens < 1 or batch_size < 1:
        raise ModelError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be at least 1")
    generated: list[list[int]] = [[] for _ in images]
    with inference(model):
        for group in group_by([len(patches) for patches, _ in images]):
            for begin in range(0, len(group), batch_size):
                batch = group[begin : begin + batch_size]
                new_ids = _decode_batch(model, [images[i] for i in batch], prompt_ids, stop_id, max_new_tokens)
                for index, ids in zip(batch, new_ids, strict=True):
                    generated[index] = ids
    return generated


def _decode_batch(
    model: GenLIP, images: Sequence[ImagePatches], prompt_ids: Sequence[int], stop_id: int, max_new_tokens: int
) -> list[list[int]]:
    prefix = prefill(model, images, prompt_ids)
    steps: list[torch.Tensor] = []
    has_ended_G = torch.zeros(len(images), dtype=torch.bool, device=model.device)
    while True:
        next_G = model.lm_head(model.project(prefix.last_GD)).argmax(dim=-1)
        steps.append(next_G)
        has_ended_G |= next_G == stop_id
        if len(steps) == max_new_tokens or bool(has_ended_G.all()):
            break
        prefix = append_token(model, prefix, next_G)
    sequences: list[list[int]] = torch.stack(steps, dim=1).tolist()
    return [ids[: ids.index(stop_id)] if stop_id in ids else ids for ids in sequences]
