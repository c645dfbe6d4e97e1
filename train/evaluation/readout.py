"""Which words every patch predicts: the language head applied to the features of patches.

Shape legend: I images, P patches, V vocabulary entries, k words shown per patch.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import GenLIP, LoadedModel
from model.tokenizer import Tokenizer
from train.evaluation.features import Features
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.spec import EvalSpec

NUM_SHOWN_IMAGES = 4
NUM_SHOWN_WORDS = 5
_WORD = re.compile(r"\w+")


def readout(loaded: LoadedModel, data: EvalData, spec: EvalSpec, features: Features) -> Part:
    """Share of patches whose likeliest word is in their image's captions; chance is the same with another's captions.

    Chance is exact: the mean over all other captioned images, which is what shuffling the captions gives on average.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    if not isinstance(model, GenLIP):
        return Part(notes=[f"readout is left out: patches of a {model.objective} model predict no words"])
    heldout = features.heldout
    words_I: list[list[str]] = []
    shown: list[dict[str, Any]] = []
    for row, one in enumerate(heldout.samples):
        values_Pk, ids_Pk = _top_words(model, heldout.patches([row])[0][0])
        words_I.append([_word(tokenizer, token_id) for token_id in ids_Pk[:, 0].tolist()])
        if row < NUM_SHOWN_IMAGES:
            shown.append(_show(one, heldout.grids[row], tokenizer, values_Pk, ids_Pk))
    part = Part(details={"readout/samples": shown})
    captioned = [row for row, one in enumerate(heldout.samples) if one.caption]
    if not captioned:
        part.notes.append("readout: no share of words in captions, as no held-out image has a caption")
        return part
    beginnings = [_word_beginnings(heldout.samples[row].captions, tokenizer) for row in captioned]
    own, others = _shares([words_I[row] for row in captioned], beginnings)
    part.metrics["readout/top1_in_caption"] = Metric(float(np.mean(own)), chance=float(np.mean(others)))
    part.per_image["readout/top1_in_caption"] = heldout.per_image(captioned, own)
    return part


@torch.no_grad()
def _top_words(model: GenLIP, features_PD: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and ids of the likeliest tokens of every patch, [P, k] each."""
    weight = model.lm_head.weight
    logits_PV = model.lm_head(model.proj(features_PD.to(weight.device, weight.dtype)))
    values_Pk, ids_Pk = logits_PV.float().softmax(dim=-1).topk(NUM_SHOWN_WORDS, dim=-1)
    return values_Pk.cpu(), ids_Pk.cpu()


def _word(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as a word or the beginning of one, lower case; empty for punctuation and symbols."""
    found = _WORD.search(tokenizer.decode([token_id]))
    return found[0].casefold() if found else ""


def _word_beginnings(captions: Iterable[str], tokenizer: Tokenizer) -> set[str]:
    """What the first token of every word of the captions stands for, lower case.

    A word of several tokens is so found by its first: the model predicts one token at a time.
    """
    beginnings: set[str] = set()
    for caption in captions:
        ids = tokenizer.encode(caption)
        prefixes = [tokenizer.decode(ids[:end]) for end in range(1, len(ids) + 1)]
        for word in _WORD.finditer(prefixes[-1] if prefixes else ""):
            shortest = next(prefix for prefix in prefixes if len(prefix) > word.start())
            beginnings.add(shortest[word.start() : word.end()].casefold())
    return beginnings


def _shares(words_I: list[list[str]], beginnings_I: list[set[str]]) -> tuple[list[float], list[float]]:
    """Share of each image's words that are in its own captions, and in those of the other images on average."""
    num_captions = Counter(word for beginnings in beginnings_I for word in beginnings)
    own, others = [], []
    for words, beginnings in zip(words_I, beginnings_I, strict=True):
        is_own = [word in beginnings for word in words]
        in_others = [num_captions[word] - is_in for word, is_in in zip(words, is_own, strict=True)]
        own.append(float(np.mean(is_own)))
        others.append(float(np.mean(in_others)) / max(1, len(words_I) - 1))
    return own, others


def _show(
    one: Labelled, grid: tuple[int, int], tokenizer: Tokenizer, values_Pk: Tensor, ids_Pk: Tensor
) -> dict[str, Any]:
    """An image's words ready for JSON; patches row-major."""
    patches = [
        [[tokenizer.decode([token_id]), round(value, 4)] for value, token_id in zip(values, ids, strict=True)]
        for values, ids in zip(values_Pk.tolist(), ids_Pk.tolist(), strict=True)
    ]
    return {"key": one.key, "caption": one.caption, "grid": list(grid), "patches": patches}
