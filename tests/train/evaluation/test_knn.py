"""Nearest neighbours against a loop, and what is said when there is nothing to classify."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_images import SPEC, broken, coloured_data, squares, tiny_model

from train.evaluation.features import Features
from train.evaluation.knn import TEMPERATURE, knn, knn_predict
from train.evaluation.samples import EvalData


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 30), num_training=st.integers(1, 25))
def test_equals_a_loop(seed: int, k: int, num_training: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(num_training, 5, generator=generator)
    classes = torch.randint(4, (num_training,), generator=generator)
    queries = torch.randn(6, 5, generator=generator)
    predicted = knn_predict(train, classes, queries, 4, k)
    for query, found in zip(queries.tolist(), predicted.tolist(), strict=True):
        cosines = [
            sum(a * b for a, b in zip(query, other, strict=True)) / (math.hypot(*query) * math.hypot(*other))
            for other in train.tolist()
        ]
        votes = [0.0] * 4
        for cosine, number in sorted(zip(cosines, classes.tolist(), strict=True), reverse=True)[:k]:
            votes[number] += math.exp(cosine / TEMPERATURE)
        assert votes[found] == pytest.approx(max(votes), rel=1e-4)


def test_many_queries_are_answered_in_order() -> None:
    corners = torch.eye(3)
    queries = torch.arange(3000) % 3
    assert torch.equal(knn_predict(corners, torch.tensor([2, 0, 1]), corners[queries], 3, k=1), (queries + 2) % 3)


def test_colours_are_told_apart_by_an_untrained_model() -> None:
    data = coloured_data()
    loaded = tiny_model()
    part = knn(loaded, data, SPEC, Features(loaded, data, SPEC))
    metric = part.metrics["knn/top1"]
    assert metric.value == 1
    assert metric.chance == pytest.approx(1 / 3)
    assert part.per_image["knn/top1"].tolist() == [1] * 9
    assert part.details["knn/majority_class"] == pytest.approx(1 / 3)


def test_images_without_value_are_not_in_the_mean() -> None:
    loaded = tiny_model()
    data = EvalData([broken("red"), *squares(6, seed=1000)], squares(6, seed=0, colours=("red", "blue")))
    part = knn(loaded, data, SPEC, Features(loaded, data, SPEC))
    per_image = part.per_image["knn/top1"]
    assert np.isnan(per_image).tolist() == [True, False, True, False, False, True, False]
    assert part.metrics["knn/top1"].value == np.nanmean(per_image)
    assert "2 held-out images" in part.notes[0]


@pytest.mark.parametrize(("heldout", "training"), [(("red",), ("red",)), (("red",), ()), (("green",), ("red", "blue"))])
def test_too_few_classes_give_a_note(heldout: tuple[str, ...], training: tuple[str, ...]) -> None:
    loaded = tiny_model()
    data = EvalData(squares(4, 1000, heldout), squares(4, 0, training) if training else [])
    part = knn(loaded, data, SPEC, Features(loaded, data, SPEC))
    assert part.metrics == {}
    assert "knn is left out" in part.notes[0]
