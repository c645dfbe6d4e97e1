"""Image statistics: known values, order under blur, and images without anything to measure."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.image import ImageStats
from tests.pipeline.annotate.batches import Pixels, batch_of, emoji, flat


def stats(*images: Pixels) -> list[dict[str, float]]:
    found: Any = ImageStats().annotate(batch_of(images))
    return [{name: float(values[i]) for name, values in found.items()} for i in range(len(images))]


def test_blur_lowers_sharpness_of_every_image() -> None:
    images = emoji(20)
    sharp = stats(*images)
    blurred = stats(*(cv2.GaussianBlur(image, (0, 0), 3) for image in images))
    assert all(b["sharpness"] < 0.5 * s["sharpness"] for s, b in zip(sharp, blurred, strict=True))


def test_sharpness_hardly_depends_on_the_resolution() -> None:
    image = emoji(1, 256)[0]
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    small_stats, large_stats = stats(image, large)
    assert large_stats["sharpness"] == pytest.approx(small_stats["sharpness"], rel=0.2)


def test_quarters_of_black_and_white_have_one_bit_and_full_contrast() -> None:
    image = flat(40, 80, (0, 0, 0))
    image[:20, 40:] = image[20:, :40] = 255
    (found,) = stats(image)
    assert found["entropy"] == pytest.approx(1)
    assert found["brightness"] == pytest.approx(0.5)
    assert found["contrast"] == pytest.approx(0.5)
    assert found["aspect"] == 2
    assert found["colourfulness"] == 0
    assert found["uniform_border"] == 0


def test_colourfulness_by_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 60, 3), np.uint8)
    red, green, blue = (image[..., i].astype(float) for i in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    assert stats(image)[0]["colourfulness"] == pytest.approx(expected, rel=1e-4)


def test_letterbox_and_frame_are_measured() -> None:
    content = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    letterbox = flat(100, 100, (0, 0, 0))
    letterbox[20:80] = content
    frame = flat(120, 200, (255, 255, 255))
    frame[30:90, 50:150] = content
    boxed, framed = stats(letterbox, frame)
    assert boxed["uniform_border"] == pytest.approx(0.4)
    assert framed["uniform_border"] == pytest.approx(0.75)


def test_a_gradient_is_no_border() -> None:
    ramp = np.repeat(np.tile(np.arange(0, 200, dtype=np.uint8), (100, 1))[..., None], 3, axis=2)
    across, down = stats(ramp, np.ascontiguousarray(ramp.transpose(1, 0, 2)))
    assert max(across["uniform_border"], down["uniform_border"]) < 0.1


@given(st.integers(1, 40), st.integers(1, 40), st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=50, deadline=None)
def test_flat_images_of_any_size(height: int, width: int, rgb: tuple[int, int, int]) -> None:
    (found,) = stats(flat(height, width, rgb))
    assert [found[name] for name in ("sharpness", "entropy", "contrast")] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found["uniform_border"] == 1
    assert found["aspect"] == pytest.approx(max(height, width) / min(height, width))
    assert all(np.isfinite(value) for value in found.values())


def test_a_very_long_image_keeps_a_pixel_of_its_width() -> None:
    (found,) = stats(np.random.default_rng(0).integers(0, 256, (1, 5000, 3), np.uint8))
    assert found["aspect"] == 5000
    assert found["entropy"] > 0
