"""Confidence intervals of means over images, and over training seeds, by the bootstrap.

Percentile intervals (Efron & Tibshirani 1993, ch. 13). Images and seeds are crossed: every draw takes images with
replacement, the same for all seeds, and seeds with replacement. With a handful of seeds such an interval is somewhat
too narrow: the spread of S resampled seeds has (S - 1) / S of the variance of the seeds.

Shape legend: S seeds, I images, B draws.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_DRAWS = 2_000
CONFIDENCE = 0.95
# Bounds memory: counts of images of this many draws times images at a time, 32 MiB.
_COUNTS_AT_A_TIME = 2**22


def interval(values_SI: Array, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over images and seeds.

    Args:
        values_SI: One value per image, [I], or per seed and image, [S, I]; NaN where an image was not measured.
        seed: Of the draws.

    Returns:
        Lower and upper bound; NaN without any value.
    """
    return _percentiles(np.concatenate(list(_means(np.atleast_2d(values_SI), np.random.default_rng(seed)))))


def difference_interval(first_SI: Array, second_SI: Array, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(first) - mean(second) on the same images, whose seeds have nothing to do with each other.

    Args:
        first_SI: As in `interval`.
        second_SI: Of the same images in the same order; the number of seeds may differ.
        seed: Of the draws.
    """
    first_SI, second_SI = np.atleast_2d(first_SI), np.atleast_2d(second_SI)
    if first_SI.shape[1] != second_SI.shape[1]:
        raise ValueError(f"a paired difference of {first_SI.shape[1]} and {second_SI.shape[1]} images")
    rng, differences = np.random.default_rng(seed), []
    for counts_BI in _draw_images(first_SI.shape[1], rng):
        differences.append(_weighted_means(first_SI, counts_BI, rng) - _weighted_means(second_SI, counts_BI, rng))
    return _percentiles(np.concatenate(differences))


def _means(values_SI: Array, rng: np.random.Generator) -> Iterator[Array]:
    for counts_BI in _draw_images(values_SI.shape[1], rng):
        yield _weighted_means(values_SI, counts_BI, rng)


def _draw_images(num_images: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each image is drawn, [B, I], a share of the draws at a time."""
    at_a_time = max(1, _COUNTS_AT_A_TIME // max(num_images, 1))
    for begin in range(0, NUM_DRAWS, at_a_time):
        yield _counts(min(at_a_time, NUM_DRAWS - begin), num_images, rng)


def _weighted_means(values_SI: Array, counts_BI: Array, rng: np.random.Generator) -> Array:
    """Mean over the drawn images of each seed, then over drawn seeds, [B]."""
    measured_SI = ~np.isnan(values_SI)
    with np.errstate(invalid="ignore"):  # a draw of none of the measured images is NaN, and left out
        means_BS = counts_BI @ np.where(measured_SI, values_SI, 0).T / (counts_BI @ measured_SI.T)
    counts_BS = _counts(len(counts_BI), len(values_SI), rng)
    means_B: Array = (means_BS * counts_BS).sum(axis=1) / len(values_SI)
    return means_B


def _counts(num_draws: int, num_values: int, rng: np.random.Generator) -> Array:
    if not num_values:
        return np.zeros((num_draws, 0))
    return rng.multinomial(num_values, np.full(num_values, 1 / num_values), size=num_draws).astype(np.float64)


def _percentiles(means_B: Array) -> tuple[float, float]:
    found = means_B[~np.isnan(means_B)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
