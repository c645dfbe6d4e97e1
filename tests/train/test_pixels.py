"""Fast pixels beside the official ones: same sizes, nearly the same values, and nothing damaged passes."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model import ImageProcessor, ModelError, load_rgb
from train.data.pixels import image_pixels, write_patches

SQUARE = ImageProcessor(image_px=64)
NATIVE = ImageProcessor(mode="native", max_pixels=128 * 128)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, as photographs are: noise on a coarse grid, enlarged."""
    cells = np.random.default_rng(seed).integers(64, 192, (max(2, height // 24), max(2, width // 24), 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}), **options)
    return stream.getvalue()


def patches_of(image: bytes, processor: ImageProcessor) -> np.ndarray:
    pixels, grid = image_pixels(image, processor)
    patches = np.empty((grid[0] * grid[1], processor.patch_size, processor.patch_size, 3), np.uint8)
    write_patches(pixels, grid, patches)
    return patches.transpose(0, 3, 1, 2)


def mean_difference(image: bytes, processor: ImageProcessor) -> float:
    exact, grid = processor.patches(load_rgb(image))
    fast = patches_of(image, processor)
    assert fast.shape == exact.shape, grid
    return float(np.abs(fast.astype(np.int16) - exact).mean())


@settings(max_examples=40, deadline=None)
@given(st.integers(17, 700), st.integers(17, 700), st.sampled_from([SQUARE, NATIVE]), st.sampled_from(["JPEG", "PNG"]))
def test_the_pixels_are_nearly_the_official_ones(width: int, height: int, processor: ImageProcessor, kind: str) -> None:
    assert mean_difference(encoded(picture(width, height), kind), processor) < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(100, 60), (600, 400), (401, 203)])
@pytest.mark.parametrize("processor", [SQUARE, NATIVE])
def test_a_turned_image_is_turned_back(size: tuple[int, int], orientation: int, processor: ImageProcessor) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert mean_difference(encoded(picture(*size), exif=exif), processor) < 8


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_other_kinds_of_pixels(mode: str) -> None:
    image = picture(120, 90).convert(mode)
    kind = "JPEG" if mode in ("L", "CMYK") else "PNG"
    assert mean_difference(encoded(image, kind), SQUARE) < 8


def test_patches_are_cut_as_the_processor_cuts_them() -> None:
    image = encoded(picture(64, 64), "PNG")  # nothing to resize
    assert np.array_equal(patches_of(image, SQUARE), SQUARE.patches(load_rgb(image))[0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_image_without_its_end_is_refused(kind: str, data: st.DataObject) -> None:
    image = encoded(picture(150, 150), kind)
    with pytest.raises(ModelError, match="cannot be decoded"):
        image_pixels(image[: data.draw(st.integers(0, len(image) * 9 // 10))], SQUARE)


def test_a_jpeg_with_something_behind_it_is_read() -> None:
    image = encoded(picture(150, 100))
    assert np.abs(patches_of(image + b"\0\0", SQUARE).astype(int) - patches_of(image, SQUARE)).mean() < 2


def test_an_image_too_narrow_for_the_model_is_refused() -> None:
    with pytest.raises(ModelError, match="200 times"):
        image_pixels(encoded(picture(900, 4)), NATIVE)
