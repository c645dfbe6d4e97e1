"""Ranks, recall, accuracy and their chance levels from score matrices. Plain arithmetic on arrays.

Shape legend: I images, T texts, C classes, Q queries, D documents.
"""

from math import comb

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]
Classes = NDArray[np.int64]


def log_mean_exp(x: Scores, axis: int) -> Scores:
    """log(mean(exp(x))) along an axis, without overflow."""
    top = x.max(axis=axis, keepdims=True)
    return np.asarray(np.squeeze(top, axis) + np.log(np.exp(x - top).mean(axis=axis)), np.float64)


def unit(x: Scores) -> Scores:
    """Lines of length 1; zeros stay zeros."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12), np.float64)


def ranks(scores_QD: Scores, positive_QD: Mask) -> NDArray[np.int64]:
    """Place of the best positive document among the others of its query, from 1, [Q]. Ties count against the query.

    Args:
        scores_QD: One line per query, one column per document; higher is better. NaN ranks last.
        positive_QD: Which documents answer which query; at least one each.
    """
    scores_QD = np.where(np.isnan(scores_QD), -np.inf, scores_QD)
    best_positive_Q = np.where(positive_QD, scores_QD, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(1 + (~positive_QD & (scores_QD >= best_positive_Q)).sum(axis=1), np.int64)


def class_ranks(scores_IC: Scores, class_I: Classes) -> NDArray[np.int64]:
    """Place of each image's class, from 1, [I]. Ties count against."""
    return ranks(scores_IC, np.arange(scores_IC.shape[1]) == class_I[:, None])


def chance_recall_at(positive_QD: Mask, k: int) -> Scores:
    """Share of random orders with one of the m positives among the first k, 1 - C(D-m, k) / C(D, k), [Q]."""
    num_documents = positive_QD.shape[1]
    k = min(k, num_documents)
    misses = [comb(num_documents - int(m), k) / comb(num_documents, k) for m in positive_QD.sum(axis=1)]
    return 1 - np.array(misses, np.float64)


def chance_rank(positive_QD: Mask) -> Scores:
    """Mean rank in random orders, [Q]: m positives part the D - m others into m + 1 shares, one of them before all."""
    return np.asarray((positive_QD.shape[1] + 1) / (positive_QD.sum(axis=1) + 1), np.float64)
