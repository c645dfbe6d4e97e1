"""How near captions are to those that people wrote: CIDEr-D, BLEU-4 and ROUGE-L, and what captions are made of.

All three read words alike (`words`) and give the numbers of the COCO caption evaluation on these words. BLEU is that of
sacrebleu. CIDEr-D and ROUGE-L stand here, since the one package that has them (pycocoevalcap) brings 100 MB of Java
archives and has not been kept since 2020.

Shape legend: I images.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

Ngram = tuple[str, ...]
MAX_NGRAM = 4
CIDER_SIGMA = 6.0
"""Words of difference in length that CIDEr-D forgives."""
CIDER_SCALE = 1000.0
"""CIDEr-D is ten times a mean cosine, and papers print a hundred times that."""
ROUGE_BETA = 1.2
"""How much more recall counts than precision, as in the COCO evaluation."""
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


def words(caption: str) -> list[str]:
    """Lower-case runs of letters and digits, which apostrophes and hyphens may join; other signs are dropped."""
    return _WORD.findall(caption.lower())


def ngrams(caption_words: Sequence[str], n: int) -> list[Ngram]:
    """Each n words in a row."""
    return [tuple(caption_words[begin : begin + n]) for begin in range(len(caption_words) - n + 1)]


class CiderD:
    """CIDEr-D against the true captions of a set of images (Vedantam et al. 2015, section 5, arxiv.org/abs/1411.5726).

    For n = 1 to 4, captions are vectors g of n-gram counts times log(I / number of images with the n-gram):
    sum of min(g_c, g_r) g_r / (|g_c| |g_r|) × exp(-(l_c - l_r)² / 2σ²), averaged over n and over the references r.
    Counts are not divided by the caption's length, in which the authors' code differs from the paper.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """Args: references: the true captions of each image, at least one."""
        self._references = [[words(caption) for caption in captions] for captions in references]
        self._num_images_with: Counter[Ngram] = Counter()
        for captions in self._references:
            self._num_images_with.update(
                {ngram for caption in captions for n in range(1, MAX_NGRAM + 1) for ngram in ngrams(caption, n)}
            )
        self._vectors = [[self._vector(caption) for caption in captions] for captions in self._references]

    def scores(self, candidates: Sequence[str]) -> NDArray[np.float64]:
        """One caption per image, in points, [I]: 0 to 1,000; of captions below four words at most 250 a word."""
        pairs = zip(map(words, candidates), self._references, self._vectors, strict=True)
        return np.array([self._score(caption, captions, vectors) for caption, captions, vectors in pairs])

    def _score(
        self, candidate: list[str], references: list[list[str]], vectors: list[list[dict[Ngram, float]]]
    ) -> float:
        own, total = self._vector(candidate), 0.0
        for reference, reference_vector in zip(references, vectors, strict=True):
            penalty = exp(-((len(candidate) - len(reference)) ** 2) / (2 * CIDER_SIGMA**2))
            total += penalty * sum(map(_clipped_cosine, own, reference_vector)) / MAX_NGRAM
        return CIDER_SCALE * total / len(references)

    def _vector(self, caption: list[str]) -> list[dict[Ngram, float]]:
        return [
            {
                ngram: count * (log(len(self._references)) - log(max(1, self._num_images_with[ngram])))
                for ngram, count in Counter(ngrams(caption, n)).items()
            }
            for n in range(1, MAX_NGRAM + 1)
        ]


def _clipped_cosine(candidate: dict[Ngram, float], reference: dict[Ngram, float]) -> float:
    norms = sqrt(sum(x * x for x in candidate.values())) * sqrt(sum(x * x for x in reference.values()))
    if not norms:
        return 0.0
    return sum(min(x, reference.get(ngram, 0.0)) * reference.get(ngram, 0.0) for ngram, x in candidate.items()) / norms


def bleu_4(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of all captions together, 0 to 1: geometric mean of the 1- to 4-gram precisions, not smoothed, times the
    brevity penalty (Papineni et al. 2002)."""
    as_read = [[" ".join(words(caption)) for caption in captions] for captions in references]
    # sacrebleu wants the first reference of each image, then the second of each, with None where there is none.
    num_references = max(map(len, as_read))
    streams: Any = [
        [captions[number] if number < len(captions) else None for captions in as_read]
        for number in range(num_references)
    ]
    bleu = BLEU(tokenize="none", smooth_method="none", force=True)
    return float(bleu.corpus_score([" ".join(words(caption)) for caption in candidates], streams).score) / 100


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """ROUGE-L (Lin 2004), 0 to 1: F of precision and recall of the longest common subsequence, each with the reference
    that it is best with; recall weighs `ROUGE_BETA` times as much."""
    own, others = words(candidate), [known for known in map(words, references) if known]
    if not own or not others:
        return 0.0
    common = [_longest_common(own, other) for other in others]
    precision = max(common) / len(own)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True))
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for number, other in enumerate(b, 1):
            before, lengths[number] = (
                lengths[number],
                before + 1 if word == other else max(lengths[number], lengths[number - 1]),
            )
    return lengths[-1]


def distinct(captions: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of the captions (Li et al. 2016, distinct-n), 0 to 1."""
    found = [ngram for caption in captions for ngram in ngrams(words(caption), n)]
    return len(set(found)) / len(found) if found else 0.0


def has_repeated_trigram(caption: str) -> bool:
    """Whether three words or signs in a row come twice: a model that is stuck may repeat nothing but commas."""
    found = ngrams(_WORD_OR_SIGN.findall(caption.lower()), 3)
    return len(set(found)) < len(found)
