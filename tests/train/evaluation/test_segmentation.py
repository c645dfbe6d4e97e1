"""Intersection over union by hand, and a probe on squares whose halves have unlike colours."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_images import COLOURS, SIDE_PX, SPEC, png, squares, tiny_model

from train.evaluation.features import Features
from train.evaluation.result import Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.segmentation import (
    NO_LABEL,
    NOT_COUNTED,
    count_pixels,
    intersection_over_union,
    patch_labels,
    pixel_classes,
    segmentation,
)


def test_intersection_over_union_by_hand() -> None:
    mask = np.array([[0, 0, 1], [1, 2, NOT_COUNTED]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    pixels = count_pixels(mask, predicted, num_classes=4)
    assert pixels.sum() == 5
    iou = intersection_over_union(pixels)
    # Class 0: one of {2 true, 2 predicted}; class 1: two of {2, 3}; class 2: none of {1, 0}; class 3 is nowhere.
    np.testing.assert_allclose(iou, [1 / 3, 2 / 3, 0, np.nan])


@settings(max_examples=60)
@given(
    mask=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 5, 255])),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_the_label_of_a_patch_is_its_most_frequent_class(mask: np.ndarray, grid: tuple[int, int]) -> None:
    pixels: dict[int, Counter[int]] = {patch: Counter() for patch in range(grid[0] * grid[1])}
    for (y, x), number in np.ndenumerate(mask):
        patch = (y * grid[0] // mask.shape[0]) * grid[1] + x * grid[1] // mask.shape[1]
        if number != NOT_COUNTED:
            pixels[patch][int(number)] += 1
    for patch, label in enumerate(patch_labels(mask, grid).tolist()):
        if pixels[patch]:
            assert pixels[patch][label] == max(pixels[patch].values())
        else:
            assert label == NO_LABEL


def test_logits_are_enlarged_before_the_likeliest_is_taken() -> None:
    """Two patches, 4 and -1 in favour of class 0, over four pixels: 4, 2.75, 0.25, -1 between their centres."""
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    assert pixel_classes(logits, (1, 2), (1, 4)).tolist() == [[0, 0, 0, 1]]
    assert pixel_classes(logits, (2, 1), (4, 1)).tolist() == [[0], [0], [0], [1]]


def halves(seed: int, left: str, right: str) -> Labelled:
    """Two colours side by side, three eighths of the width left, with their numbers as the mask; a border is open."""
    split = SIDE_PX * 3 // 8
    pixels = np.empty((SIDE_PX, SIDE_PX, 3), np.int64)
    pixels[:, :split], pixels[:, split:] = COLOURS[left], COLOURS[right]
    pixels += np.random.default_rng(seed).integers(-20, 21, pixels.shape)
    names = list(COLOURS)
    # Masks may be larger than what the model sees of the image.
    mask = np.empty((2 * SIDE_PX, 2 * SIDE_PX), np.uint8)
    mask[:, : 2 * split], mask[:, 2 * split :] = names.index(left), names.index(right)
    mask[:4] = NOT_COUNTED
    return Labelled(str(seed), png(pixels.clip(0, 255).astype(np.uint8)), mask=png(mask))


PAIRS = [("red", "green"), ("green", "blue"), ("blue", "red"), ("blue", "green")]


@pytest.fixture(scope="module")
def measured() -> Part:
    """Four held-out images, and one of which the mask is damaged."""
    training = [halves(number, *PAIRS[number % 4]) for number in range(24)]
    heldout = [halves(100 + number, *PAIRS[number]) for number in range(4)]
    damaged = replace(heldout[0], mask=b"no mask")
    return run(EvalData([heldout[0], damaged, *heldout[1:]], training))


def run(data: EvalData) -> Part:
    loaded = tiny_model()
    return segmentation(loaded, data, SPEC, Features(loaded, data, SPEC))


def test_the_probe_finds_the_halves(measured: Part) -> None:
    """The border lies inside a patch, so that enlarging patches cannot be exact, but nearly everything is right."""
    assert measured.metrics["segmentation/pixel_accuracy"].value > 0.85
    assert measured.metrics["segmentation/miou"].value > 0.7


def test_numbers_hang_together(measured: Part) -> None:
    iou = measured.details["segmentation/iou_by_class"]
    assert len(iou) == 3
    assert measured.metrics["segmentation/miou"].value == pytest.approx(np.mean(iou))
    per_image = measured.per_image["segmentation/pixel_accuracy"]
    assert np.isnan(per_image).tolist() == [False, True, False, False, False]
    assert measured.metrics["segmentation/pixel_accuracy"].value == np.nanmean(per_image)
    assert measured.details["segmentation/num_images"] == 4
    assert measured.details["segmentation/num_training_images"] == 24
    assert "1 held-out masks" in measured.notes[0]


def test_chance_is_the_most_frequent_class(measured: Part) -> None:
    """Of eighths, green has 5 + 3 + 5 in four images, blue 5 + 3 + 3 and red 3 + 5, in training as held out."""
    assert measured.metrics["segmentation/pixel_accuracy"].chance == pytest.approx(13 / 32)
    assert measured.metrics["segmentation/miou"].chance == pytest.approx(13 / 32 / 3)


@pytest.mark.parametrize(
    "data",
    [
        EvalData(squares(2, seed=1000), squares(4, seed=0)),
        EvalData(squares(2, seed=1000), [halves(0, "red", "green")]),
        EvalData([halves(0, "red", "green")], squares(4, seed=0)),
        EvalData([halves(0, "red", "green")], [halves(1, "red", "red"), halves(2, "red", "red")]),
        EvalData([replace(halves(0, "red", "green"), mask=b"no mask")], [halves(1, "red", "green")]),
        EvalData([halves(0, "red", "green")], [replace(halves(1, "red", "green"), mask=b"no mask")]),
        EvalData(
            [halves(0, "red", "green")],
            [replace(one, mask=png(np.full((8, 8), 255, np.uint8))) for one in squares(2, 0)],
        ),
    ],
)
def test_without_masks_or_classes_there_is_a_note(data: EvalData) -> None:
    part = run(data)
    assert part.metrics == {}
    assert "segmentation is left out" in part.notes[0]
