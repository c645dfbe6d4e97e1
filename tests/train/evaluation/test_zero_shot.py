"""Zero-shot classification: arithmetic by hand on planted likelihoods, real models that know the answer, bad input."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from taught_models import taught
from tiny_images import COLOURS, SPEC, squares, tiny_model

from model.modeling_genlip import ImagePatches
from pipeline.errors import UserError
from train.evaluation.gain import why_gain_is_worse
from train.evaluation.ranking import Scores
from train.evaluation.result import Part
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.scorers import LikelihoodScorer, make_scorer
from train.evaluation.spec import EvalSpec
from train.evaluation.zero_shot import zero_shot

NAMES = tuple(COLOURS)
BY_NAME = SPEC.model_copy(update={"class_templates": ("A {} square.",), "class_captions": 0})


class Planted(LikelihoodScorer):
    """Says of a colour's images what a table holds: log P by colour of the image and first class named in the text."""

    table: dict[str, dict[str, float]]

    def score(self, images: Sequence[ImagePatches], texts: Sequence[str]) -> Scores:
        colours = [NAMES[int(patches.mean(axis=(0, 2, 3)).argmax())] for patches, _ in images]
        named = [next(name for name in NAMES if name in text) for text in texts]
        return np.array([[self.table[colour][name] for name in named] for colour in colours])


def measure(data: EvalData, spec: EvalSpec = BY_NAME, objective: str = "genlip") -> Part:
    scorer = make_scorer(taught(objective), 64, data.training)
    assert scorer is not None
    return zero_shot(scorer, data, spec, lambda line: None)


def measure_planted(data: EvalData, table: dict[str, dict[str, float]]) -> Part:
    scorer = Planted(tiny_model(), 64, data.training)
    scorer.table = table
    return zero_shot(scorer, data, BY_NAME, lambda line: None)


def value(part: Part, name: str) -> float:
    return part.metrics[f"zero_shot/{name}"].value


def test_gain_takes_away_what_is_likely_for_any_image() -> None:
    """`A red square.` is likely whatever the image; the right text is likelier than for other images."""
    table = {
        image: {text: -1.0 if text == "red" else -3.0 if text == image else -5.0 for text in NAMES} for image in NAMES
    }
    part = measure_planted(EvalData(squares(5, seed=0), squares(3, seed=50)), table)
    # Red, green, blue, red, green: only red is right by likelihood; in green and blue, red leads by 2.
    assert value(part, "names_likelihood_top1") == pytest.approx(2 / 5)
    assert value(part, "names_likelihood_mean_per_class") == pytest.approx(1 / 3)
    assert value(part, "names_top1") == value(part, "names_mean_per_class") == 1
    assert part.per_image["zero_shot/names_likelihood_top1"].tolist() == [1, 0, 0, 1, 0]
    assert value(part, "majority_top1") == 2 / 5
    assert part.details["zero_shot/names_confusion"] == {
        "classes": sorted(NAMES),
        "counts": [[2, 2, 2], [1, 1, 2], [0, 0, 1]],
    }
    assert not [note for note in part.notes if "less often" in note]


def test_every_image_mean_is_its_metric() -> None:
    part = measure(EvalData(squares(7, seed=1000), squares(6, seed=0)))
    for name, values in part.per_image.items():
        assert np.nanmean(values) == pytest.approx(part.metrics[name].value)


def test_ties_count_against() -> None:
    part = measure_planted(
        EvalData(squares(3, seed=0), squares(3, seed=50)), {name: dict.fromkeys(NAMES, -1.0) for name in NAMES}
    )
    assert value(part, "names_top1") == value(part, "names_likelihood_top1") == 0
    assert value(part, "names_top5") == 1


@pytest.mark.parametrize("objective", ["genlip", "cappa", "clip", "siglip"])
def test_models_that_know_the_classes(objective: str) -> None:
    spec = SPEC.model_copy(update={"class_templates": ("A {} square.", "A {} square"), "class_captions": 2})
    part = measure(EvalData(squares(9, seed=1000), squares(6, seed=0)), spec, objective)
    assert value(part, "names_top1") > 0.6
    assert value(part, "captions_top1") > 0.6
    assert part.metrics["zero_shot/names_top1"].chance == pytest.approx(1 / 3)
    assert part.metrics["zero_shot/names_top5"].chance == 1
    assert part.details["zero_shot/passes_per_image"] == 1
    assert ("zero_shot/names_normalised_top1" in part.metrics) == (objective in ("genlip", "cappa"))
    example = part.details["zero_shot/captions_examples"][0]
    assert (example["key"], example["class"], len(example["answers"])) == ("1000-0", "red", 3)


@pytest.mark.slow
def test_a_thousand_classes_by_eighty_templates() -> None:
    names = tuple(f"thing {number}" for number in range(1000))
    spec = EvalSpec(class_templates=tuple(f"style {number} of a {{}}." for number in range(80)), class_captions=0)
    heldout = [replace(one, class_name=names[number]) for number, one in enumerate(squares(2, seed=0))]
    training = squares(1, seed=50)
    scorer, lines = make_scorer(tiny_model(num_hidden_layers=1), 64, training), []
    assert scorer is not None
    part = zero_shot(scorer, EvalData(heldout, training, names), spec, lines.append)
    assert "80,000 texts" in lines[0]
    assert part.details["zero_shot/passes_per_image"] == 1
    assert part.metrics["zero_shot/names_top1"].chance == 1 / 1000
    assert "998 of 1000 classes have no held-out image" in part.notes[0]
    assert len(part.notes[0]) < 500


def test_what_is_skipped_is_counted() -> None:
    heldout = [*squares(4, seed=1000, colours=("red", "green")), Labelled("odd", squares(1, 7)[0].image, (), "violet")]
    heldout.append(replace(heldout[0], key="none", class_name=None))
    part = measure(EvalData(heldout, squares(6, seed=0)))
    assert part.details["zero_shot/num_images"] == 4
    assert np.isnan(part.per_image["zero_shot/names_top1"]).tolist() == [False] * 4 + [True] * 2
    assert any("2 held-out images have no class" in note for note in part.notes)
    assert any("1 of 3 classes have no held-out image" in note and "blue" in note for note in part.notes)
    long = BY_NAME.model_copy(update={"class_templates": ("A square " * 30 + "{}",)})
    assert any(
        "3 texts longer than 64 tokens were cut" in note
        for note in measure(EvalData(heldout, squares(6, 0)), long).notes
    )


@pytest.mark.parametrize(
    ("names", "said"), [(("red", " "), "no name"), (("red", "Red ", "blue"), "two classes each: red")]
)
def test_bad_class_names_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        measure(EvalData(squares(3, seed=0), [], names))


@pytest.mark.parametrize("colours", [("red",), ()])
def test_fewer_than_two_classes_give_a_note(colours: tuple[str, ...]) -> None:
    heldout = [replace(one, class_name=colours[0] if colours else None) for one in squares(3, seed=0)]
    part = measure(EvalData(heldout, []))
    assert part.metrics == {}
    assert "left out" in part.notes[0]


def test_where_gain_is_worse_the_note_says_why() -> None:
    rng = np.random.default_rng(0)
    class_I, prior_C = np.repeat(np.arange(6), 10), np.arange(6) * -4.0
    plain_IC = rng.normal(size=(60, 6)) + 4 * (np.arange(6) == class_I[:, None])
    said = why_gain_is_worse(plain_IC - prior_C, plain_IC, class_I, prior_C, np.ones(6))
    assert "more than the images' chance explains" in said
    assert "log P(T)" in said
    assert "P(T) takes away too much" in said
    longer = why_gain_is_worse(plain_IC + np.arange(6) * 4, plain_IC, class_I, np.zeros(6), np.arange(6.0))
    assert "gain prefers long captions" in longer


def test_the_note_is_given_when_gain_loses() -> None:
    """The prior images are two red ones and a blue one, for which green is less likely than it is for blue images."""
    table = {
        "red": {"red": -1.0, "green": -30.0, "blue": -6.5},
        "green": {"red": -20.0, "green": -6.0, "blue": -9.0},
        "blue": {"red": -20.0, "green": -28.0, "blue": -7.0},
    }
    prior_images = squares(6, seed=50, colours=("red", "red", "blue"))
    part = measure_planted(EvalData(squares(6, seed=0), prior_images, NAMES), table)
    assert value(part, "names_top1") < value(part, "names_likelihood_top1") == 1
    assert any("by names, against likelihood: information gain is right" in note for note in part.notes)
