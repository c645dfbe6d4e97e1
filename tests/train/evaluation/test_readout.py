"""The readout is the language head on patches, and its share counts what a reader would count."""

import json

import numpy as np
import pytest
import torch
from tiny_images import SPEC, broken, square, squares, tiny_model, tiny_tokenizer

from model import EncodedSample, GenLIP, LoadedModel, pack_rows
from train.evaluation.features import Features
from train.evaluation.readout import readout
from train.evaluation.result import Part
from train.evaluation.samples import EvalData, Labelled

[RED] = tiny_tokenizer().encode("red")


def run(loaded: LoadedModel, heldout: list[Labelled]) -> Part:
    data = EvalData(heldout, [])
    return readout(loaded, data, SPEC, Features(loaded, data, SPEC))


def saying(token_id: int) -> LoadedModel:
    """A model whose patches all predict one token."""
    loaded = tiny_model()
    model = loaded.model
    assert isinstance(model, GenLIP)
    with torch.no_grad():
        model.ln_post.weight.zero_()
        model.ln_post.bias.copy_(torch.eye(32)[0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[token_id, 0] = 10
    return loaded


def test_equals_a_dense_computation() -> None:
    loaded, one = tiny_model(text_embed_dim=16), squares(1, seed=0)[0]
    shown = run(loaded, [one]).details["readout/samples"][0]
    patches, grid = loaded.processor.load_patches(one.image)
    sample = EncodedSample(patches, grid, loaded.tokenizer.prompt_ids, loaded.tokenizer.encode(one.caption))
    with torch.no_grad():
        logits = loaded.model.logits(pack_rows([[sample]], sample.num_tokens))[0, : len(patches)]
    expected, ids = logits.softmax(dim=-1).topk(5, dim=-1)
    found = [[value for _, value in patch] for patch in shown["patches"]]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert shown["grid"] == [4, 4]
    assert shown["patches"][3][0][0] == loaded.tokenizer.decode([int(ids[3, 0])])


def test_the_share_and_its_chance_by_hand() -> None:
    captions = ["A red square.", "A red red square!", "A blue square.", "A green square."]
    heldout = [Labelled(str(number), square("red", number), (text,)) for number, text in enumerate(captions)]
    part = run(saying(RED), [heldout[0], broken("red"), *heldout[1:]])
    metric = part.metrics["readout/top1_in_caption"]
    assert part.per_image["readout/top1_in_caption"].tolist() == pytest.approx([1, np.nan, 1, 0, 0], nan_ok=True)
    assert metric.value == 0.5
    # With another image's caption: 1 of 3 for the two red ones, 2 of 3 for the two others.
    assert metric.chance == pytest.approx(0.5)


def test_a_word_counts_by_its_first_token_and_no_other() -> None:
    tokenizer = tiny_tokenizer()
    first, *rest = tokenizer.encode("reddish")
    assert [first] == [RED]
    heldout = [Labelled("0", square("red"), ("So, a reddish one.",)), Labelled("1", square("red"), ("A square.",))]
    assert run(saying(RED), heldout).per_image["readout/top1_in_caption"].tolist() == [1, 0]
    assert run(saying(rest[0]), heldout).per_image["readout/top1_in_caption"].tolist() == [0, 0]


def test_punctuation_is_no_word() -> None:
    loaded = saying(tiny_tokenizer().encode(".")[-1])
    heldout = [Labelled(str(number), square("red"), ("A red square.",)) for number in range(2)]
    assert run(loaded, heldout).metrics["readout/top1_in_caption"].value == 0


def test_few_images_are_shown_and_ready_for_json() -> None:
    part = run(tiny_model(), squares(6, seed=0))
    shown = json.loads(json.dumps(part.details))["readout/samples"]
    assert [one["key"] for one in shown] == ["0-0", "0-1", "0-2", "0-3"]
    for one in shown:
        assert len(one["patches"]) == 16
        for patch in one["patches"]:
            probabilities = [probability for _, probability in patch]
            assert len(patch) == 5
            assert probabilities == sorted(probabilities, reverse=True)
            assert 0 < sum(probabilities) <= 1


def test_several_captions_count_together() -> None:
    heldout = [
        Labelled("0", square("red"), ("A blue square.", "A red one.")),
        Labelled("1", square("red"), ("A green square.",)),
    ]
    assert run(saying(RED), heldout).per_image["readout/top1_in_caption"].tolist() == [1, 0]


def test_without_captions_there_is_no_share() -> None:
    part = run(tiny_model(), [Labelled("0", square("red"), class_name="red")])
    assert part.metrics == {}
    assert len(part.details["readout/samples"]) == 1
    assert "caption" in part.notes[0]


def test_other_objectives_have_no_words() -> None:
    part = run(tiny_model("clip"), squares(2, seed=0))
    assert (part.metrics, part.details) == ({}, {})
    assert "clip" in part.notes[0]
