"""The k-th smallest of all samples' numbers, exactly, in four passes of small histograms (radix selection).

`EXPRESSION in top 30%` is `EXPRESSION >= t`, where t is the k-th largest value, k = ⌈0.30 · n⌉ of the n values that
are neither null nor NaN; `in bottom 30%` likewise from below. Values equal to t are all in: ties make it more than k.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.curate.rows import Part
from pipeline.each import Each

Keys = NDArray[np.uint64]
_DIGIT_BITS = 16
_SIGN = np.uint64(1 << 63)


def kth_smallest(
    keys_of: Callable[[Part], Sequence[Keys]],
    ranks: Callable[[Sequence[int]], Sequence[int]],
    parts: Callable[[], Iterable[Part]],
    each: Each,
) -> list[int | None]:
    """The k-th smallest key of each of Q questions; None where there is no k-th.

    Args:
        keys_of: the keys of a part, for each question; called once in each of the four passes.
        ranks: from the number of keys of each question to its k, from 1.
        parts: all parts.
        each: runs them.
    """
    prefixes: list[int | None] = []
    left: list[int] = []
    for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts_QD: NDArray[np.int64] | None = None
        for _, found_QD in each(partial(_histograms, keys_of=keys_of, prefixes=prefixes, shift=shift), parts()):
            counts_QD = found_QD if counts_QD is None else counts_QD + found_QD
        if counts_QD is None:
            return []
        if not prefixes:
            totals = counts_QD.sum(axis=1).tolist()
            left = list(ranks(totals))
            prefixes = [0 if 0 < k <= total else None for k, total in zip(left, totals, strict=True)]
        for question, prefix in enumerate(prefixes):
            if prefix is None:
                continue
            below_D = np.cumsum(counts_QD[question])
            digit = int(np.searchsorted(below_D, left[question]))
            left[question] -= int(below_D[digit - 1]) if digit else 0
            prefixes[question] = prefix << _DIGIT_BITS | digit
    return prefixes


def _histograms(
    part: Part, keys_of: Callable[[Part], Sequence[Keys]], prefixes: Sequence[int | None], shift: int
) -> NDArray[np.int64]:
    """How many keys with the prefix have each next digit: [Q, 65536]."""
    keys = keys_of(part)
    counts_QD = np.zeros((len(keys), 1 << _DIGIT_BITS), np.int64)
    for question, key_N in enumerate(keys):
        if prefixes:
            prefix = prefixes[question]
            if prefix is None:
                continue
            key_N = key_N[key_N >> np.uint64(shift + _DIGIT_BITS) == np.uint64(prefix)]
        digit_N = (key_N >> np.uint64(shift)).astype(np.uint16)
        counts_QD[question] = np.bincount(digit_N, minlength=1 << _DIGIT_BITS)
    return counts_QD


def rank_of(share: Fraction, is_top: bool, num_values: int) -> int:
    """k, from below, of the threshold of a `top` or `bottom`; 0 where there are no values."""
    k = math.ceil(share * num_values)
    return num_values + 1 - k if is_top and num_values else k


def float_keys(values: pa.Array | pa.ChunkedArray) -> Keys:
    """Keys in the order of the numbers, without null and NaN; −0 is 0."""
    value_N: NDArray[Any] = pc.drop_null(values).cast(pa.float64()).to_numpy()
    bits_N = (value_N[~np.isnan(value_N)] + 0.0).view(np.uint64)
    key_N: Keys = np.where(bits_N & _SIGN, ~bits_N, bits_N | _SIGN)
    return key_N


def float_of_key(key: int) -> float:
    """The number of a key of `float_keys`."""
    bits = key ^ (1 << 63) if key >> 63 else ~key & (1 << 64) - 1
    return float(np.array(bits, np.uint64).view(np.float64))
