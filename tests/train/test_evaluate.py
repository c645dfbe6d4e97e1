"""Evaluation of an untrained model: the numbers hang together, and what cannot be measured is left out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model import GenLIP, LoadedModel
from pipeline.errors import UserError
from pipeline.store import Store
from train.data.dataset import open_dataset
from train.evaluate import Labelled, evaluate, read_labelled, require_heldout
from train.evaluation.spec import EvalSpec
from train.setup import set_up

SPEC = EvalSpec(class_captions=2, class_templates=("A photo of a {}.",), batch_images=4)


@pytest.fixture
def measured(make_run: Callable[..., Path]) -> tuple[LoadedModel, list[Labelled], list[Labelled]]:
    setup = set_up(make_run())
    model = GenLIP(setup.config)
    model.init_weights(0)
    loaded = LoadedModel(model, setup.tokenizer, setup.processor)
    heldout = read_labelled(open_dataset(Store(setup.job.store), "demo-heldout"), 12)
    return loaded, heldout, read_labelled(setup.sources[0].dataset, 60)


def test_numbers_hang_together(measured: tuple[LoadedModel, list[Labelled], list[Labelled]]) -> None:
    result = evaluate(*measured, SPEC, max_caption_tokens=64)
    loss = result["caption_loss"]
    assert loss["nats_per_token"] * loss["num_tokens"] == pytest.approx(loss["nats_per_byte"] * loss["num_bytes"])
    # Untrained, the model is close to uniform over its vocabulary.
    assert loss["nats_per_token"] == pytest.approx(loss["uniform_nats_per_token"], rel=0.1)
    zero_shot = result["zero_shot"]
    assert zero_shot["chance"] == 1 / zero_shot["num_classes"]
    assert zero_shot["captions_gain_top1"] <= zero_shot["captions_gain_top5"]
    retrieval = result["retrieval"]
    assert retrieval["image_to_text_r1"] <= retrieval["image_to_text_r5"] <= retrieval["image_to_text_r10"]
    assert retrieval["image_to_text_r1_chance"] == pytest.approx(1 / retrieval["num_texts"])


def test_no_image_is_on_both_sides(measured: tuple[LoadedModel, list[Labelled], list[Labelled]]) -> None:
    _, heldout, training = measured
    assert not {one.image for one in heldout} & {one.image for one in training}


def test_without_classes_there_is_no_classification(
    measured: tuple[LoadedModel, list[Labelled], list[Labelled]],
) -> None:
    loaded, heldout, training = measured
    unlabelled = [[replace(one, class_name=None) for one in side] for side in (heldout, training)]
    assert evaluate(loaded, *unlabelled, SPEC, max_caption_tokens=64)["zero_shot"] == {}


def test_nothing_held_out_is_said() -> None:
    with pytest.raises(UserError, match=r"shards\.holdout=0\.1"):
        require_heldout([], "demo-heldout")
