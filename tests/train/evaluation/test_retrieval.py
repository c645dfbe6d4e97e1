"""Retrieval: ranks by hand on planted likelihoods, several captions of an image, and what two stages lose."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from taught_models import taught
from tiny_images import COLOURS, SPEC, squares, tiny_model

from model.modeling_genlip import ImagePatches
from train.evaluation.candidates import agreement, best
from train.evaluation.features import Features
from train.evaluation.ranking import Scores
from train.evaluation.result import Part
from train.evaluation.retrieval import retrieval
from train.evaluation.samples import EvalData
from train.evaluation.scorers import LikelihoodScorer, make_scorer
from train.evaluation.spec import EvalSpec

NAMES = tuple(COLOURS)


class Planted(LikelihoodScorer):
    """Likelihoods by colour of the image and text, from a table."""

    table: dict[str, dict[str, float]]

    def score(self, images: Sequence[ImagePatches], texts: Sequence[str]) -> Scores:
        colours = [NAMES[int(patches.mean(axis=(0, 2, 3)).argmax())] for patches, _ in images]
        return np.array([[self.table[colour][text] for text in texts] for colour in colours])


def measure(data: EvalData, objective: str = "genlip", spec: EvalSpec = SPEC) -> Part:
    loaded = taught(objective)
    scorer = make_scorer(loaded, 64, data.training)
    assert scorer is not None
    return retrieval(scorer, data, spec, Features(loaded, data, spec), lambda line: None)


def value(part: Part, name: str) -> float:
    return part.metrics[f"retrieval/{name}"].value


def test_several_captions_by_hand() -> None:
    loaded = tiny_model()
    heldout = [
        replace(one, captions=captions)
        for one, captions in zip(squares(3, seed=0), [("r1", "r2"), ("g",), ("b", "g", "")], strict=True)
    ]
    data = EvalData(heldout, squares(3, seed=50))
    scorer = Planted(loaded, 64, data.training)
    scorer.table = {
        "red": {"r1": -5.0, "r2": -2.0, "g": -1.0, "b": -9.0},
        "green": {"r1": -4.0, "r2": -8.0, "g": -3.0, "b": -1.0},
        "blue": {"r1": -6.0, "r2": -9.0, "g": -2.0, "b": -4.0},
    }
    part = retrieval(scorer, data, SPEC, Features(loaded, data, SPEC), lambda line: None)
    # Red's best is r2, behind g; green's g is behind b; blue is answered by g, which is also its caption.
    assert part.per_image["retrieval/image_to_text_likelihood_r1"].tolist() == [0, 0, 1]
    assert value(part, "image_to_text_likelihood_mean_rank") == pytest.approx(5 / 3)
    assert value(part, "image_to_text_likelihood_median_rank") == 2
    assert part.metrics["retrieval/image_to_text_likelihood_r1"].chance == pytest.approx((2 / 4 + 1 / 4 + 2 / 4) / 3)
    # r1 finds green before red, r2 finds red, g (of green and blue) finds red, b finds green before blue.
    assert part.per_image["retrieval/text_to_image_r1"].tolist() == [0.5, 0, 0]
    assert part.per_image["retrieval/text_to_image_mean_rank"].tolist() == [1.5, 2, 2]
    assert value(part, "text_to_image_r5") == 1
    # Gain, with each colour once in the prior: every text's best image keeps a gain above 0.
    assert value(part, "image_to_text_r1") == pytest.approx(2 / 3)


@pytest.mark.parametrize("objective", ["genlip", "cappa", "clip", "siglip"])
def test_models_that_know_the_captions(objective: str) -> None:
    part = measure(EvalData(squares(9, seed=1000), squares(12, seed=0)), objective)
    assert value(part, "image_to_text_r1") > 0.6
    assert value(part, "text_to_image_r1") > 0.6
    # Three of nine images answer each text.
    assert part.metrics["retrieval/text_to_image_r1"].chance == pytest.approx(1 / 3)
    assert ("retrieval/two_stage_image_to_text_r1" in part.metrics) == (objective in ("genlip", "cappa"))
    for name, values in part.per_image.items():
        assert np.nanmean(values) == pytest.approx(part.metrics[name].value)


def test_two_stages_with_all_candidates_lose_nothing() -> None:
    part = measure(EvalData(squares(6, seed=1000), squares(12, seed=0)))
    for name in ("image_to_text_r1", "image_to_text_mean_rank", "text_to_image_r1", "text_to_image_mean_rank"):
        assert value(part, f"two_stage_{name}") == value(part, name)
    assert "image_to_text_r1 +0.0%" in part.notes[-1]
    assert "100% of the pairs" in part.notes[-1]


def test_two_stages_score_candidates_alone() -> None:
    part = measure(EvalData(squares(9, seed=1000), squares(12, seed=0)), spec=SPEC.model_copy(update={"rerank": 1}))
    assert part.details["retrieval/two_stage_share_of_flops"] < 0.9
    # The colour is in the features, so the first stage finds the one text; of three equal images it keeps one.
    assert value(part, "two_stage_image_to_text_r1") > 0.6


def test_images_without_captions_have_no_value() -> None:
    heldout = [replace(squares(1, seed=5)[0], captions=("",)), *squares(4, seed=1000)]
    part = measure(EvalData(heldout, [replace(one, captions=()) for one in squares(3, seed=0)]))
    assert np.isnan(part.per_image["retrieval/image_to_text_r1"]).tolist() == [True] + [False] * 4
    assert "not in two stages" in part.notes[-1]


def test_one_text_gives_a_note() -> None:
    part = measure(EvalData(squares(3, seed=0, colours=("red",)), []))
    assert part.metrics == {}
    assert "left out" in part.notes[0]


def test_agreement_finds_words_that_follow_from_features() -> None:
    rng = np.random.default_rng(0)
    topic_N = rng.integers(4, size=200)
    features = np.eye(4)[topic_N] + rng.normal(0, 0.1, (200, 4))
    ids = [[10 + topic, 99, *rng.integers(50, 60, 3)] for topic in topic_N]  # 99: in every caption
    texts = [[10 + topic, 51] for topic in range(4)] + [[99], [], [12345]]
    guess = agreement(features, ids, 3 * np.eye(4), texts)
    assert guess.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert guess[:, 4:] == pytest.approx(np.zeros((4, 3)))
    assert best(guess, 2).sum(axis=1).tolist() == [2] * 4
    assert best(guess, 99).all()
