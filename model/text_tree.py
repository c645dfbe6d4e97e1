"""Texts with common beginnings as trees, so that every distinct beginning is run once.

Shape legend: n texts, E tokens (a token is one beginning of a text, shared by all texts that begin so), M inner tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TextTree:
    """A few texts merged by their common beginnings.

    Only the M inner tokens, those that some text continues, need to be run: they predict the tokens behind them.

    Attributes:
        texts: which of the planned texts these are, n numbers.
        token_ids_E: id of every token.
        source_E: the place that predicts the token: 0 is whatever precedes the texts, m + 1 the inner token m.
        is_part_nE: which tokens make up which text.
        inner_ids_M: ids of the inner tokens.
        inner_depth_M: how many tokens of its text come before an inner token.
        sees_MM: which inner tokens an inner token sees: those before it in its text, and itself.
    """

    texts: list[int]
    token_ids_E: Tensor
    source_E: Tensor
    is_part_nE: Tensor
    inner_ids_M: Tensor
    inner_depth_M: Tensor
    sees_MM: Tensor

    @property
    def num_inner(self) -> int:
        """M."""
        return len(self.inner_ids_M)


def plan_trees(texts: Sequence[Sequence[int]], tree_tokens: int) -> list[TextTree]:
    """Divides texts into trees of at most `tree_tokens` tokens (a single longer text makes a tree of its own).

    Neighbours in sorted order have the longest common beginnings, so each tree takes a run of them.
    """
    trees: list[TextTree] = []
    chosen: list[int] = []
    num_tokens = 0
    previous: Sequence[int] = ()
    for number in sorted(range(len(texts)), key=lambda i: list(texts[i])):
        text = texts[number]
        num_new = len(text) - _num_common(previous, text)
        if chosen and num_tokens + num_new > tree_tokens:
            trees.append(_merge(texts, chosen))
            chosen, num_tokens, num_new = [], 0, len(text)
        chosen.append(number)
        num_tokens += num_new
        previous = text
    return [*trees, _merge(texts, chosen)] if chosen else trees


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _merge(texts: Sequence[Sequence[int]], chosen: list[int]) -> TextTree:
    # A token is known by its predecessor (-1: none) and its id; numbered in order of arrival, after its predecessor.
    number_of: dict[tuple[int, int], int] = {}
    last_of_text = []
    for text in (texts[i] for i in chosen):
        token = -1
        for token_id in text:
            token = number_of.setdefault((token, token_id), len(number_of))
        last_of_text.append(token)
    before_E, ids_E = np.array(list(number_of), np.int64).T
    sees_EE = np.eye(len(ids_E), dtype=bool)
    for token, before in enumerate(before_E):
        if before >= 0:
            sees_EE[token] |= sees_EE[before]
    inner = np.unique(before_E[before_E >= 0])
    arrays = (
        ids_E,
        np.searchsorted(inner, before_E) + (before_E >= 0),
        sees_EE[last_of_text],
        ids_E[inner],
        sees_EE[inner].sum(axis=1) - 1,
        sees_EE[np.ix_(inner, inner)],
    )
    return TextTree(chosen, *(torch.from_numpy(array) for array in arrays))
