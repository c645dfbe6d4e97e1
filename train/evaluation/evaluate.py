"""What a trained model knows of held-out images: the tasks of the recipe, with intervals over the images."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from model import LoadedModel
from pipeline.errors import UserError
from train.evaluation.attention_mass import attention
from train.evaluation.bootstrap import interval
from train.evaluation.captioning import captioning
from train.evaluation.features import Features
from train.evaluation.knn import knn
from train.evaluation.language import language
from train.evaluation.probes import probe
from train.evaluation.readout import readout
from train.evaluation.result import Metric, Part, merge
from train.evaluation.retrieval import retrieval
from train.evaluation.samples import EvalData
from train.evaluation.scorers import NUM_PRIOR_IMAGES, LikelihoodScorer, Scorer, make_scorer
from train.evaluation.segmentation import segmentation
from train.evaluation.spec import EvalSpec, Task
from train.evaluation.zero_shot import zero_shot

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Context:
    """What the tasks take."""

    loaded: LoadedModel
    data: EvalData
    spec: EvalSpec
    features: Features
    scorer: Scorer | None
    say: Say


def evaluate(loaded: LoadedModel, data: EvalData, spec: EvalSpec, max_caption_tokens: int, say: Say) -> Part:
    """Run the tasks of `spec.tasks`; what a model or the data cannot do is left out, which the notes say.

    Args:
        loaded: Model, tokenizer and image processor, of any objective.
        data: What is measured, and the training samples that measuring needs; all its images can be decoded.
        spec: The recipe's eval section.
        max_caption_tokens: As in training.
        say: Takes lines on what is about to be done and what it took.

    Raises:
        UserError: There is nothing held out, or the classes have no usable names.
    """
    if not data.heldout:
        raise UserError("there are no held-out images to measure", where="eval.data")
    scorer = make_scorer(loaded, max_caption_tokens, data.training or data.heldout)
    context = _Context(loaded, data, spec, Features(loaded, data, spec), scorer, say)
    parts = [Part(notes=_notes(data, scorer))]
    for task in spec.tasks:
        began = time.monotonic()
        parts.append(_TASKS[task](context))
        say(f"{task}: {time.monotonic() - began:.1f} s")
    parts.append(Part(notes=[f"{count:,} {what} were left out" for what, count in context.features.skipped.items()]))
    whole = merge(parts)
    for name, metric in whole.metrics.items():
        whole.metrics[name] = _with_interval(metric, whole, name)
    return whole


def _notes(data: EvalData, scorer: Scorer | None) -> list[str]:
    notes = [f"data: {count:,} samples left out: {reason}" for reason, count in data.skipped.items()]
    if isinstance(scorer, LikelihoodScorer) and not data.training:
        num_images = min(len(data.heldout), NUM_PRIOR_IMAGES)
        notes.append(
            f"there are no training images, so log P(T) is the mean over {num_images} of the measured ones, whose texts"
            " and classes play no part in it"
        )
    return notes


def _with_interval(metric: Metric, part: Part, name: str) -> Metric:
    values_I = part.per_image.get(name)
    if values_I is None or metric.low is not None:
        return metric
    low, high = interval(values_I)
    return metric if math.isnan(low) else replace(metric, low=low, high=high)


def _language(context: _Context) -> Part:
    if not isinstance(context.scorer, LikelihoodScorer):
        return _left_out("language", context, "predicts no text")
    return language(context.scorer, context.data, context.spec)


def _zero_shot(context: _Context) -> Part:
    if context.scorer is None:
        return _left_out("zero_shot", context, "knows no text")
    return zero_shot(context.scorer, context.data, context.spec, context.say)


def _retrieval(context: _Context) -> Part:
    if context.scorer is None:
        return _left_out("retrieval", context, "knows no text")
    return retrieval(context.scorer, context.data, context.spec, context.features, context.say)


def _left_out(task: str, context: _Context, why: str) -> Part:
    return Part(notes=[f"{task}: left out, a model of the objective {context.loaded.model.objective} {why}"])


_TASKS: dict[Task, Callable[[_Context], Part]] = {
    "language": _language,
    "zero_shot": _zero_shot,
    "retrieval": _retrieval,
    "captioning": lambda of: captioning(of.loaded, of.data, of.spec),
    "probe": lambda of: probe(of.loaded, of.data, of.spec, of.features),
    "knn": lambda of: knn(of.loaded, of.data, of.spec, of.features),
    "segmentation": lambda of: segmentation(of.loaded, of.data, of.spec, of.features),
    "readout": lambda of: readout(of.loaded, of.data, of.spec, of.features),
    "attention": lambda of: attention(of.loaded, of.data, of.spec, of.features),
}
