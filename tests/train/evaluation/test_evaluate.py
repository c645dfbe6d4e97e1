"""The whole evaluation on small data: what each objective gets, intervals, and what is left out."""

from dataclasses import replace

import numpy as np
import pytest
from taught_models import taught
from tiny_images import SPEC, coloured_data, squares, tiny_model

from pipeline.errors import UserError
from train.evaluation.evaluate import evaluate
from train.evaluation.result import Part, to_json
from train.evaluation.samples import EvalData
from train.evaluation.spec import ProbeSpec

FAST = SPEC.model_copy(update={"probe": ProbeSpec(epochs=2)})
WRITES = {"language", "captioning"}
KNOWS_TEXT = {"zero_shot", "retrieval"}


def measure(objective: str, data: EvalData) -> Part:
    loaded = tiny_model("mae") if objective == "mae" else taught(objective)
    return evaluate(loaded, data, FAST, 64, lambda line: None)


@pytest.mark.parametrize(
    ("objective", "tasks"),
    [
        ("genlip", WRITES | KNOWS_TEXT | {"probe", "knn", "readout", "attention"}),
        ("cappa", WRITES | KNOWS_TEXT | {"probe", "knn"}),
        ("clip", KNOWS_TEXT | {"probe", "knn"}),
        ("mae", {"probe", "knn"}),
    ],
)
def test_every_objective_gets_what_it_can_do(objective: str, tasks: set[str]) -> None:
    data = coloured_data()
    part = measure(objective, data)
    assert {name.split("/")[0] for name in part.metrics} == tasks
    for task in set(FAST.tasks) - tasks:
        assert any(note.startswith(task) and "left out" in note for note in part.notes)
    for name, values in part.per_image.items():
        metric = part.metrics[name]
        assert len(values) == len(data.heldout)
        assert metric.value == pytest.approx(np.nanmean(values))
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= metric.value + 1e-9
        assert metric.value - 1e-9 <= metric.high
    assert to_json(part)["notes"] == part.notes


def test_only_the_tasks_that_are_asked_for() -> None:
    lines: list[str] = []
    part = evaluate(tiny_model(), coloured_data(), FAST.model_copy(update={"tasks": ("knn",)}), 64, lines.append)
    assert set(part.metrics) == {"knn/top1"}
    assert lines[0].startswith("knn: ")


def test_what_the_data_lacks_is_said() -> None:
    heldout = [replace(one, class_name=None) for one in squares(6, seed=1000)]
    part = measure("genlip", EvalData(heldout, [], skipped={"cannot be decoded": 3}))
    assert "data: 3 samples left out: cannot be decoded" in part.notes
    assert any("there are no training images, so log P(T)" in note for note in part.notes)
    assert not [name for name in part.metrics if name.startswith(("zero_shot", "probe", "knn"))]
    assert "retrieval/image_to_text_r1" in part.metrics


def test_nothing_held_out_is_refused() -> None:
    with pytest.raises(UserError, match="no held-out images"):
        evaluate(tiny_model(), EvalData([], squares(3, seed=0)), FAST, 64, lambda line: None)
