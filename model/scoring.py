"""Log-probabilities of given captions, with the image prefix computed once per image.

Shape legend: G images of equal grid, n candidates of one chunk, T tokens of the longest candidate, V vocabulary
entries, t text width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import Prefix, group_by, inference, prefill, prefill_text, run_continuations
from .errors import ModelError
from .loss import token_log_probs
from .modeling_genlip import GenLIP, ImagePatches


def score_captions(
    model: GenLIP,
    images: Sequence[ImagePatches],
    prompt_ids: Sequence[int],
    candidates: Sequence[Sequence[int]],
    max_tokens: int = 16384,
) -> Tensor:
    """Summed log P(candidate tokens | image, prompt), float32 [images, candidates] on the CPU.

    Args:
        model: any device; left in the mode it was in.
        images: (patches, grid) pairs from ImageProcessor.patches.
        prompt_ids: ids of the prompt.
        candidates: token ids of every caption; whether they contain the ending is the caller's choice.
        max_tokens: bounds memory: keys held at a time, prefixes included. A single caption may exceed it.

    Raises:
        ModelError: an empty candidate, or one with ids that the model does not have.
    """
    _check_candidates(candidates, model.config.vocab_size)
    scores = torch.empty(len(images), len(candidates))
    longest = max((len(candidate) for candidate in candidates), default=0)
    with inference(model):
        for group in group_by([grid for _, grid in images]):
            tokens_per_pair = len(images[group[0]][0]) + len(prompt_ids) + longest
            batch_size = max(1, max_tokens // (tokens_per_pair * max(1, len(candidates))))
            for begin in range(0, len(group), batch_size):
                batch = group[begin : begin + batch_size]
                prefix = prefill(model, [images[i] for i in batch], prompt_ids)
                scores[batch] = _score_behind(model, prefix, candidates, max_tokens)
    return scores


def score_unconditional(
    model: GenLIP,
    prompt_ids: Sequence[int],
    candidates: Sequence[Sequence[int]],
    grid: tuple[int, int],
    max_tokens: int = 16384,
) -> Tensor:
    """Summed log P(candidate tokens | prompt) with the image masked out, float32 [candidates] on the CPU.

    The text keeps the positions it has behind an image of this grid, so the difference to `score_captions` is what
    the image tells about the caption.
    """
    _check_candidates(candidates, model.config.vocab_size)
    with inference(model):
        prefix = prefill_text(model, prompt_ids, first_position=max(grid))
        return _score_behind(model, prefix, candidates, max_tokens)[0]


def _check_candidates(candidates: Sequence[Sequence[int]], vocab_size: int) -> None:
    for number, candidate in enumerate(candidates):
        if not candidate:
            raise ModelError(f"candidate {number} has no tokens; add the ending ids or drop it")
        if max(candidate) >= vocab_size:
            raise ModelError(
                f"candidate {number} has token id {max(candidate)} but the model's vocab_size is {vocab_size};"
                " encode candidates with the model's own tokenizer"
            )


def _score_behind(model: GenLIP, prefix: Prefix, candidates: Sequence[Sequence[int]], max_tokens: int) -> Tensor:
    """[G, candidates]."""
    num_prefixes, num_prefix_tokens = prefix.keys_GLHK[0].shape[:2]
    scores = torch.empty(num_prefixes, len(candidates))
    # Longest first: chunks hold similarly long candidates, and the first of a chunk says how many fit.
    order = sorted(range(len(candidates)), key=lambda i: -len(candidates[i]))
    while order:
        tokens_per_candidate = num_prefixes * (num_prefix_tokens + len(candidates[order[0]]))
        num_chosen = max(1, max_tokens // tokens_per_candidate)
        chunk, order = order[:num_chosen], order[num_chosen:]
        scores[:, chunk] = _score_chunk(model, prefix, [candidates[i] for i in chunk]).cpu()
    return scores


def _score_chunk(model: GenLIP, prefix: Prefix, candidates: Sequence[Sequence[int]]) -> Tensor:
    """[G, n]. The prefix predicts every first token; of a candidate's own tokens all but the last are run."""
    lengths = torch.tensor([len(candidate) for candidate in candidates])
    ids_nT = torch.zeros(len(candidates), int(lengths.max()), dtype=torch.int64)
    for line, candidate in zip(ids_nT, candidates, strict=True):
        line[: len(candidate)] = torch.tensor(candidate)
    is_real_nT = (torch.arange(ids_nT.shape[1]) < lengths[:, None]).to(model.device)
    ids_nT = ids_nT.to(model.device)

    vocab_size = model.config.vocab_size
    first_GV: Tensor = model.lm_head(model.project(prefix.last_GD)).float().log_softmax(dim=-1)
    scores_Gn = first_GV[:, ids_nT[:, 0]]
    if ids_nT.shape[1] == 1:
        return scores_Gn
    hidden = run_continuations(model, prefix, ids_nT[:, :-1])
    later = is_real_nT[:, 1:]
    targets = ids_nT[:, 1:][later].repeat(len(hidden))
    log_probs = token_log_probs(model.project(hidden[:, later]).flatten(0, 1), targets, model.lm_head, vocab_size)
    per_token = log_probs.new_zeros(len(hidden), *later.shape)
    per_token[:, later] = log_probs.view(len(hidden), -1)
    return scores_Gn + per_token.sum(dim=-1)
