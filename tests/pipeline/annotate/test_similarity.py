"""Evaluation images are found by what a model sees in them, wherever they lie."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.annotate.columns import address
from pipeline.annotate.similarity import EvaluationSimilarity
from pipeline.errors import UserError
from tests.pipeline.annotate.batches import batch_of, flat
from tests.pipeline.annotate.test_pair import image_model
from tests.stores import Stored, jpeg, make_store

pytest.importorskip("onnxruntime")


def _annotator(work: Path, **sets: str) -> EvaluationSimilarity:
    (work / "model.onnx").write_bytes(image_model())
    half = (0.5, 0.5, 0.5)
    return EvaluationSimilarity(image_model=str(work / "model.onnx"), size_px=32, mean=half, std=half, sets=sets)


def test_the_nearest_image_of_folders_and_stores_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "red.jpg").write_bytes(jpeg(flat(24, 32, (250, 10, 10))))
    (tmp_path / "set" / "broken.jpg").write_bytes(b"no image")
    make_store([[Stored("blue", image=jpeg(flat(24, 32, (10, 10, 250))))]], str(tmp_path / "store"))
    one = _annotator(tmp_path, folder=str(tmp_path / "set"), store=str(tmp_path / "store"))
    found = one.annotate(
        batch_of([flat(24, 32, (240, 20, 20)), flat(24, 32, (0, 0, 255)), flat(24, 32, (0, 255, 0))], ["", "", ""])
    )
    assert list(found["eval_nearest"])[:2] == ["folder/red.jpg", "store/u00000000/blue"]
    cosines = np.asarray(found["eval_cosine"])
    assert (cosines[:2] > 0.95).all()
    assert cosines[2] < 0.5


def test_another_set_is_another_address_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    one = _annotator(tmp_path, empty=str(tmp_path / "set"))
    with pytest.raises(UserError, match="'empty' has no readable image"):
        one.annotate(batch_of([flat(24, 32, (0, 0, 0))], [""]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").write_bytes(jpeg(flat(24, 32, (1, 2, 3))))
    assert address(_annotator(tmp_path, empty=str(tmp_path / "other"))) != address(one)
