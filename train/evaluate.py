"""What a trained model knows of held-out images, each number beside what chance would give.

Shape legend: I images, T texts (candidate captions), C classes, R prior images.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import EncodedSample, LoadedModel, load_rgb, pack_rows, score_captions
from pipeline.errors import UserError
from train.data.dataset import Dataset, first_samples
from train.evaluation.ranking import Scores, accuracy, chance_recall_at, log_mean_exp, recall_at
from train.evaluation.spec import EvalSpec

NUM_PRIOR_IMAGES = 32
"""Training images whose mean likelihood stands for the probability of a text without its image."""
MAX_SCANNED = 20_000
"""Training samples looked at for class captions and prior images; shards are shuffled, so the first will do."""
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Labelled:
    """A stored sample as evaluation uses it."""

    key: str
    image: bytes
    caption: str
    class_name: str | None


def read_labelled(dataset: Dataset, limit: int) -> list[Labelled]:
    """The first samples of a dataset."""
    samples = first_samples(dataset, limit)
    return [Labelled(one.key, one.image, one.caption, one.meta.get("class_name")) for one in samples]


@dataclass(frozen=True)
class Evaluator:
    """A model with what is needed to score texts."""

    loaded: LoadedModel
    spec: EvalSpec
    max_caption_tokens: int
    prior_images: list[tuple[Any, tuple[int, int]]]

    def encode_text(self, caption: str) -> list[int]:
        """A caption's ids with its ending."""
        tokenizer = self.loaded.tokenizer
        return [*tokenizer.encode(caption)[: self.max_caption_tokens], *tokenizer.ending_ids]

    def patches(self, image: bytes) -> tuple[Any, tuple[int, int]]:
        return self.loaded.processor.patches(load_rgb(image))

    def score(self, images: Sequence[tuple[Any, tuple[int, int]]], texts: Sequence[str]) -> Scores:
        """log P(text | image) in nats, [I, T]."""
        ids = [self.encode_text(text) for text in texts]
        scores = score_captions(self.loaded.model, images, self.loaded.tokenizer.prompt_ids, ids)
        return scores.numpy().astype(np.float64)

    def prior(self, texts: Sequence[str]) -> Scores:
        """log P(text): the likelihood averaged over training images, [T]."""
        return log_mean_exp(self.score(self.prior_images, texts), axis=0)


def evaluate(
    loaded: LoadedModel, heldout: list[Labelled], training: list[Labelled], spec: EvalSpec, max_caption_tokens: int
) -> dict[str, Any]:
    """All measurements, as plain numbers ready for JSON.

    Args:
        loaded: Model, tokenizer and image processor.
        heldout: What is measured.
        training: Source of class names, class captions and prior images; never of anything that is measured.
        spec: The recipe's eval section.
        max_caption_tokens: As in training.
    """
    processor = loaded.processor
    prior_images = [processor.patches(load_rgb(one.image)) for one in training[:NUM_PRIOR_IMAGES]]
    evaluator = Evaluator(loaded, spec, max_caption_tokens, prior_images)
    images = [evaluator.patches(one.image) for one in heldout]
    return {
        "num_images": len(heldout),
        "caption_loss": caption_loss(evaluator, heldout),
        "zero_shot": zero_shot(evaluator, images, heldout, training),
        "retrieval": retrieval(evaluator, images, [one.caption for one in heldout]),
    }


def caption_loss(evaluator: Evaluator, heldout: list[Labelled]) -> dict[str, float]:
    """Mean loss of the held-out captions, ending included, in nats per token and per byte of the captions."""
    loaded, total, num_tokens = evaluator.loaded, 0.0, 0
    for begin in range(0, len(heldout), evaluator.spec.batch_images):
        batch = heldout[begin : begin + evaluator.spec.batch_images]
        encoded = [_encode(evaluator, one) for one in batch]
        rows = pack_rows([encoded], sum(sample.num_tokens for sample in encoded))
        loaded.model.eval()
        with torch.inference_mode():
            loss = loaded.model(rows.to(loaded.model.device))
        total += float(loss.loss_sum)
        num_tokens += rows.num_labels
    num_bytes = sum(len(one.caption.encode()) for one in heldout)
    return {
        "nats_per_token": total / num_tokens,
        "nats_per_byte": total / num_bytes,
        "uniform_nats_per_token": float(np.log(loaded.tokenizer.vocab_size)),
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
    }


def _encode(evaluator: Evaluator, one: Labelled) -> EncodedSample:
    patches, grid = evaluator.patches(one.image)
    return EncodedSample(patches, grid, evaluator.loaded.tokenizer.prompt_ids, evaluator.encode_text(one.caption))


def zero_shot(
    evaluator: Evaluator, images: Sequence[Any], heldout: list[Labelled], training: list[Labelled]
) -> dict[str, Any]:
    """Classification by caption likelihood: which class's captions does the model find most likely for the image?

    Four scores: `names` from templates with the class name or `captions` of other images of the class; each plain
    (log-likelihood per token) and as information gain, log P(text | image) - log P(text).
    """
    captions_of = _captions_by_class(training)
    classes = sorted(captions_of)
    labelled = [number for number, one in enumerate(heldout) if one.class_name in captions_of]
    if not labelled or len(classes) < 2:
        return {}
    class_I = np.array([classes.index(heldout[number].class_name or "") for number in labelled])
    chosen = [images[number] for number in labelled]
    majority = Counter(class_I.tolist()).most_common(1)[0][1] / len(class_I)
    result: dict[str, Any] = {
        "num_images": len(class_I),
        "num_classes": len(classes),
        "chance": 1 / len(classes),
        "majority_class": majority,
    }
    texts_of = {
        "names": {name: [template.format(name) for template in evaluator.spec.class_templates] for name in classes},
        "captions": {name: captions_of[name][: evaluator.spec.class_captions] for name in classes},
    }
    for source, texts in texts_of.items():
        if all(texts.values()):
            result |= _classify(evaluator, chosen, class_I, [texts[name] for name in classes], source)
    return result


def _captions_by_class(training: list[Labelled]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for one in training:
        if one.class_name and one.caption not in found[one.class_name]:
            found[one.class_name].append(one.caption)
    return {name: captions for name, captions in found.items() if captions}


def _classify(
    evaluator: Evaluator, images: list[Any], class_I: NDArray[np.int64], texts_of_class: list[list[str]], source: str
) -> dict[str, Any]:
    texts = [text for group in texts_of_class for text in group]
    class_T = np.array([number for number, group in enumerate(texts_of_class) for _ in group])
    scores_IT = evaluator.score(images, texts)
    lengths_T = np.array([len(evaluator.encode_text(text)) for text in texts])

    def per_class(scores: Scores) -> Scores:
        columns = [log_mean_exp(scores[:, class_T == number], axis=1) for number in range(len(texts_of_class))]
        return np.stack(columns, axis=1)

    plain, gain = per_class(scores_IT / lengths_T), per_class(scores_IT - evaluator.prior(texts))
    return {
        f"{source}_likelihood_top1": accuracy(plain, class_I),
        f"{source}_gain_top1": accuracy(gain, class_I),
        f"{source}_gain_top5": accuracy(gain, class_I, k=5),
    }


def retrieval(evaluator: Evaluator, images: Sequence[Any], captions: list[str]) -> dict[str, Any]:
    """Recall both ways among the held-out pairs; images with the same caption answer for each other.

    Image to text ranks by information gain, so that a caption which is likely for any image does not win; text to
    image ranks by log P(text | image), where the text is fixed and its own probability plays no part.
    """
    texts = sorted(set(captions))
    scores_IT = evaluator.score(images, texts)
    positive_IT = np.array([[caption == text for text in texts] for caption in captions])
    gain_IT = scores_IT - evaluator.prior(texts)
    result: dict[str, Any] = {"num_images": len(images), "num_texts": len(texts)}
    for name, scores, positive in (
        ("image_to_text", gain_IT, positive_IT),
        ("text_to_image", scores_IT.T, positive_IT.T),
    ):
        for k in RECALL_AT:
            result[f"{name}_r{k}"] = recall_at(scores, positive, k)
            result[f"{name}_r{k}_chance"] = chance_recall_at(positive, k)
    return result


def require_heldout(heldout: list[Labelled], dataset: str) -> None:
    """Refuse to evaluate on nothing."""
    if not heldout:
        raise UserError(
            "there are no held-out samples",
            where=dataset,
            next_step="ingest with --set shards.holdout=0.1 --set shards.name=NAME",
        )
