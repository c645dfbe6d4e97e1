"""Ranks and chance levels against hand-computed cases and against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from train.evaluation.ranking import chance_rank, chance_recall_at, class_ranks, log_mean_exp, ranks

IDENTITY = np.eye(3, dtype=bool)


def test_a_rank_counts_what_stands_before_the_best_positive() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert ranks(scores, IDENTITY).tolist() == [1, 2, 3]


def test_a_model_that_gives_all_the_same_score_comes_last() -> None:
    assert ranks(np.zeros((3, 3)), IDENTITY).tolist() == [3, 3, 3]
    assert class_ranks(np.zeros((2, 4)), np.array([0, 3])).tolist() == [4, 4]


def test_several_positives_answer_for_each_other() -> None:
    positive = np.array([[True, False, True], [True, True, True]])
    assert ranks(np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), positive).tolist() == [1, 1]


def test_nan_and_minus_infinity_come_last() -> None:
    scores = np.array([[np.nan, 1.0, 2.0], [-np.inf, 1.0, -np.inf], [np.nan, np.nan, 0.0]])
    positive = np.array([[True, False, False], [True, False, False], [False, False, True]])
    assert ranks(scores, positive).tolist() == [3, 3, 1]


def test_one_class_is_always_right() -> None:
    assert class_ranks(np.zeros((2, 1)), np.array([0, 0])).tolist() == [1, 1]


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_chance_is_what_random_orders_reach(num_documents: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = np.zeros((400, num_documents), bool)
    positive[:, : rng.integers(1, num_documents + 1)] = True
    found = ranks(rng.random(positive.shape), positive)
    assert (found <= k).mean() == pytest.approx(chance_recall_at(positive, k)[0], abs=0.13)
    # Six standard errors, of a rank's variance of at most that of a uniform one.
    assert found.mean() == pytest.approx(chance_rank(positive)[0], abs=6 * num_documents / np.sqrt(12 * 400))


@given(arrays(np.float64, (4, 5), elements=st.floats(-700, 700)))
def test_log_mean_exp_is_that_without_overflow(x: np.ndarray) -> None:
    result = log_mean_exp(x, axis=1)
    assert np.all(result <= x.max(axis=1) + 1e-9)
    assert np.allclose(np.exp(result - x.max(axis=1)), np.exp(x - x.max(axis=1, keepdims=True)).mean(axis=1))
