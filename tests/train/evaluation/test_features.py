"""Frozen features are those of the model, one by one, whatever batches and bounds they were computed under."""

from typing import get_args

import numpy as np
import pytest
import torch
from tiny_images import SPEC, broken, coloured_data, square, squares, tiny_model

from model import ImageProcessor, LoadedModel
from train.evaluation.features import Features, ImageFeatures
from train.evaluation.labels import read_labels
from train.evaluation.samples import EvalData, Labelled
from train.recipe import Objective


def one_by_one(loaded: LoadedModel, one: Labelled) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model.encode_images([loaded.processor.load_patches(one.image)])[0]


@pytest.mark.parametrize("objective", get_args(Objective))
def test_every_objective_has_features(objective: str) -> None:
    loaded, samples = tiny_model(objective), squares(6, seed=0)
    images = ImageFeatures(loaded, samples, batch_images=4)
    expected = torch.stack([one_by_one(loaded, one).mean(dim=0) for one in samples])
    torch.testing.assert_close(images.pooled_ND, expected, rtol=1e-4, atol=1e-5)
    assert images.pooled_ND.requires_grad is False


def test_a_model_in_training_mode_gives_the_same_and_stays_in_it() -> None:
    loaded, samples = tiny_model(drop_path_rate=0.5), squares(4, seed=0)
    expected = ImageFeatures(loaded, samples, batch_images=4).pooled_ND
    loaded.model.train()
    torch.testing.assert_close(ImageFeatures(loaded, samples, batch_images=4).pooled_ND, expected)
    assert loaded.model.training


@pytest.mark.parametrize(("kept_bytes", "tolerance"), [(2**30, 2e-3), (0, 1e-5)])
def test_patches_of_unlike_sizes_are_padded(kept_bytes: int, tolerance: float) -> None:
    loaded = tiny_model(processor=ImageProcessor(mode="native", patch_size=8, min_pixels=64, max_pixels=4096))
    sizes = [(32, 32), (16, 48), (24, 8), (8, 8), (40, 24)]
    samples = [Labelled(str(size), square("red", size_px=size)) for size in sizes]
    images = ImageFeatures(loaded, samples, batch_images=2, kept_bytes=kept_bytes)
    assert images.grids == [(height // 8, width // 8) for height, width in sizes]
    x_BPD, is_patch_BP = images.patches([4, 1, 2])
    assert x_BPD.dtype == torch.float32
    assert is_patch_BP.sum(dim=1).tolist() == [15, 12, 3]
    assert not x_BPD[~is_patch_BP].any()
    for place, row in enumerate([4, 1, 2]):
        expected = one_by_one(loaded, samples[row])
        torch.testing.assert_close(x_BPD[place, is_patch_BP[place]], expected, rtol=tolerance, atol=tolerance)


def test_images_that_do_not_decode_are_counted_and_have_no_value() -> None:
    heldout, training = squares(3, seed=1000), squares(6, seed=0)
    data = EvalData([heldout[0], broken("red"), *heldout[1:]], [broken("red"), *training])
    features = Features(tiny_model(), data, SPEC)
    assert features.skipped == {}
    assert len(features.heldout.samples) == 3
    assert features.heldout.number_N.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(features.heldout.per_image([0, 2], [1.0, 0.5]), [1, np.nan, np.nan, 0.5])
    assert len(features.training.pooled_ND) == 6
    assert set(features.skipped.values()) == {1}
    assert len(features.skipped) == 2


def test_nothing_decodes() -> None:
    features = Features(tiny_model(), EvalData([broken("red")], []), SPEC)
    assert features.heldout.pooled_ND.shape == (0, 32)
    assert np.isnan(features.heldout.per_image([], [])).all()


def test_training_images_are_labelled_ones_up_to_the_limit() -> None:
    training = [Labelled("plain", square("red")), *squares(9, seed=0)]
    spec = SPEC.model_copy(update={"probe": SPEC.probe.model_copy(update={"max_train_images": 5})})
    features = Features(tiny_model(), EvalData([], training), spec)
    assert [one.key for one in features.training.samples] == [f"0-{number}" for number in range(5)]


def test_labels_leave_out_classes_without_training_images() -> None:
    data = EvalData(squares(6, seed=1000), squares(4, seed=0, colours=("red", "blue")))
    labels = read_labels(Features(tiny_model(), data, SPEC))
    assert labels.class_names == ["blue", "red"]
    assert labels.num_unknown == 2
    assert labels.train_class_N.tolist() == [1, 0, 1, 0]
    assert labels.heldout_rows_M.tolist() == [0, 2, 3, 5]
    assert labels.heldout_class_M.tolist() == [1, 0, 1, 0]
    assert labels.majority == 0.5
    assert labels.problem == ""
    assert "2 held-out images" in labels.notes[0]


def test_sides_are_computed_once() -> None:
    features = Features(tiny_model(), coloured_data(), SPEC)
    assert features.heldout is features.heldout
    assert features.training is features.training
