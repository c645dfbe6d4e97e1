"""Which captions may belong to an image, guessed from its features at next to no cost: the first stage of retrieval.

A ridge regression from mean-pooled features to the caption's bag of tokens (idf-weighted, of length 1), fitted on
training pairs; a text fits an image as well as its bag agrees with the predicted one, by cosine.

Shape legend: N training pairs, I images, T texts, D feature width, V tokens that occur in training captions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.evaluation.ranking import Scores, unit

RIDGE = 1.0
"""Of the variance of a standardised feature."""


def agreement(
    train_ND: Scores, train_ids: Sequence[Sequence[int]], image_ID: Scores, text_ids: Sequence[Sequence[int]]
) -> Scores:
    """How well each text agrees with what the features of each image predict, [I, T].

    Args:
        train_ND: Mean-pooled features of training images.
        train_ids: Tokens of their captions.
        image_ID: Features of the images that look for texts.
        text_ids: Tokens of the texts.
    """
    vocabulary = np.unique(np.concatenate([np.asarray(ids, np.int64) for ids in train_ids]))
    bags_NV = _bags(train_ids, vocabulary)
    idf_V = np.log((1 + len(bags_NV)) / (1 + (bags_NV > 0).sum(axis=0)))
    mean_D, scale_D = train_ND.mean(axis=0), train_ND.std(axis=0) + 1e-6
    x_ND, x_ID = (train_ND - mean_D) / scale_D, (image_ID - mean_D) / scale_D
    targets_NV = unit(bags_NV * idf_V)
    offset_V = targets_NV.mean(axis=0)
    gram_DD = x_ND.T @ x_ND + RIDGE * len(x_ND) * np.eye(x_ND.shape[1])
    weights_DV = np.linalg.solve(gram_DD, x_ND.T @ (targets_NV - offset_V))
    # Without the offset, so that words which all captions have do not speak for a text.
    return np.asarray(unit(x_ID @ weights_DV) @ unit(_bags(text_ids, vocabulary) * idf_V).T, np.float64)


def best(scores_QD: Scores, k: int) -> NDArray[np.bool_]:
    """Which k documents of each query score best."""
    chosen_QD = np.zeros(scores_QD.shape, bool)
    np.put_along_axis(chosen_QD, np.argsort(-scores_QD, axis=1, kind="stable")[:, :k], True, axis=1)
    return chosen_QD


def _bags(texts: Sequence[Sequence[int]], vocabulary: NDArray[np.int64]) -> Scores:
    """How often each known token occurs in each text."""
    bags = np.zeros((len(texts), len(vocabulary)))
    for bag_V, ids in zip(bags, texts, strict=True):
        known = np.asarray(ids, np.int64)[np.isin(ids, vocabulary)]
        np.add.at(bag_V, np.searchsorted(vocabulary, known), 1)
    return bags
