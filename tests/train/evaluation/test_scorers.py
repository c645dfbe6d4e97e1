"""Scores are those of the model, for every objective that knows text; each image is run once whatever the texts."""

import numpy as np
import pytest
import torch
from tiny_images import squares, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from model import EncodedSample, GenLIP, pack_rows
from train.evaluation.cost import announce, scoring_cost
from train.evaluation.scorers import CosineScorer, LikelihoodScorer, count_patches, make_scorer

TEXTS = ["A red square.", "A green square.", "A blue thing", "square"]


@pytest.mark.parametrize("objective", ["genlip", "cappa"])
def test_a_likelihood_is_the_negative_loss_of_the_caption(objective: str) -> None:
    loaded, samples = tiny_model(objective), squares(3, seed=0)
    scorer = make_scorer(loaded, 64, samples)
    assert isinstance(scorer, LikelihoodScorer)
    scores = scorer.score(scorer.images(samples), TEXTS)
    for image, one in enumerate(samples):
        for text, caption in enumerate(TEXTS):
            ids = [*loaded.tokenizer.encode(caption), *loaded.tokenizer.ending_ids]
            sample = EncodedSample(*loaded.processor.load_patches(one.image), loaded.tokenizer.prompt_ids, ids)
            with torch.no_grad():
                loss = loaded.model(pack_rows([[sample]], sample.num_tokens)).loss_sum
            assert scores[image, text] == pytest.approx(-float(loss), rel=1e-4)
    assert scorer.prior(TEXTS) == pytest.approx(np.log(np.exp(scores).mean(axis=0)), rel=1e-6)


@pytest.mark.parametrize("objective", ["clip", "siglip"])
def test_a_cosine_is_that_of_the_two_towers(objective: str) -> None:
    loaded, samples = tiny_model(objective), squares(70, seed=0)
    scorer = make_scorer(loaded, 64, samples)
    assert isinstance(scorer, CosineScorer)
    images, texts = scorer.images(samples), [f"A red {number} square" for number in range(300)]
    image_IE, text_TE = scorer.embed_images(images), scorer.embed_texts(texts)
    assert np.linalg.norm(image_IE, axis=1) == pytest.approx(np.ones(70), abs=1e-5)
    with torch.no_grad():
        last = loaded.model.embed_texts([scorer.ids(texts[-1])])[0]
        image = loaded.model.embed_images(images[-1:])[0]
    assert text_TE[-1] == pytest.approx(last.numpy(), abs=1e-5)
    assert scorer.score(images, texts)[-1, -1] == pytest.approx(float(last @ image), abs=1e-5)


def test_an_autoencoder_knows_no_text() -> None:
    assert make_scorer(tiny_model("mae"), 64, []) is None


def test_long_texts_are_cut_and_counted() -> None:
    scorer = make_scorer(tiny_model(), 4, squares(1, seed=0))
    assert scorer is not None
    long = "A red square. " * 5
    assert len(scorer.ids(long)) == 4 + 2
    assert scorer.num_cut([long, "A", long]) == 2
    assert scorer.seen("A") == "A"
    assert long.startswith(scorer.seen(long))
    assert len(scorer.seen(long)) < len(long)


@pytest.mark.parametrize("objective", ["genlip", "cappa"])
def test_an_image_is_run_once_whatever_the_number_of_texts(objective: str) -> None:
    scorer = make_scorer(tiny_model(objective), 64, squares(1, seed=0))
    assert isinstance(scorer, LikelihoodScorer)
    images = scorer.images(squares(5, seed=0))
    with count_patches(scorer.loaded.model) as count:
        scorer.score(images, [f"A {number} square" for number in range(500)])
    assert count.num_patches == sum(len(patches) for patches, _ in images)
    with count_patches(scorer.loaded.model) as count:
        for text in TEXTS:
            scorer.score(images, [text])
    assert count.num_patches == len(TEXTS) * sum(len(patches) for patches, _ in images)


def test_the_cost_counts_shared_beginnings_once() -> None:
    scorer = make_scorer(tiny_model(), 64, squares(2, seed=0))
    assert isinstance(scorer, LikelihoodScorer)
    cost = scoring_cost(scorer, 10, 16, ["red square"])
    assert cost.tokens_per_image == len(scorer.ids("red square"))
    assert cost.flops == pytest.approx(10 * scoring_cost(scorer, 1, 16, ["red square"]).flops)
    twice = scoring_cost(scorer, 10, 16, ["red square", "red square"])
    assert (twice.num_texts, twice.tokens_per_image) == (2, cost.tokens_per_image)
    assert twice.flops == cost.flops
    longer = scoring_cost(scorer, 10, 16, ["red square", "red square red"])
    assert longer.tokens_per_image < len(scorer.ids("red square")) + len(scorer.ids("red square red"))


def test_the_cost_is_that_of_the_forward_pass() -> None:
    """Against the operations that torch counts, in a model so wide that attention, which it leaves out, is little."""
    scorer = make_scorer(tiny_model(hidden_size=256, intermediate_size=512), 64, squares(1, seed=0))
    assert isinstance(scorer, LikelihoodScorer)
    assert isinstance(scorer.loaded.model, GenLIP)
    images, texts = scorer.images(squares(4, seed=0)), [f"A {name} square" for name in ("red", "big", "new", "old")]
    with FlopCounterMode(display=False) as counted:
        scorer.score(images, texts)
    assert scoring_cost(scorer, 4, 16, texts).flops == pytest.approx(counted.get_total_flops(), rel=0.1)


def test_the_cost_is_said() -> None:
    lines: list[str] = []
    for objective in ("genlip", "clip"):
        samples = squares(4, seed=0)
        scorer = make_scorer(tiny_model(objective), 64, samples)
        assert scorer is not None
        announce(scorer, "zero_shot", 200, scorer.images(samples), TEXTS, lines.append)
    assert lines[0].startswith("zero_shot: 200 images and 4 for log P(T), × (a prefix of 16 patches, run once, + ")
    assert "FLOP, about" in lines[0]
    assert lines[1] == "zero_shot: 200 images and 4 texts, each embedded once"
