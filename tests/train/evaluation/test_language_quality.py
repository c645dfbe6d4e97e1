"""Losses of captions per token, byte and word, and calibration, by hand and against the model's own logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from taught_models import taught
from tiny_images import SPEC, squares, tiny_model

from model import EncodedSample, GenLIP, LoadedModel, pack_rows
from train.evaluation.language import calibration, language
from train.evaluation.result import Part
from train.evaluation.samples import EvalData
from train.evaluation.scorers import LikelihoodScorer, make_scorer


def measure(loaded: LoadedModel, data: EvalData, max_caption_tokens: int = 64) -> Part:
    scorer = make_scorer(loaded, max_caption_tokens, data.training)
    assert isinstance(scorer, LikelihoodScorer)
    return language(scorer, data, SPEC)


@pytest.mark.parametrize("objective", ["genlip", "cappa"])
def test_losses_are_the_sums_of_the_model(objective: str) -> None:
    loaded, images = taught(objective), squares(6, seed=1000)
    images[1] = replace(images[1], captions=("A green square.", "Some grün."))
    images.append(replace(images[0], key="silent", captions=()))
    part = measure(loaded, EvalData(images, squares(3, seed=0)))
    total, num_tokens = 0.0, 0
    for one in images:
        for caption in one.captions:
            ids = [*loaded.tokenizer.encode(caption), *loaded.tokenizer.ending_ids]
            sample = EncodedSample(*loaded.processor.load_patches(one.image), loaded.tokenizer.prompt_ids, ids)
            with torch.no_grad():
                total += float(loaded.model(pack_rows([[sample]], sample.num_tokens)).loss_sum)
            num_tokens += len(ids)
    texts = [caption for one in images for caption in one.captions]
    value = {name.removeprefix("language/"): metric.value for name, metric in part.metrics.items()}
    assert value["nats_per_token"] == pytest.approx(total / num_tokens, rel=1e-4)
    assert value["nats_per_byte"] == pytest.approx(total / sum(len(text.encode()) for text in texts), rel=1e-4)
    assert value["nats_per_word"] == pytest.approx(total / sum(len(text.split()) for text in texts), rel=1e-4)
    assert value["perplexity"] == pytest.approx(np.exp(total / num_tokens), rel=1e-3)
    assert value["bits_per_byte"] == pytest.approx(value["nats_per_byte"] / np.log(2))
    for name, per_image in part.per_image.items():
        assert np.nanmean(per_image) == pytest.approx(part.metrics[name].value)
        assert np.isnan(per_image).tolist() == [False] * 6 + [True]


def test_an_untrained_model_is_at_chance_and_a_trained_one_below() -> None:
    data = EvalData(squares(6, seed=1000), squares(12, seed=0))
    untrained = measure(tiny_model(initializer_range=0.01), data).metrics
    assert untrained["language/nats_per_token"].value == pytest.approx(np.log(300), rel=0.1)
    assert untrained["language/nats_per_token"].chance == pytest.approx(np.log(taught().tokenizer.vocab_size))
    trained = measure(taught(), data).metrics
    unigram = trained["language/unigram_nats_per_token"].value
    assert trained["language/nats_per_token"].value < unigram < untrained["language/nats_per_token"].value


def test_calibration_is_that_of_the_logits() -> None:
    loaded, images = taught(), squares(5, seed=1000)
    assert isinstance(loaded.model, GenLIP)
    part = measure(loaded, EvalData(images, []))
    confidence, right = [], []
    for one in images:
        ids = [*loaded.tokenizer.encode(one.caption), *loaded.tokenizer.ending_ids]
        sample = EncodedSample(*loaded.processor.load_patches(one.image), loaded.tokenizer.prompt_ids, ids)
        with torch.no_grad():
            p = loaded.model.logits(pack_rows([[sample]], sample.num_tokens))[0, -len(ids) - 1 : -1].softmax(dim=-1)
        confidence += p.max(dim=-1).values.tolist()
        right += (p.argmax(dim=-1) == torch.tensor(ids)).tolist()
    expected, bins = calibration(np.array(confidence), np.array(right))
    assert part.metrics["language/calibration_error"].value == pytest.approx(expected, abs=1e-4)
    assert [one["num_tokens"] for one in part.details["language/calibration"]] == [one["num_tokens"] for one in bins]


def test_calibration_by_hand() -> None:
    # Two bins: 3 of 4 right at 0.75, as it should be; none of 1 right at 1.0, which goes into the last bin.
    error, bins = calibration(np.array([0.75, 0.75, 0.75, 0.75, 1.0]), np.array([True, True, True, False, False]))
    assert error == pytest.approx(0.2)
    assert bins == [
        {"confidence": 0.75, "accuracy": 0.75, "num_tokens": 4},
        {"confidence": 1.0, "accuracy": 0.0, "num_tokens": 1},
    ]


def test_cut_captions_count_by_what_is_seen() -> None:
    images = [replace(one, captions=("A red square. " * 10,)) for one in squares(2, seed=0)]
    part = measure(taught(), EvalData(images, []), max_caption_tokens=5)
    assert "2 captions longer than 5 tokens were cut" in part.notes[0]
    assert part.details["language/num_tokens"] == 2 * (5 + 2)
    assert part.details["language/num_bytes"] < 2 * len("A red square. " * 5)


def test_without_captions_there_is_a_note() -> None:
    part = measure(
        tiny_model(), EvalData([replace(one, captions=()) for one in squares(2, seed=0)], squares(2, seed=9))
    )
    assert part.metrics == {}
    assert "left out" in part.notes[0]
