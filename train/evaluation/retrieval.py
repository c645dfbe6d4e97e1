"""Which caption belongs to the image, and which image to the caption.

A model that writes ranks captions by information gain log P(T|I) - log P(T), so that a caption which is likely for any
image does not win, and beside it by log P(T|I) alone (`likelihood`); it ranks images by log P(T|I), where the text is
fixed and its own probability plays no part. A contrastive model ranks both by cosine. Identical captions answer for
each other. An image may have several captions: each of them answers it, and each asks for it; what the captions of an
image find is averaged before the mean over images.

Shape legend: I images with captions, T different texts, Q queries, D documents.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.evaluation.candidates import agreement, best
from train.evaluation.cost import announce, scoring_cost
from train.evaluation.features import Features, ImageFeatures
from train.evaluation.ranking import Mask, Scores, chance_rank, chance_recall_at, ranks
from train.evaluation.result import Better, Metric, Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.scorers import LikelihoodScorer, Scorer
from train.evaluation.spec import EvalSpec

RECALL_AT = (1, 5, 10)
MAX_PAIRS = 2**20
"""Of images and texts that a model which writes scores one by one; of more, only the candidates of two stages."""
_IMAGES_AT_A_TIME = 256


@dataclass(frozen=True)
class _Pairs:
    """Images with captions."""

    images: list[Labelled]
    places: NDArray[np.int64]
    """Of the images among all held-out ones, [I]."""
    num_heldout: int
    texts: list[str]
    positive_IT: Mask
    """Which texts are captions of which image."""


def retrieval(scorer: Scorer, data: EvalData, spec: EvalSpec, features: Features, say: Callable[[str], None]) -> Part:
    """Recall at 1, 5 and 10, mean and median rank, both ways, and what two-stage retrieval keeps of them."""
    pairs = _pairs(data)
    if len(pairs.images) < 2 or len(pairs.texts) < 2:
        return Part(notes=["retrieval: left out, since fewer than two held-out images have different captions"])
    part = Part(details={"retrieval/num_images": len(pairs.images), "retrieval/num_texts": len(pairs.texts)})
    if num_cut := scorer.num_cut(pairs.texts):
        part.notes.append(f"retrieval: {num_cut} captions longer than {scorer.max_caption_tokens} tokens were cut")
    if isinstance(scorer, LikelihoodScorer):
        _by_likelihood(part, scorer, pairs, data, spec, features, say)
    else:
        announce(scorer, "retrieval", len(pairs.images), [], pairs.texts, say)
        scores_IT = _score(scorer, pairs)
        _both_ways(part, "retrieval/", pairs, scores_IT, scores_IT)
    return part


def _by_likelihood(
    part: Part,
    scorer: LikelihoodScorer,
    pairs: _Pairs,
    data: EvalData,
    spec: EvalSpec,
    features: Features,
    say: Callable[[str], None],
) -> None:
    """Every pair, where they are not too many; and in two stages, where features choose `spec.rerank` candidates."""
    is_full = pairs.positive_IT.size <= MAX_PAIRS
    guess_IT = _first_stage(scorer, pairs, data, spec, features)
    if guess_IT is None:
        part.notes.append("retrieval: not in two stages, since no training image has a caption to learn from")
        if not is_full:
            part.notes.append(f"retrieval: left out, since more than {MAX_PAIRS:,} pairs would have to be scored")
            return
    if is_full:
        trial = scorer.images(pairs.images[: spec.batch_images])
        announce(scorer, "retrieval", len(pairs.images), trial, pairs.texts, say)
    prior_T = scorer.prior(pairs.texts)
    if is_full:
        scores_IT = _score(scorer, pairs)
        _both_ways(part, "retrieval/", pairs, scores_IT - prior_T, scores_IT)
        _image_to_text(part, "retrieval/image_to_text_likelihood_", pairs, scores_IT)
    if guess_IT is None:
        return
    texts_IT, images_IT = best(guess_IT, spec.rerank), best(guess_IT.T, spec.rerank).T
    candidates_IT = texts_IT | images_IT
    if not is_full:
        scores_IT = _rerank(scorer, pairs, candidates_IT)
    to_text_IT = np.where(texts_IT, scores_IT - prior_T, -np.inf)
    _both_ways(part, "retrieval/two_stage_", pairs, to_text_IT, np.where(images_IT, scores_IT, -np.inf))
    part.notes.append(_what_is_lost(part, scorer, pairs, candidates_IT, spec.rerank))


def _pairs(data: EvalData) -> _Pairs:
    places = [place for place, one in enumerate(data.heldout) if any(one.captions)]
    images = [data.heldout[place] for place in places]
    texts = sorted({caption for one in images for caption in one.captions if caption})
    number_of = {text: number for number, text in enumerate(texts)}
    positive_IT = np.zeros((len(images), len(texts)), bool)
    for positive_T, one in zip(positive_IT, images, strict=True):
        positive_T[[number_of[caption] for caption in one.captions if caption]] = True
    return _Pairs(images, np.array(places), len(data.heldout), texts, positive_IT)


def _score(scorer: Scorer, pairs: _Pairs) -> Scores:
    begins = range(0, len(pairs.images), _IMAGES_AT_A_TIME)
    chunks = [scorer.images(pairs.images[begin : begin + _IMAGES_AT_A_TIME]) for begin in begins]
    return np.concatenate([scorer.score(images, pairs.texts) for images in chunks])


def _both_ways(part: Part, prefix: str, pairs: _Pairs, to_text_IT: Scores, to_image_IT: Scores) -> None:
    _image_to_text(part, f"{prefix}image_to_text_", pairs, to_text_IT)
    _text_to_image(part, f"{prefix}text_to_image_", pairs, to_image_IT)


def _image_to_text(part: Part, prefix: str, pairs: _Pairs, scores_IT: Scores) -> None:
    _measure(part, prefix, pairs, scores_IT, pairs.positive_IT, lambda values_I: values_I)


def _text_to_image(part: Part, prefix: str, pairs: _Pairs, scores_IT: Scores) -> None:
    num_captions_I = pairs.positive_IT.sum(axis=1)

    def of_images(values_T: Scores) -> Scores:
        return np.asarray(pairs.positive_IT @ values_T / num_captions_I, np.float64)

    _measure(part, prefix, pairs, scores_IT.T, pairs.positive_IT.T, of_images)


def _measure(
    part: Part, prefix: str, pairs: _Pairs, scores_QD: Scores, positive_QD: Mask, of_images: Callable[[Scores], Scores]
) -> None:
    """Of queries whose values `of_images` turns into values of the images."""
    ranks_Q = ranks(scores_QD, positive_QD).astype(np.float64)
    found = {f"r{k}": ((ranks_Q <= k).astype(np.float64), chance_recall_at(positive_QD, k)) for k in RECALL_AT}
    found["mean_rank"] = (ranks_Q, chance_rank(positive_QD))
    for name, (values_Q, chance_Q) in found.items():
        whole = np.full(pairs.num_heldout, np.nan)
        whole[pairs.places] = of_images(values_Q)
        value, chance = float(np.nanmean(whole)), float(of_images(chance_Q).mean())
        is_rank = name == "mean_rank"
        better: Better = "lower" if is_rank else "higher"
        part.metrics[prefix + name] = Metric(value, chance, better=better, unit="rank" if is_rank else "share")
        part.per_image[prefix + name] = whole
    median = float(np.median(ranks_Q))
    part.metrics[f"{prefix}median_rank"] = Metric(median, better="lower", unit="rank")


def _what_is_lost(part: Part, scorer: LikelihoodScorer, pairs: _Pairs, candidates_IT: Mask, num_best: int) -> str:
    names = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in RECALL_AT]
    value = {name: metric.value for name, metric in part.metrics.items()}
    lost = [
        f"{name} {value[f'retrieval/{name}'] - value[f'retrieval/two_stage_{name}']:+.1%}"
        for name in names
        if f"retrieval/{name}" in value
    ]
    against = (
        f"recall lost against scoring every pair: {', '.join(lost)}"
        if lost
        else f"what they lose is measured where there are at most {MAX_PAIRS:,} pairs, by a smaller eval.max_images"
    )
    num_patches = len(scorer.images(pairs.images[:1])[0][0])
    texts_of = [[pairs.texts[number] for number in np.flatnonzero(candidates_T)] for candidates_T in candidates_IT]
    flops = sum(scoring_cost(scorer, 1, num_patches, texts).flops for texts in texts_of)
    share = flops / scoring_cost(scorer, len(pairs.images), num_patches, pairs.texts).flops
    part.details["retrieval/two_stage_share_of_flops"] = share
    return (
        f"retrieval in two stages, {num_best} candidates of each query by features: {against};"
        f" {candidates_IT.mean():.0%} of the pairs, {share:.0%} of the FLOP"
    )


def _first_stage(
    scorer: LikelihoodScorer, pairs: _Pairs, data: EvalData, spec: EvalSpec, features: Features
) -> Scores | None:
    """Agreement of texts and image features, [I, T]; None without training captions."""
    training = features.training
    if not any(one.caption for one in training.samples):
        captioned = [one for one in data.training if one.caption][: spec.probe.max_train_images]
        training = ImageFeatures(scorer.loaded, captioned, spec.batch_images)
    rows = [row for row, one in enumerate(training.samples) if one.caption]
    if not rows:
        return None
    train_ids = [scorer.caption_ids(training.samples[row].caption) for row in rows]
    text_ids = [scorer.caption_ids(text) for text in pairs.texts]
    image_ID = features.heldout.pooled_ND[pairs.places].double().numpy()
    return agreement(training.pooled_ND[rows].double().numpy(), train_ids, image_ID, text_ids)


def _rerank(scorer: LikelihoodScorer, pairs: _Pairs, candidates_IT: Mask) -> Scores:
    """log P(T|I) of the candidates alone, [I, T]; NaN elsewhere."""
    scores_IT = np.full(candidates_IT.shape, np.nan)
    for scores_T, candidates_T, one in zip(scores_IT, candidates_IT, pairs.images, strict=True):
        numbers = np.flatnonzero(candidates_T)
        scores_T[numbers] = scorer.score(scorer.images([one]), [pairs.texts[number] for number in numbers])[0]
    return scores_IT
