"""Recall and chance against hand-computed cases and against simulation."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from train.evaluation.ranking import accuracy, chance_recall_at, log_mean_exp, recall_at

IDENTITY = np.eye(3, dtype=bool)


def test_recall_counts_queries_with_a_positive_among_the_best() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert recall_at(scores, IDENTITY, 1) == 1 / 3
    assert recall_at(scores, IDENTITY, 2) == 2 / 3
    assert recall_at(scores, IDENTITY, 3) == 1


def test_a_model_that_gives_all_the_same_score_gets_nothing() -> None:
    assert recall_at(np.zeros((3, 3)), IDENTITY, 1) == 0
    assert accuracy(np.zeros((2, 4)), np.array([0, 3])) == 0


def test_several_positives_answer_for_each_other() -> None:
    positive = np.array([[True, False, True]])
    assert recall_at(np.array([[1.0, 2.0, 3.0]]), positive, 1) == 1


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_chance_is_what_random_orders_reach(num_documents: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = np.zeros((1, num_documents), bool)
    positive[0, : rng.integers(1, num_documents + 1)] = True
    found = np.mean([recall_at(rng.random((1, num_documents)), positive, k) for _ in range(400)])
    assert abs(found - chance_recall_at(positive, k)) < 0.13


@given(arrays(np.float64, (4, 5), elements=st.floats(-700, 700)))
def test_log_mean_exp_is_that_without_overflow(x: np.ndarray) -> None:
    result = log_mean_exp(x, axis=1)
    assert np.all(result <= x.max(axis=1) + 1e-9)
    assert np.allclose(np.exp(result - x.max(axis=1)), np.exp(x - x.max(axis=1, keepdims=True)).mean(axis=1))
