"""Log-probabilities of given captions, with the image prefix computed once per image.

Shape legend: G images with equal numbers of patches, n candidates, E and M tokens of a tree of candidates (see
`text_tree.py`), L prefix tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import Prefix, additive_mask, append_tokens, check_ids, group_by, inference, prefill, prefill_text
from .errors import ModelError
from .loss import token_log_probs
from .modeling_genlip import GenLIP, ImagePatches
from .text_tree import TextTree, plan_trees

# Candidate tokens run at a time behind each prefix. Each is compared with all the others (a mask takes out those of
# other candidates), so more costs attention; fewer makes small matrices.
TREE_TOKENS = 256


def score_captions(
    model: GenLIP,
    images: Sequence[ImagePatches],
    prompt_ids: Sequence[int],
    candidates: Sequence[Sequence[int]],
    max_tokens: int = 16384,
) -> Tensor:
    """Summed log P(candidate tokens | image, prompt), float32 [images, candidates] on the CPU.

    Candidates cost what their distinct beginnings cost: a template that many of them share is run once per image.

    Args:
        model: any device; left in the mode it was in.
        images: (patches, grid) pairs from ImageProcessor.patches.
        prompt_ids: ids of the prompt.
        candidates: token ids of every caption; whether they contain the ending is the caller's choice.
        max_tokens: bounds memory: keys held at a time, prefixes included. A single image or caption may exceed it.

    Raises:
        ModelError: an empty candidate, or ids that the model does not have.
    """
    _check(prompt_ids, candidates, model.config.vocab_size)
    trees = plan_trees(candidates, TREE_TOKENS)
    largest = max((tree.num_inner for tree in trees), default=0)
    scores = torch.empty(len(images), len(candidates))
    with inference(model):
        for group in group_by([len(patches) for patches, _ in images]):
            num_prefix = len(images[group[0]][0]) + len(prompt_ids)
            batch_size = max(1, max_tokens // (num_prefix + largest))
            for begin in range(0, len(group), batch_size):
                batch = group[begin : begin + batch_size]
                scores[batch] = _score_behind(model, prefill(model, [images[i] for i in batch], prompt_ids), trees)
    return scores


def score_unconditional(
    model: GenLIP, prompt_ids: Sequence[int], candidates: Sequence[Sequence[int]], grid: tuple[int, int]
) -> Tensor:
    """Summed log P(candidate tokens | prompt) with the image masked out, float32 [candidates] on the CPU.

    The text keeps the positions it has behind an image of this grid, so the difference to `score_captions` is what
    the image tells about the caption: the information gain.

    Raises:
        ModelError: no prompt, an empty candidate, or ids that the model does not have.
    """
    _check(prompt_ids, candidates, model.config.vocab_size)
    with inference(model):
        prefix = prefill_text(model, prompt_ids, first_position=max(grid))
        return _score_behind(model, prefix, plan_trees(candidates, TREE_TOKENS))[0]


def _check(prompt_ids: Sequence[int], candidates: Sequence[Sequence[int]], vocab_size: int) -> None:
    check_ids("the prompt", prompt_ids, vocab_size)
    for number, candidate in enumerate(candidates):
        if not len(candidate):
            raise ModelError(f"candidate {number} has no tokens; add the ending ids or drop it")
        check_ids(f"candidate {number}", candidate, vocab_size)


def _score_behind(model: GenLIP, prefix: Prefix, trees: Sequence[TextTree]) -> Tensor:
    """[G, candidates]."""
    scores = torch.empty(len(prefix.last_GD), sum(len(tree.texts) for tree in trees))
    num_prefix = prefix.cache.num_tokens
    for tree in trees:
        # In float64 on the CPU, because float32 products may be rounded (TF32, autocast).
        log_probs_GE = _score_tokens(model, prefix, tree).cpu().double()
        scores[:, tree.texts] = (log_probs_GE @ tree.is_part_nE.T.double()).float()
        prefix.cache.num_tokens = num_prefix
    return scores


def _score_tokens(model: GenLIP, prefix: Prefix, tree: TextTree) -> Tensor:
    """log P of every token of the tree, [G, E]."""
    device, num_prefixes = model.device, len(prefix.last_GD)
    hidden = prefix.last_GD.unsqueeze(1)
    if tree.num_inner:
        positions_GM = prefix.next_position_G.unsqueeze(1) + tree.inner_depth_M.to(device)
        sees_prefix_ML = torch.ones(tree.num_inner, prefix.cache.num_tokens, dtype=torch.bool)
        mask = additive_mask(torch.cat([sees_prefix_ML, tree.sees_MM], dim=1).to(device), hidden.dtype)
        ids_GM = tree.inner_ids_M.to(device).expand(num_prefixes, -1)
        hidden = torch.cat([hidden, append_tokens(model, prefix.cache, ids_GM, positions_GM, mask)], dim=1)
    sources = model.project(hidden)[:, tree.source_E.to(device)].flatten(0, 1)
    targets = tree.token_ids_E.to(device).repeat(num_prefixes)
    log_probs = token_log_probs(sources, targets, model.lm_head, model.config.vocab_size)
    return log_probs.view(num_prefixes, -1)
