"""Captions from a model: greedy, sampled, or by beam search.

Shape legend: G images decoded together, V vocabulary entries.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .beam_search import beam_search
from .cache import Prefix, append_token, check_ids, group_by, inference, prefill
from .errors import ModelError
from .modeling_genlip import GenLIP, ImagePatches
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; without arguments: greedily.

    Attributes:
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        top_p: draws only from the fewest likeliest tokens that together have this probability (the nucleus of
            Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
        num_beams: hypotheses kept by beam search; 1 is no search.
        length_penalty: beam search ranks by log P / length ** length_penalty: 0 by log P, 1 by its mean per token.
        seed: of the draws. Each image has draws of its own, which depend on the seed and the image alone.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        valid = {
            "temperature (0 or more)": 0 <= self.temperature < float("inf"),
            "top_p (above 0, at most 1)": 0 < self.top_p <= 1,
            "num_beams (at least 1)": self.num_beams >= 1,
            "length_penalty (0 or more)": 0 <= self.length_penalty < float("inf"),
            "seed (0 or more)": self.seed >= 0,
        }
        for what, is_valid in valid.items():
            if not is_valid:
                raise ModelError(f"decoding: {what} is {getattr(self, what.split()[0])}")
        if self.num_beams > 1 and self.temperature > 0:
            raise ModelError(
                f"decoding: num_beams {self.num_beams} with temperature {self.temperature}; beam search does not draw"
                " tokens, so set temperature to 0, or num_beams to 1"
            )


GREEDY = Decoding()


def generate(
    model: GenLIP,
    images: Sequence[ImagePatches],
    tokenizer: Tokenizer,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    decoding: Decoding = GREEDY,
) -> list[str]:
    """One caption per image, in order.

    Args:
        model: any device; left in the mode it was in.
        images: (patches, grid) pairs from ImageProcessor.patches.
        tokenizer: gives the prompt and the ending.
        max_new_tokens: a caption that has not ended by then is cut.
        batch_size: images decoded together at most; only images with equal numbers of patches are.
        decoding: how tokens are chosen.

    Raises:
        ModelError: max_new_tokens or batch_size below 1, or a tokenizer with ids that the model does not have.
    """
    stop_id = tokenizer.ending_ids[0]
    token_ids = generate_ids(model, images, tokenizer.prompt_ids, stop_id, max_new_tokens, batch_size, decoding)
    return [tokenizer.decode(ids) for ids in token_ids]


def generate_ids(
    model: GenLIP,
    images: Sequence[ImagePatches],
    prompt_ids: Sequence[int],
    stop_id: int,
    max_new_tokens: int,
    batch_size: int = 32,
    decoding: Decoding = GREEDY,
) -> list[list[int]]:
    """Token ids per image, up to `stop_id` and without it; see `generate`."""
    if max_new_tokens < 1 or batch_size < 1:
        raise ModelError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be at least 1")
    check_ids("the prompt", prompt_ids, model.config.vocab_size)
    generated: list[list[int]] = [[] for _ in images]
    with inference(model):
        for group in group_by([len(patches) for patches, _ in images]):
            for begin in range(0, len(group), batch_size):
                batch = group[begin : begin + batch_size]
                new_ids = _decode_batch(
                    model, [images[i] for i in batch], prompt_ids, stop_id, max_new_tokens, decoding
                )
                for index, ids in zip(batch, new_ids, strict=True):
                    generated[index] = ids[: ids.index(stop_id)] if stop_id in ids else ids
    return generated


def _decode_batch(
    model: GenLIP,
    images: Sequence[ImagePatches],
    prompt_ids: Sequence[int],
    stop_id: int,
    max_new_tokens: int,
    decoding: Decoding,
) -> list[list[int]]:
    """Token ids per image; what follows a `stop_id` has no meaning."""
    prefix = prefill(model, images, prompt_ids)
    if decoding.num_beams > 1:
        return beam_search(model, prefix, stop_id, max_new_tokens, decoding.num_beams, decoding.length_penalty)
    draws_GT = None
    if decoding.temperature > 0:
        draws = np.stack([_draws(image, decoding.seed, max_new_tokens) for image in images])
        draws_GT = torch.from_numpy(draws).to(model.device)
    return _token_by_token(model, prefix, stop_id, max_new_tokens, decoding, draws_GT)


def _token_by_token(
    model: GenLIP, prefix: Prefix, stop_id: int, max_new_tokens: int, decoding: Decoding, draws_GT: Tensor | None
) -> list[list[int]]:
    steps: list[Tensor] = []
    has_ended_G = torch.zeros(len(prefix.last_GD), dtype=torch.bool, device=model.device)
    while True:
        logits_GV = model.lm_head(model.project(prefix.last_GD)).float()
        if draws_GT is None:
            next_G = logits_GV.argmax(dim=-1)
        else:
            next_G = sample(logits_GV / decoding.temperature, decoding.top_p, draws_GT[:, len(steps)])
        steps.append(next_G)
        has_ended_G |= next_G == stop_id
        if len(steps) == max_new_tokens or bool(has_ended_G.all()):
            break
        prefix = append_token(model, prefix, next_G)
    token_ids: list[list[int]] = torch.stack(steps, dim=1).tolist()
    return token_ids


def sample(logits_GV: Tensor, top_p: float, draw_G: Tensor) -> Tensor:
    """One token per line from the nucleus of softmax(logits), [G].

    Args:
        logits_GV: float32.
        top_p: probability that the nucleus reaches.
        draw_G: float64 uniform in [0, 1); picks the token by inverting the cumulative distribution.
    """
    probs_GV, ids_GV = logits_GV.softmax(dim=-1).double().sort(dim=-1, descending=True, stable=True)
    up_to_GV = probs_GV.cumsum(dim=-1)
    # A token is in the nucleus if those before it do not reach top_p; the first always is.
    num_nucleus_G1 = ((up_to_GV - probs_GV) < top_p).sum(dim=-1, keepdim=True)
    mass_G1 = up_to_GV.gather(1, num_nucleus_G1 - 1)
    # A draw below 1 times the mass stays below the mass in float64, so the place is in the nucleus.
    place_G1 = torch.searchsorted(up_to_GV, draw_G.unsqueeze(1) * mass_G1, right=True)
    return ids_GV.gather(1, place_G1).squeeze(1)


def _draws(image: ImagePatches, seed: int, num_draws: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Uniform numbers that depend on nothing but the image and the seed, so that batches do not matter."""
    patches, grid = image
    digest = hashlib.blake2b(np.ascontiguousarray(patches).tobytes(), digest_size=16, key=repr(grid).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest)]).random(num_draws)
