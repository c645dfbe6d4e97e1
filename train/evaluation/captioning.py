"""Captioning: what the model says of held-out images, against what people said, and how varied it is.

Shape legend: I held-out images.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model import GenLIP, LoadedModel, generate_ids, load_rgb
from model.baselines import CapPa
from model.modeling_genlip import ImagePatches
from train.evaluation.caption_metrics import CiderD, bleu_4, distinct, has_repeated_trigram, rouge_l, words
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.spec import EvalSpec

MAX_NEW_TOKENS = 64
NUM_SAMPLES = 12
NUM_SHUFFLES = 4
"""Times each image gets another's caption, for the chance level."""

Scores = dict[str, NDArray[np.float64]]
"""[I] by name."""


def captioning(loaded: LoadedModel, data: EvalData, spec: EvalSpec) -> Part:
    """Greedy captions of the held-out images that have captions.

    Metrics: `cider` (points, 100 × the usual CIDEr-D), `rouge_l`, `bleu_4`, with the level that true captions of other
    images reach; `words`, `tokens`, `repeated_trigram`, `cut_short` per caption; `distinct_1`, `distinct_2` and
    `num_different` of them all.

    Details: `baselines`, the scores of the most common training caption; `true_captions`, the same statistics of the
    first true captions; `samples`.
    """
    if not writes_captions(loaded):
        return Part(notes=[f"captioning: left out, {loaded.model.objective} writes no text"])
    measured = [number for number, one in enumerate(data.heldout) if one.caption]
    if len(measured) < 2:
        return Part(notes=["captioning: left out, fewer than two held-out images have a caption"])
    pairs = [data.heldout[number] for number in measured]
    images = [loaded.processor.patches(load_rgb(one.image)) for one in pairs]
    token_ids = write_captions(loaded, images, spec.batch_images)
    captions = [" ".join(loaded.tokenizer.decode(ids).split()) for ids in token_ids]
    part = _against_people(captions, pairs, data.training)
    _describe(part, captions, token_ids, pairs)
    for name, values in part.per_image.items():
        part.per_image[name] = np.full(len(data.heldout), np.nan)
        part.per_image[name][measured] = values
    part.details["captioning/samples"] = [
        {"key": one.key, "true": list(one.captions), "generated": caption}
        for one, caption in list(zip(pairs, captions, strict=True))[:NUM_SAMPLES]
    ]
    return part


def writes_captions(loaded: LoadedModel) -> bool:
    """Whether the model's objective lets it write text."""
    return isinstance(loaded.model, GenLIP | CapPa)


def write_captions(loaded: LoadedModel, images: Sequence[ImagePatches], batch_images: int = 32) -> list[list[int]]:
    """Token ids of a greedy caption of each image, without its ending, `MAX_NEW_TOKENS` at most.

    Args:
        loaded: One that `writes_captions`.
        images: (patches, grid) pairs from `ImageProcessor.patches`.
        batch_images: Images that GenLIP decodes together; CapPa chooses itself.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    if isinstance(model, CapPa):
        return model.generate_ids(images, tokenizer.ending_ids, MAX_NEW_TOKENS)
    stop_id = tokenizer.ending_ids[0]
    return generate_ids(loaded.genlip, images, tokenizer.prompt_ids, stop_id, MAX_NEW_TOKENS, batch_images)


def _against_people(captions: list[str], pairs: list[Labelled], training: list[Labelled]) -> Part:
    """CIDEr-D, ROUGE-L and BLEU-4, with two levels that need no look at the image."""
    references = [one.captions for one in pairs]
    cider = CiderD(references)

    def score(candidates: list[str]) -> Scores:
        rouge = np.array(list(map(rouge_l, candidates, references)))
        bleu = np.array([bleu_4(candidates, references)])
        return {"cider": cider.scores(candidates), "rouge_l": rouge, "bleu_4": bleu}

    found, chance = score(captions), _chance_levels([one.caption for one in pairs], score)
    units = {"cider": "points", "rouge_l": "share", "bleu_4": "share"}
    metrics = {
        f"captioning/{name}": Metric(float(scores.mean()), chance[name], unit=units[name])
        for name, scores in found.items()
    }
    per_image = {f"captioning/{name}": found[name] for name in ("cider", "rouge_l")}
    part = Part(metrics, per_image)
    if counts := Counter(one.caption for one in training if one.caption):
        most_common = min(counts, key=lambda caption: (-counts[caption], caption))
        scores = {name: float(values.mean()) for name, values in score([most_common] * len(pairs)).items()}
        part.details["captioning/baselines"] = {"most_common_training_caption": {"caption": most_common, **scores}}
    return part


def _chance_levels(true_captions: list[str], score: Callable[[list[str]], Scores]) -> dict[str, float]:
    """Mean scores where each image has the first true caption of another image at random."""
    order = np.random.default_rng(0).permutation(len(true_captions))
    shifts = range(1, min(NUM_SHUFFLES, len(order) - 1) + 1)
    levels: list[dict[str, float]] = []
    for shift in shifts:
        other_of = dict(zip(order.tolist(), np.roll(order, shift).tolist(), strict=True))
        scores = score([true_captions[other_of[number]] for number in range(len(order))])
        levels.append({name: float(values.mean()) for name, values in scores.items()})
    return {name: float(np.mean([level[name] for level in levels])) for name in levels[0]}


def _describe(part: Part, captions: list[str], token_ids: list[list[int]], pairs: list[Labelled]) -> None:
    """Add length, repetition and variety."""
    lengths = np.array([len(ids) for ids in token_ids], np.float64)
    per_caption = _statistics(captions) | {
        "tokens": lengths,
        "cut_short": (lengths == MAX_NEW_TOKENS).astype(np.float64),
    }
    neutral, units = ("words", "tokens"), {"words": "words", "tokens": "tokens"}
    for name, values in per_caption.items():
        better = "" if name in neutral else "lower"
        metric = Metric(float(values.mean()), better=better, unit=units.get(name, "share"))  # type: ignore[arg-type]
        part.metrics[f"captioning/{name}"] = metric
        part.per_image[f"captioning/{name}"] = values
    for name, value in _variety(captions).items():
        part.metrics[f"captioning/{name}"] = Metric(value, unit="captions" if name == "num_different" else "share")
    true_captions = [one.caption for one in pairs]
    means = {name: float(values.mean()) for name, values in _statistics(true_captions).items()}
    part.details["captioning/true_captions"] = means | _variety(true_captions)


def _statistics(captions: list[str]) -> Scores:
    """Per caption, [I]."""
    return {
        "words": np.array([len(words(caption)) for caption in captions], np.float64),
        "repeated_trigram": np.array([has_repeated_trigram(caption) for caption in captions], np.float64),
    }


def _variety(captions: list[str]) -> dict[str, float]:
    """Of all captions together."""
    return {
        "distinct_1": distinct(captions, 1),
        "distinct_2": distinct(captions, 2),
        "num_different": float(len(set(captions))),
    }
