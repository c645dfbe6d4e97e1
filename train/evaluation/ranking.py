"""Recall, accuracy and their chance levels from score matrices. Plain arithmetic on arrays.

Shape legend: I images, T texts, C classes.
"""

from math import comb

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]


def log_mean_exp(x: Scores, axis: int) -> Scores:
    """log(mean(exp(x))) along an axis, without overflow."""
    top = x.max(axis=axis, keepdims=True)
    return np.asarray(np.squeeze(top, axis) + np.log(np.exp(x - top).mean(axis=axis)), np.float64)


def recall_at(scores_QD: Scores, positive_QD: Mask, k: int) -> float:
    """Share of queries with a positive among their k best documents. Ties count against the query.

    Args:
        scores_QD: One line per query, one column per document; higher is better.
        positive_QD: Which documents answer which query.
        k: How many documents are looked at.
    """
    best_positive_Q = np.where(positive_QD, scores_QD, -np.inf).max(axis=1, keepdims=True)
    rivals_Q = (np.where(positive_QD, -np.inf, scores_QD) >= best_positive_Q).sum(axis=1)
    return float((rivals_Q < k).mean())


def chance_recall_at(positive_QD: Mask, k: int) -> float:
    """Expected `recall_at` of a random order: 1 - C(D-m, k) / C(D, k) for a query with m of D positive, averaged."""
    num_documents = positive_QD.shape[1]
    k = min(k, num_documents)
    misses = [comb(num_documents - int(m), k) / comb(num_documents, k) for m in positive_QD.sum(axis=1)]
    return float(1 - np.mean(misses))


def accuracy(scores_IC: Scores, class_I: NDArray[np.int64], k: int = 1) -> float:
    """Share of images whose class is among the k best. Ties count against."""
    positive_IC = np.zeros(scores_IC.shape, bool)
    positive_IC[np.arange(len(class_I)), class_I] = True
    return recall_at(scores_IC, positive_IC, k)
