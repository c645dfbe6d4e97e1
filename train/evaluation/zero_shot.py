"""Classification without training for it: whose captions fit the image best?

The captions of a class are templates with its name (`names`) or captions of training images of the class (`captions`).
A model that writes ranks classes by the mean over their captions of the likelihood P(T|I) (`likelihood`), of the same
per token (`normalised`) and of the information gain P(T|I) / P(T), as IG captioners do; the last is what
`names_top1` and its like mean. A contrastive model ranks classes by the cosine with the mean of the embeddings of
their captions (Radford et al. 2021, section 3.1.4).

Shape legend: I images, T texts, C classes, E embedding channels, c images of a chunk.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from train.evaluation.cost import announce
from train.evaluation.gain import why_gain_is_worse
from train.evaluation.ranking import Classes, Scores, class_ranks, log_mean_exp, unit
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.scorers import CosineScorer, LikelihoodScorer, Scorer, count_patches
from train.evaluation.spec import EvalSpec

GAIN, LIKELIHOOD, NORMALISED = "", "likelihood_", "normalised_"
TOP_K = (1, 5)
NUM_EXAMPLES, NUM_LISTED = 12, 20
# Bounds memory: scores of so many pairs at a time, 64 MiB for each of a few arrays.
_PAIRS_AT_A_TIME = 2**23


@dataclass(frozen=True)
class _Task:
    """Images to classify, and by which texts."""

    names: list[str]
    images: list[Labelled]
    places: NDArray[np.int64]
    """Of the images among all held-out ones, [I]."""
    class_I: Classes
    texts: list[str]
    texts_of: dict[str, list[list[int]]]
    """By source, the numbers of each class's texts."""


def zero_shot(scorer: Scorer, data: EvalData, spec: EvalSpec, say: Callable[[str], None]) -> Part:
    """Top-1, top-5 and mean-per-class accuracy, by `names` and by `captions`.

    Every image goes through the model once, whatever the number of texts: `passes_per_image` has been counted.

    Raises:
        UserError: A class has no name, or two have the same.
    """
    names = _class_names(data)
    known = set(names)
    places = [place for place, one in enumerate(data.heldout) if one.class_name in known]
    if not places or len(names) < 2:
        return Part(notes=["zero_shot: left out, since there are no held-out images of two or more known classes"])
    task = _task(data, names, places, spec)
    part = Part(notes=_skipped(task, data, scorer))
    announce(scorer, "zero_shot", len(places), scorer.images(task.images[: spec.batch_images]), task.texts, say)
    prior_T = scorer.prior(task.texts) if isinstance(scorer, LikelihoodScorer) else None
    scores, passes_per_image = _class_scores(scorer, task, prior_T)
    for (source, kind), scores_IC in scores.items():
        _measure(part, f"zero_shot/{source}_{kind}", task, scores_IC, len(data.heldout))
    majority = Counter(task.class_I.tolist()).most_common(1)[0][1] / len(places)
    part.metrics["zero_shot/majority_top1"] = Metric(majority, 1 / len(names), better="")
    part.details["zero_shot/num_classes"] = len(names)
    part.details["zero_shot/num_images"] = len(places)
    part.details["zero_shot/passes_per_image"] = passes_per_image
    for source in task.texts_of:
        part.details[f"zero_shot/{source}_confusion"] = _confusion(task, scores[source, GAIN])
        part.details[f"zero_shot/{source}_examples"] = _examples(task, scores[source, GAIN])
        if prior_T is not None:
            kinds = {kind: scores[source, kind] for kind in (GAIN, LIKELIHOOD, NORMALISED)}
            part.notes.extend(_compare_scores(task, source, kinds, prior_T, _lengths(scorer, task)))
    return part


def _class_names(data: EvalData) -> list[str]:
    trained_on = {one.class_name for one in data.training if one.class_name}
    names = list(data.class_names) or sorted(trained_on or {one.class_name for one in data.heldout if one.class_name})
    if not all(name.strip() for name in names):
        raise UserError("a class has no name", where="the classes of zero-shot classification")
    same = [name for name, count in Counter(name.strip().casefold() for name in names).items() if count > 1]
    if same:
        raise UserError(
            f"{len(same)} class names stand for two classes each: {', '.join(same[:NUM_LISTED])}",
            where="the classes of zero-shot classification",
            why="captions cannot tell the two apart",
            next_step="give them different names, or make them one class",
        )
    return names


def _task(data: EvalData, names: list[str], places: list[int], spec: EvalSpec) -> _Task:
    sources = {"names": [[template.replace("{}", name) for template in spec.class_templates] for name in names]}
    captions_of: dict[str, list[str]] = defaultdict(list)
    for one in data.training:
        if one.class_name and one.caption and one.caption not in captions_of[one.class_name]:
            captions_of[one.class_name].append(one.caption)
    sources["captions"] = [captions_of[name][: spec.class_captions] for name in names]
    sources = {source: groups for source, groups in sources.items() if all(groups)}
    texts = sorted({text for groups in sources.values() for group in groups for text in group})
    number_of = {text: number for number, text in enumerate(texts)}
    images = [data.heldout[place] for place in places]
    number_of_class = {name: number for number, name in enumerate(names)}
    class_I = np.array([number_of_class[one.class_name or ""] for one in images])
    texts_of = {source: [[number_of[text] for text in group] for group in groups] for source, groups in sources.items()}
    return _Task(names, images, np.array(places), class_I, texts, texts_of)


def _skipped(task: _Task, data: EvalData, scorer: Scorer) -> list[str]:
    notes = []
    if num_left_out := len(data.heldout) - len(task.images):
        notes.append(f"zero_shot: {num_left_out} held-out images have no class, or one that is not among the classes")
    sizes_C = np.bincount(task.class_I, minlength=len(task.names))
    without = [name for name, size in zip(task.names, sizes_C, strict=True) if not size]
    if without:
        listed = ", ".join(without[:NUM_LISTED]) + (", ..." if len(without) > NUM_LISTED else "")
        notes.append(
            f"zero_shot: {len(without)} of {len(task.names)} classes have no held-out image; they may be chosen, and"
            f" are left out of mean-per-class accuracy: {listed}"
        )
    if num_cut := scorer.num_cut(task.texts):
        notes.append(f"zero_shot: {num_cut} texts longer than {scorer.max_caption_tokens} tokens were cut")
    if "captions" not in task.texts_of:
        notes.append("zero_shot: not by class captions, since some class has no training caption or none are asked for")
    return notes


def _class_scores(scorer: Scorer, task: _Task, prior_T: Scores | None) -> tuple[dict[tuple[str, str], Scores], float]:
    """Of every class for every image, [I, C], by source and kind; and how often each image was run."""
    if isinstance(scorer, CosineScorer):
        score = _by_cosine(scorer, task)
    else:
        assert prior_T is not None
        score = _by_likelihood(scorer, task, prior_T)
    chunks: list[dict[tuple[str, str], Scores]] = []
    num_patches, at_a_time = 0, max(1, _PAIRS_AT_A_TIME // len(task.texts))
    with count_patches(scorer.loaded.model) as count:
        for begin in range(0, len(task.images), at_a_time):
            images = scorer.images(task.images[begin : begin + at_a_time])
            num_patches += sum(len(patches) for patches, _ in images)
            chunks.append(dict(score(images)))
    whole = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    return whole, count.num_patches / num_patches


_Score = Callable[[Any], Iterator[tuple[tuple[str, str], Scores]]]


def _lengths(scorer: Scorer, task: _Task) -> Scores:
    """Tokens of each text, ending included, [T]."""
    return np.array([len(scorer.ids(text)) for text in task.texts], np.float64)


def _by_likelihood(scorer: LikelihoodScorer, task: _Task, prior_T: Scores) -> _Score:
    lengths_T = _lengths(scorer, task)

    def score(images: Any) -> Iterator[tuple[tuple[str, str], Scores]]:
        log_p_cT = scorer.score(images, task.texts)
        kinds = {LIKELIHOOD: log_p_cT, NORMALISED: log_p_cT / lengths_T, GAIN: log_p_cT - prior_T}
        for kind, scores_cT in kinds.items():
            for source, groups in task.texts_of.items():
                yield (source, kind), np.stack([log_mean_exp(scores_cT[:, group], axis=1) for group in groups], axis=1)

    return score


def _by_cosine(scorer: CosineScorer, task: _Task) -> _Score:
    text_TE = scorer.embed_texts(task.texts)
    class_CE_of = {
        source: unit(np.stack([text_TE[group].mean(axis=0) for group in groups]))
        for source, groups in task.texts_of.items()
    }

    def score(images: Any) -> Iterator[tuple[tuple[str, str], Scores]]:
        image_cE = scorer.embed_images(images)
        for source, class_CE in class_CE_of.items():
            yield (source, GAIN), image_cE @ class_CE.T

    return score


def _measure(part: Part, prefix: str, task: _Task, scores_IC: Scores, num_heldout: int) -> None:
    ranks_I, num_classes = class_ranks(scores_IC, task.class_I), len(task.names)
    # Weights that make the mean over images a mean over the classes that have some.
    sizes_C = np.bincount(task.class_I, minlength=num_classes)
    weights_I = len(ranks_I) / (np.count_nonzero(sizes_C) * sizes_C[task.class_I])
    found = {f"top{k}": (ranks_I <= k, min(k, num_classes) / num_classes) for k in TOP_K}
    found["mean_per_class"] = ((ranks_I == 1) * weights_I, 1 / num_classes)
    for name, (values_I, chance) in found.items():
        whole_I = np.full(num_heldout, np.nan)
        whole_I[task.places] = values_I
        part.per_image[prefix + name] = whole_I
        part.metrics[prefix + name] = Metric(float(np.mean(values_I)), chance)


def _confusion(task: _Task, scores_IC: Scores) -> dict[str, Any]:
    """The confusion matrix without its zeros: (true class, chosen class, images), most frequent first."""
    pairs = Counter(zip(task.class_I.tolist(), scores_IC.argmax(axis=1).tolist(), strict=True))
    return {"classes": task.names, "counts": [[*pair, count] for pair, count in pairs.most_common()]}


def _examples(task: _Task, scores_IC: Scores) -> list[dict[str, Any]]:
    examples = []
    for one, scores_C in zip(task.images[:NUM_EXAMPLES], scores_IC, strict=False):
        best = np.argsort(-scores_C, kind="stable")[:3]
        answers = [{"class": task.names[number], "score": float(scores_C[number])} for number in best]
        examples.append({"key": one.key, "class": one.class_name, "answers": answers})
    return examples


def _compare_scores(
    task: _Task, source: str, scores_of: dict[str, Scores], prior_T: Scores, lengths_T: Scores
) -> list[str]:
    """Why plain likelihood classifies better, where it does."""
    right = {kind: class_ranks(scores_IC, task.class_I) == 1 for kind, scores_IC in scores_of.items()}
    plain = max((LIKELIHOOD, NORMALISED), key=lambda kind: right[kind].mean())
    if right[GAIN].mean() >= right[plain].mean():
        return []
    groups = task.texts_of[source]
    reason = why_gain_is_worse(
        scores_of[GAIN],
        scores_of[plain],
        task.class_I,
        prior_C=np.array([prior_T[group].mean() for group in groups]),
        length_C=np.array([lengths_T[group].mean() for group in groups]),
    )
    per = " per token" if plain == NORMALISED else ""
    return [f"zero_shot: by {source}, against likelihood{per}: {reason}"]
