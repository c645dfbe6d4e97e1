"""Intervals have the coverage that they claim, and are those of the resampling that they describe."""

import numpy as np
import pytest

from train.evaluation import bootstrap
from train.evaluation.bootstrap import difference_interval, interval


def test_covers_a_known_mean_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "NUM_DRAWS", 400)
    rng, inside = np.random.default_rng(0), []
    for seed in range(500):
        low, high = interval((rng.random(80) < 0.3).astype(float), seed)
        inside.append(low <= 0.3 <= high)
    # Binomial noise of 500 repetitions is 1 %; percentile intervals of 80 yes-no values lose a little.
    assert np.mean(inside) == pytest.approx(0.94, abs=0.03)


def test_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(5, 2, 1000)
    low, high = interval(values)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 1000**0.5, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 1000**0.5, abs=0.02)


def test_seeds_add_their_own_spread() -> None:
    """Seeds far apart and equal images: only the draws of seeds matter; the mean of three of three spans all means."""
    values = np.repeat(np.array([[0.0], [1.0], [2.0]]), 50, axis=1)
    assert interval(values[1]) == (1, 1)
    low, high = interval(values)
    # All draws of one seed have probability 1 / 27, so both ends lie inside the 95 %.
    assert (low, high) == (0, 2)


def test_a_difference_on_the_same_images_is_paired() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 300)  # images differ much, models little
    first, second = hard + 0.5 + rng.normal(0, 0.5, 300), hard + rng.normal(0, 0.5, 300)
    low, high = difference_interval(first, second)
    assert 0.3 < low < 0.5 < high < 0.7
    assert interval(first)[1] - interval(first)[0] > 1.5
    assert difference_interval(first, first) == (0, 0)


def test_numbers_of_seeds_may_differ() -> None:
    rng = np.random.default_rng(3)
    low, high = difference_interval(1 + rng.normal(0, 1, (3, 200)), rng.normal(0, 1, (2, 200)))
    assert 0.7 < low < 1 < high < 1.3
    with pytest.raises(ValueError, match="200 and 100"):
        difference_interval(np.zeros(200), np.zeros(100))


def test_images_that_were_not_measured_count_for_nothing() -> None:
    values = np.random.default_rng(4).normal(size=100)
    with_gaps = np.full(1000, np.nan)
    with_gaps[::10] = values
    assert interval(with_gaps) == pytest.approx(interval(values), abs=0.06)
    assert interval(np.array([3.0, np.nan])) == (3, 3)
    assert np.isnan(interval(np.full(4, np.nan))).all()
    assert np.isnan(interval(np.zeros(0))).all()


def test_the_same_seed_gives_the_same_and_memory_bounds_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=(2, 64))
    whole = interval(values)
    assert interval(values) == whole
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_A_TIME", 64 * 100)
    assert interval(values) == pytest.approx(whole, abs=0.05)
