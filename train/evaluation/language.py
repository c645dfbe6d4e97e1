"""How well a model that writes predicts held-out captions, and whether it knows how sure it may be.

Shape legend: I images with captions, L predicted tokens of a batch, N those of all captions, V vocabulary entries.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from model import EncodedSample, pack_rows
from model.cache import inference
from train.evaluation.ranking import Scores
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.scorers import LikelihoodScorer
from train.evaluation.spec import EvalSpec

NUM_BINS = 15
"""Of confidence, equally wide, as usual since Guo et al. 2017."""


@dataclass
class _Tokens:
    """What the model said of each predicted token, in order."""

    ids: list[NDArray[np.int64]] = field(default_factory=list)
    losses: list[Scores] = field(default_factory=list)
    best: list[NDArray[np.int64]] = field(default_factory=list)
    """The most likely token in its place."""
    confidence: list[Scores] = field(default_factory=list)
    """Its probability."""


def language(scorer: LikelihoodScorer, data: EvalData, spec: EvalSpec) -> Part:
    """Loss of all held-out captions, endings included, per token, byte and word; calibration of the likeliest token.

    The loss per byte and per word also counts the endings' loss: it is that of the caption as a whole. A model that
    knows nothing gives every token of its vocabulary the same probability; `unigram_nats_per_token` is what the
    frequencies of tokens in training captions reach.
    """
    places = [place for place, one in enumerate(data.heldout) if any(one.captions)]
    images = [data.heldout[place] for place in places]
    if not images:
        return Part(notes=["language: left out, since no held-out image has a caption"])
    tokens = _predict(scorer, images, spec.batch_images)
    texts_of = [[caption for caption in one.captions if caption] for one in images]
    ids_of = [[scorer.ids(text) for text in texts] for texts in texts_of]
    part = Part()
    if num_cut := scorer.num_cut([text for texts in texts_of for text in texts]):
        part.notes.append(f"language: {num_cut} captions longer than {scorer.max_caption_tokens} tokens were cut")
    sizes = {
        "token": np.array([sum(map(len, ids)) for ids in ids_of], np.float64),
        "byte": np.array([sum(len(scorer.seen(text).encode()) for text in texts) for texts in texts_of], np.float64),
        "word": np.array([sum(len(scorer.seen(text).split()) for text in texts) for texts in texts_of], np.float64),
    }
    ends = np.cumsum(sizes["token"]).astype(np.int64)
    losses_I = np.add.reduceat(np.concatenate(tokens.losses), [0, *ends[:-1]])
    uniform = float(np.log(scorer.loaded.tokenizer.vocab_size))
    for name, sizes_I in sizes.items():
        ratio = losses_I.sum() / sizes_I.sum()
        chance = uniform * sizes["token"].sum() / sizes_I.sum()
        part.metrics[f"language/nats_per_{name}"] = Metric(float(ratio), float(chance), better="lower", unit="nats")
        part.per_image[f"language/nats_per_{name}"] = _of_images(losses_I, sizes_I, places, len(data.heldout))
        part.details[f"language/num_{name}s"] = int(sizes_I.sum())
    _derive(part, tokens, data, scorer)
    return part


def _predict(scorer: LikelihoodScorer, images: Sequence[Labelled], batch_images: int) -> _Tokens:
    loaded, tokens = scorer.loaded, _Tokens()
    model: Any = loaded.model
    for begin in range(0, len(images), batch_images):
        batch = images[begin : begin + batch_images]
        encoded = [
            EncodedSample(*image, loaded.tokenizer.prompt_ids, scorer.ids(caption))
            for one, image in zip(batch, scorer.images(batch), strict=True)
            for caption in one.captions
            if caption
        ]
        rows = pack_rows([encoded], sum(sample.num_tokens for sample in encoded)).to(model.device)
        with inference(model), _watch_head(model.lm_head, tokens):
            out = model(rows)
        tokens.losses.append(out.token_losses_L.cpu().numpy().astype(np.float64))
        tokens.ids.append(rows.input_ids_BS.flatten()[rows.label_index_L].cpu().numpy())
    return tokens


@contextmanager
def _watch_head(head: nn.Module, tokens: _Tokens) -> Iterator[None]:
    """Notes the likeliest token and its probability wherever the loss asks the head; the logits are not kept."""

    def note(head: nn.Module, args: tuple[Tensor, ...], logits_LV: Tensor) -> None:
        logits_LV = logits_LV.float()
        top_L, best_L = logits_LV.max(dim=-1)
        tokens.best.append(best_L.cpu().numpy())
        tokens.confidence.append((top_L - logits_LV.logsumexp(dim=-1)).exp().cpu().numpy().astype(np.float64))

    hook = head.register_forward_hook(note)
    try:
        yield
    finally:
        hook.remove()


def _of_images(losses_I: Scores, sizes_I: Scores, places: Sequence[int], num_heldout: int) -> Scores:
    """Values whose mean over images is sum(losses) / sum(sizes), and whose spread is that of the ratio.

    Linearised: R + (loss - R * size) / mean size (Cochran 1977, Sampling Techniques, section 6.3).
    """
    ratio = losses_I.sum() / sizes_I.sum()
    whole = np.full(num_heldout, np.nan)
    whole[list(places)] = ratio + (losses_I - ratio * sizes_I) / sizes_I.mean()
    return whole


def _derive(part: Part, tokens: _Tokens, data: EvalData, scorer: LikelihoodScorer) -> None:
    per_token, per_byte = (part.metrics[f"language/nats_per_{name}"] for name in ("token", "byte"))
    found = {
        "perplexity": Metric(float(np.exp(per_token.value)), float(np.exp(per_token.chance or 0)), unit=""),
        "bits_per_byte": Metric(per_byte.value / np.log(2), (per_byte.chance or 0) / np.log(2), unit="bits"),
    }
    ids_N, best_N = np.concatenate(tokens.ids), np.concatenate(tokens.best)
    training = [scorer.ids(caption) for one in data.training for caption in one.captions if caption]
    if training:
        counts_V = np.bincount(np.concatenate(training), minlength=scorer.loaded.model.config.vocab_size) + 1
        unigram = -np.log(counts_V / counts_V.sum())[ids_N].mean()
        found["unigram_nats_per_token"] = Metric(float(unigram), per_token.chance, unit="nats")
    error, bins = calibration(np.concatenate(tokens.confidence), best_N == ids_N)
    found["calibration_error"] = Metric(error)
    part.details["language/calibration"] = bins
    for name, metric in found.items():
        part.metrics[f"language/{name}"] = Metric(float(metric.value), metric.chance, better="lower", unit=metric.unit)


def calibration(confidence_N: Scores, right_N: NDArray[np.bool_]) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error: mean over predictions of |share right - mean confidence| of their bin.

    Args:
        confidence_N: Probability that each prediction was given, up to 1.
        right_N: Whether it was right.

    Returns:
        The error, and the bins that are not empty.
    """
    bin_N = np.minimum((confidence_N * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins, error = [], 0.0
    for number in np.unique(bin_N):
        inside_N = bin_N == number
        confidence, accuracy = float(confidence_N[inside_N].mean()), float(right_N[inside_N].mean())
        bins.append({"confidence": confidence, "accuracy": accuracy, "num_tokens": int(inside_N.sum())})
        error += inside_N.mean() * abs(accuracy - confidence)
    return float(error), bins
