"""Beam search behind a prefix that all beams of an image share.

The tokens tried so far form a tree in the cache. A beam is a path through it, kept as a mask over the cache's slots, so
choosing new beams reorders masks and never keys or values.

Shape legend: G images, n beams of an image, V vocabulary entries, T tokens of a hypothesis, L prefix tokens, S slots
behind the prefix, D hidden width, C = 2n candidates for the next beams.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import Prefix, additive_mask, append_tokens
from .modeling_genlip import GenLIP


@dataclass
class Beams:
    """The hypotheses that have not ended.

    Attributes:
        total_Gn: log P of each; -inf where there is none.
        ids_GnT: their tokens; columns not reached yet are 0.
        sees_GnS: the cache slots of their tokens.
        is_greedy_G: beam 0 is the greedy hypothesis (until that has ended).
    """

    total_Gn: Tensor
    ids_GnT: Tensor
    sees_GnS: Tensor
    is_greedy_G: Tensor

    @classmethod
    def empty(cls, num_images: int, num_beams: int, max_new_tokens: int, device: torch.device) -> "Beams":
        """One hypothesis without tokens per image."""
        total_Gn = torch.full((num_images, num_beams), -torch.inf, device=device)
        total_Gn[:, 0] = 0
        return cls(
            total_Gn,
            torch.zeros(num_images, num_beams, max_new_tokens, dtype=torch.int64, device=device),
            torch.zeros(num_images, num_beams, max_new_tokens * num_beams, dtype=torch.bool, device=device),
            torch.ones(num_images, dtype=torch.bool, device=device),
        )


@dataclass
class Best:
    """The best hypothesis of each image among those that have ended or were cut."""

    score_G: Tensor
    ids_GT: Tensor

    @classmethod
    def nothing(cls, ids_GT: Tensor) -> "Best":
        """Before any hypothesis has ended; `ids_GT` gives the shape."""
        return cls(torch.full((len(ids_GT),), -torch.inf, device=ids_GT.device), torch.zeros_like(ids_GT))

    def update(self, score_Gn: Tensor, ids_GnT: Tensor) -> None:
        """Takes over what scores higher."""
        score_G, place_G = score_Gn.max(dim=1)
        is_better_G = score_G > self.score_G
        ids_GT = ids_GnT[torch.arange(len(place_G), device=place_G.device), place_G]
        self.score_G = torch.where(is_better_G, score_G, self.score_G)
        self.ids_GT = torch.where(is_better_G.unsqueeze(1), ids_GT, self.ids_GT)


def beam_search(
    model: GenLIP, prefix: Prefix, stop_id: int, max_new_tokens: int, num_beams: int, length_penalty: float
) -> list[list[int]]:
    """The best hypothesis found for each prefix, by log P / length ** length_penalty with the ending counted in both.

    An ending counts if it is among the `num_beams` best candidates of its step. The greedy hypothesis is never dropped,
    so the result never scores lower than it. The search of an image goes on until that has ended and no hypothesis that
    is still growing scores, at its present length, above the best that has ended.

    Returns:
        Token ids per prefix, with the stop_id unless the hypothesis was cut at max_new_tokens; what follows the
        stop_id has no meaning.
    """
    num_images = len(prefix.last_GD)
    beams = Beams.empty(num_images, num_beams, max_new_tokens, prefix.last_GD.device)
    best = Best.nothing(beams.ids_GnT[:, 0])
    hidden_GnD = prefix.last_GD.unsqueeze(1).expand(-1, num_beams, -1)
    for step in range(max_new_tokens):
        log_probs_GnV: Tensor = model.lm_head(model.project(hidden_GnD)).float().log_softmax(dim=-1)
        _extend(beams, best, log_probs_GnV, step, stop_id, length_penalty)
        alive_Gn = beams.total_Gn / (step + 1) ** length_penalty
        if step + 1 == max_new_tokens:
            best.update(alive_Gn, beams.ids_GnT)
            break
        is_done_G = ~beams.is_greedy_G & (alive_Gn.amax(dim=1) <= best.score_G)
        if bool(is_done_G.all()):
            break
        # Without beams, an image waits for the others unchanged.
        beams.total_Gn.masked_fill_(is_done_G.unsqueeze(1), -torch.inf)
        hidden_GnD = _run(model, prefix, beams, step)
    token_ids: list[list[int]] = best.ids_GT.tolist()
    return token_ids


def _extend(beams: Beams, best: Best, log_probs_GnV: Tensor, step: int, stop_id: int, length_penalty: float) -> None:
    """One more token for every beam; candidates that end go to `best`."""
    num_images, num_beams, vocab_size = log_probs_GnV.shape
    rank_GnV = beams.total_Gn.unsqueeze(2) + log_probs_GnV
    # The greedy candidate comes first whatever its rank.
    likeliest_G = log_probs_GnV[:, 0].argmax(dim=-1)
    image_G = torch.arange(num_images, device=likeliest_G.device)
    rank_GnV[image_G, 0, likeliest_G] += torch.where(beams.is_greedy_G, torch.inf, 0.0)

    # A beam ends in one way only, so of 2n candidates at least n go on.
    place_GC = rank_GnV.flatten(1).topk(min(2, vocab_size) * num_beams, dim=1).indices
    beam_GC = place_GC // vocab_size
    total_GC = beams.total_Gn.gather(1, beam_GC) + log_probs_GnV.flatten(1).gather(1, place_GC)
    ids_GCT = _take(beams.ids_GnT, beam_GC)
    ids_GCT[:, :, step] = place_GC % vocab_size
    has_ended_GC = ids_GCT[:, :, step] == stop_id
    score_GC = total_GC / (step + 1) ** length_penalty
    best.update(score_GC.masked_fill(~has_ended_GC, -torch.inf)[:, :num_beams], ids_GCT[:, :num_beams])

    # Stable: candidates stay in order, so the greedy one stays first.
    kept_Gn = has_ended_GC.to(torch.int8).argsort(dim=1, stable=True)[:, :num_beams]
    beams.is_greedy_G &= ~has_ended_GC[:, 0]
    beams.total_Gn = total_GC.masked_fill(has_ended_GC, -torch.inf).gather(1, kept_Gn)
    beams.ids_GnT = _take(ids_GCT, kept_Gn)
    beams.sees_GnS = _take(beams.sees_GnS, beam_GC.gather(1, kept_Gn))
    slots = torch.arange(num_beams, device=kept_Gn.device)
    beams.sees_GnS[:, slots, step * num_beams + slots] = True


def _run(model: GenLIP, prefix: Prefix, beams: Beams, step: int) -> Tensor:
    """Runs the newest token of every beam: block outputs [G, n, D]."""
    num_images, num_beams = beams.total_Gn.shape
    sees_own_GnS = beams.sees_GnS[:, :, : (step + 1) * num_beams]
    num_prefix = prefix.cache.num_tokens - step * num_beams
    sees_prefix_GnL = sees_own_GnS.new_ones(num_images, num_beams, num_prefix)
    mask = additive_mask(torch.cat([sees_prefix_GnL, sees_own_GnS], dim=2), prefix.last_GD.dtype).unsqueeze(1)
    positions_Gn = (prefix.next_position_G + step).unsqueeze(1).expand(-1, num_beams)
    return append_tokens(model, prefix.cache, beams.ids_GnT[:, :, step], positions_Gn, mask)


def _take(x_GnT: Tensor, place_GC: Tensor) -> Tensor:
    """Lines of every image by number, [G, C, T]."""
    return x_GnT.gather(1, place_GC.unsqueeze(2).expand(-1, -1, x_GnT.shape[2]))
