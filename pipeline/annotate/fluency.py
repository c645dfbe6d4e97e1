"""`fluency`: whether a caption reads like English text rather than keywords, codes or another language."""

import re
from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator

_FUNCTION_WORDS = """
    a an the this that these those some any each every other another both all no one two three
    i you he she it we they who which what where when how while if because
    my your his her its our their
    of in on at by for from to into onto with without over under above below near behind between beside through
    across along around against among about after before during inside outside off out up down as like than
    and or but nor so not very also just only there here
    is are was were be been being has have had do does did can could will would may might must should
    """
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_TOKEN = re.compile(r"[^\s/,;:.!?()\"“”]+")
_PLAIN = re.compile(r"(?:[a-z]+(?:['’-][a-z]+)*['’]?|\d{1,4})")
_USUAL_SHARE = 0.25


@annotator("fluency")
class Fluency(Annotator):
    """An English fluency proxy: the share of function words, which text has and keyword lists lack.

    Measured against 58 lines of keywords, shuffled characters, file names and other languages, the area under the
    ROC curve is 0.99 for the 237 captions of the demo's fixtures, above 0.99 for 30 sentences written for the purpose,
    and 0.95 for 1,012 short captions of Tux Paint. It knows nothing of meaning, and noun phrases ("red bicycle") score
    0 as keywords do: for 12 of them the area is 0.46. So it is a signal for captions of several words. A character
    trigram model trained on prose did worse on nearly the same lines (0.78 for the fixtures and the sentences).
    """

    needs_sample: ClassVar[bool] = False
    batch_samples: ClassVar[int] = 1024

    def columns(self) -> dict[str, pa.DataType]:
        """From 0 to 1: the share of function words, where a quarter and more is 1, times the share of words that have
        the shape of a word."""
        return {"fluency": pa.float32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        return {"fluency": [_fluency(caption) for caption in batch.captions]}


def _fluency(caption: str) -> float:
    words = _TOKEN.findall(caption.lower())
    if not words:
        return 0.0
    num_function = sum(word in FUNCTION_WORDS for word in words)
    if num_function == 0:
        return 0.0
    num_plain = sum(_PLAIN.fullmatch(word) is not None for word in words)
    return min(num_function / len(words) / _USUAL_SHARE, 1.0) * num_plain / len(words)
