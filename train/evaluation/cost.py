"""What scoring texts by likelihood costs, said before it is paid."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.baselines import flops_per_sample
from model.modeling_genlip import ImagePatches
from model.scoring import TREE_TOKENS
from model.text_tree import plan_trees
from train.evaluation.scorers import CosineScorer, LikelihoodScorer, Scorer

_TIMED_IMAGES, _TIMED_TEXTS = 4, 128


@dataclass(frozen=True)
class Cost:
    """Of every text against every image."""

    num_images: int
    num_texts: int
    tokens_per_image: int
    """Text tokens run and scored behind each image: a beginning that texts share counts once where it is shared."""
    flops: float


def scoring_cost(scorer: LikelihoodScorer, num_images: int, num_patches: int, texts: Sequence[str]) -> Cost:
    """By the arithmetic of `model.flops_per_sample`, whose third part is the forward pass.

    Args:
        scorer: Whose model and tokenizer are used.
        num_images: How many.
        num_patches: Of one image.
        texts: Candidates.
    """
    model, num_prompt = scorer.loaded.model, len(scorer.loaded.tokenizer.prompt_ids)

    def forward(num_inner: int, num_scored: int) -> float:
        # A third of training. GenLIP reads the prompt, and tokens that it does not score.
        num_text = num_prompt + num_inner
        return flops_per_sample(model.objective, model.config, num_patches, num_text, num_scored) / 3

    trees = plan_trees([scorer.ids(text) for text in texts], TREE_TOKENS)
    prefix = forward(0, 0)
    behind = sum(forward(tree.num_inner, len(tree.token_ids_E)) - prefix for tree in trees)
    num_tokens = sum(len(tree.token_ids_E) for tree in trees)
    return Cost(num_images, len(texts), num_tokens, num_images * (prefix + behind))


def announce(
    scorer: Scorer,
    what: str,
    num_images: int,
    images: Sequence[ImagePatches],
    texts: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Say what scoring will cost, with a time that follows from a short trial.

    Args:
        scorer: What scores.
        what: The task.
        num_images: Images that will be scored.
        images: Some of them, for the trial.
        texts: What they will be scored against.
        say: Takes a line.
    """
    if isinstance(scorer, CosineScorer):
        say(f"{what}: {num_images:,} images and {len(texts):,} texts, each embedded once")
        return
    num_prior, num_patches = len(scorer.prior_images), len(images[0][0])
    cost = scoring_cost(scorer, num_images + num_prior, num_patches, texts)
    trial_images, trial_texts = images[:_TIMED_IMAGES], texts[:_TIMED_TEXTS]
    scorer.score(trial_images[:1], trial_texts[:1])  # what only the first pass does is not timed
    began = time.perf_counter()
    scorer.score(trial_images, trial_texts)
    trial = scoring_cost(scorer, len(trial_images), num_patches, trial_texts)
    flops_per_s = trial.flops / (time.perf_counter() - began)
    say(
        f"{what}: {num_images:,} images and {num_prior} for log P(T), × (a prefix of {num_patches} patches, run once,"
        f" + {cost.tokens_per_image:,} distinct tokens of {cost.num_texts:,} texts) = {cost.flops:.2g} FLOP, about"
        f" {_words(cost.flops / flops_per_s)} at {flops_per_s / 1e9:.3g} GFLOP/s"
    )


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
