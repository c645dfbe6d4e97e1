"""`caption_stats`: length, composition and repetition of captions, in any script."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator

IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han and kana, as a part of a regular expression's character class."""
SYLLABLES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese and Khmer: scripts that also put no space between words."""
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u0670\u0900-\u0963\u0966-\u0dff"
"""Accents, points and vowel signs, which `\\w` leaves out and which belong to words."""

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*")
_RUN = f"(?:[^\\W_{IDEOGRAPHS}{SYLLABLES}]|[{MARKS}])+"
_WORD = re.compile(f"[{IDEOGRAPHS}]|[{SYLLABLES}]{{1,4}}|{_RUN}(?:['’-]{_RUN})*")
_LETTER, _UPPER, _DIGIT, _SPACE = 1, 2, 4, 8


def split_words(text: str) -> list[str]:
    """The words of a caption. Where a script has no spaces, each ideograph or kana counts as one, and so do each four
    characters of Thai, Lao, Burmese and Khmer (about the mean length of a word)."""
    pattern: re.Pattern[str] = _ASCII_WORD if text.isascii() else _WORD
    return pattern.findall(text)


@annotator("caption_stats")
class CaptionStats(Annotator):
    """Length, composition and repetition of captions."""

    needs_sample: ClassVar[bool] = False
    batch_samples: ClassVar[int] = 1024

    def columns(self) -> dict[str, pa.DataType]:
        """`characters` are code points, `words` those of `split_words`. `letters_share` (with their accents) and
        `digits_share` are of all characters but spaces, `uppercase_share` of the letters. `char_entropy` is the
        Shannon entropy of a caption's characters, in bits. `repetition` is the share of pairs of neighbouring words,
        case folded, that repeat an earlier pair. Shares of nothing are 0."""
        kinds = {"characters": pa.int32(), "words": pa.int32()}
        shares = ("letters_share", "digits_share", "uppercase_share", "char_entropy", "repetition")
        return kinds | {name: pa.float32() for name in shares}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        lengths_N = np.array([len(caption) for caption in batch.captions], np.int64)
        text = "".join(batch.captions)
        codes_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        owner_C = np.repeat(np.arange(len(batch)), lengths_N)
        kinds_C = _kinds()[codes_C]

        def count(kind: int) -> NDArray[np.int64]:
            return np.bincount(owner_C[(kinds_C & kind) != 0], minlength=len(batch))

        letters_N = count(_LETTER)
        visible_N = np.maximum(lengths_N - count(_SPACE), 1)
        words = [split_words(caption.casefold()) for caption in batch.captions]
        return {
            "characters": lengths_N,
            "words": [len(some) for some in words],
            "letters_share": letters_N / visible_N,
            "digits_share": count(_DIGIT) / visible_N,
            "uppercase_share": count(_UPPER) / np.maximum(letters_N, 1),
            "char_entropy": _entropy(codes_C, owner_C, lengths_N),
            "repetition": [_repetition(some) for some in words],
        }


def _entropy(
    codes_C: NDArray[np.uint32], owner_C: NDArray[np.int64], lengths_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Bits per character of each text: log2 n - sum(c log2 c) / n over the counts c of its n characters."""
    sorted_C = np.sort((owner_C << 21) | codes_C)
    first_K = np.flatnonzero(np.diff(sorted_C, prepend=-1))
    count_K = np.diff(first_K, append=len(sorted_C))
    owner_K = sorted_C[first_K] >> 21
    sums_N = np.bincount(owner_K, count_K * np.log2(count_K), minlength=len(lengths_N))
    at_least_one_N = np.maximum(lengths_N, 1)
    entropy_N: NDArray[np.float64] = np.maximum(np.log2(at_least_one_N) - sums_N / at_least_one_N, 0)
    return entropy_N


def _repetition(words: Sequence[str]) -> float:
    if len(words) < 2:
        return 0.0
    num_pairs = len(words) - 1
    return 1 - len(set(pairwise(words))) / num_pairs


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """What each code point is."""
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(len(kinds)):
        category = unicodedata.category(chr(code))
        if category[0] in "LM":
            kinds[code] = _LETTER | (_UPPER if category in ("Lu", "Lt") else 0)
        elif category == "Nd":
            kinds[code] = _DIGIT
        elif chr(code).isspace():
            kinds[code] = _SPACE
    return kinds
