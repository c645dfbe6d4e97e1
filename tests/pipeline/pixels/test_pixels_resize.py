"""Sizes are img2dataset's, pixels are Lanczos's, hashes and bytes are stable."""

import hashlib
import io
import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pixel_files import decoded, encode, noise, oriented, photo, psnr_db

from pipeline.pixels.images import hash_distance, perceptual_hash, transcode
from pipeline.pixels.spec import ImageSpec

MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
SIZES = [(w, h) for w in (1, 7, 50, 63, 64, 65, 100, 333) for h in (2, 31, 64, 99, 128, 257)]


@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_sizes_are_those_of_img2dataset(mode: str, only_if_bigger: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "NO_ALBUMENTATIONS_UPDATE", "1")
    resizer = pytest.importorskip("img2dataset.resizer").Resizer(64, mode, only_if_bigger)
    spec = ImageSpec(size_px=64, resize=mode, only_if_bigger=only_if_bigger)
    for size in SIZES:
        body = encode(Image.new("RGB", size), "PNG")
        _body, width, height, original_width, original_height, error = resizer(io.BytesIO(body))
        if error is None:
            stored = transcode(body, spec)
            assert (stored.width, stored.height) == (width, height), size
            assert (stored.original_width, stored.original_height) == (original_width, original_height)


def test_a_crop_takes_the_middle_and_a_border_surrounds_it() -> None:
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 100))
    body = encode(image, "PNG")
    crop = decoded(transcode(body, ImageSpec(size_px=50, resize="center_crop", format="png")).body)
    assert crop.shape == (50, 50, 3)
    assert np.all(np.abs(crop[:, 5:45].astype(int) - (0, 0, 255)) <= 2)
    border = decoded(transcode(body, ImageSpec(size_px=60, resize="border", format="png")).body)
    assert border.shape == (60, 60, 3)
    assert np.all(border[:20] == 255)
    assert np.all(border[40:] == 255)
    assert np.all(np.abs(border[20:40, 25:35].astype(int) - (0, 0, 255)) <= 2)


@pytest.mark.parametrize(("size", "stored_size"), [((1, 5000), (1, 384)), ((5000, 1), (384, 1)), ((1, 1), (1, 1))])
def test_extreme_aspects(size: tuple[int, int], stored_size: tuple[int, int]) -> None:
    stored = transcode(encode(Image.new("RGB", size), "PNG"), ImageSpec(max_aspect=5000))
    assert (stored.width, stored.height) == stored_size


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 200))
def test_scaling_keeps_the_aspect_and_fits(width: int, height: int, size_px: int) -> None:
    stored = transcode(encode(Image.new("RGB", (width, height)), "PNG"), ImageSpec(size_px=size_px))
    scale = min(1.0, size_px / max(width, height))
    assert max(stored.width, stored.height) == min(size_px, max(width, height))
    assert abs(stored.width - max(1, width * scale)) <= 0.5
    assert abs(stored.height - max(1, height * scale)) <= 0.5


# ---------------------------------------------------------------- fidelity


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decoding_is_close_to_the_full_one(seed: int, orientation: int) -> None:
    """Odd sizes: a reduced image is rounded up, and must still lie exactly where the full one does."""
    body = oriented(photo(1201 + 97 * seed, 803, seed), "JPEG", orientation, quality=90)
    spec = ImageSpec(size_px=150 + 20 * seed, format="png")
    fast = decoded(transcode(body, spec).body)
    exact = decoded(transcode(body, spec.model_copy(update={"exact": True})).body)
    assert psnr_db(fast, exact) >= 44
    assert psnr_db(np.roll(fast, 1, axis=1)[:, 2:], exact[:, 2:]) < psnr_db(fast, exact) - 3


@pytest.mark.parametrize("seed", range(3))
def test_exact_is_pillows_lanczos_but_for_rounding(seed: int) -> None:
    image = photo(640, 480, seed)
    stored = transcode(encode(image, "PNG"), ImageSpec(size_px=200, format="png", exact=True))
    reference = np.asarray(image.resize((200, 150), Image.Resampling.LANCZOS))
    assert psnr_db(decoded(stored.body), reference) >= 50


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_the_same_bytes_give_the_same_image(image_format: str) -> None:
    body = encode(photo(500, 300), image_format)
    assert transcode(body, ImageSpec(size_px=100)) == transcode(body, ImageSpec(size_px=100))


# ---------------------------------------------------------------- hashes


@pytest.mark.parametrize("seed", range(8))
def test_the_perceptual_hash_survives_encoding_and_scaling(seed: int) -> None:
    image = photo(800, 600, seed)
    first = transcode(encode(image, "PNG"), ImageSpec(size_px=384)).phash
    for other in (encode(image, "JPEG", quality=50), encode(image.resize((400, 300)), "WEBP", quality=60)):
        assert hash_distance(first, transcode(other, ImageSpec(size_px=256)).phash) <= 6
    assert hash_distance(first, transcode(encode(photo(800, 600, seed + 100), "PNG"), ImageSpec()).phash) >= 16


def test_a_hash_is_sixteen_digits_and_a_flat_image_has_one_too() -> None:
    grey = np.full((50, 70, 3), 128, np.uint8)
    assert perceptual_hash(grey) == 1 << 63
    assert transcode(encode(Image.fromarray(grey), "PNG"), ImageSpec()).phash == "8000000000000000"


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hash_distance_is_a_metric_on_bits(a: int, b: int) -> None:
    assert hash_distance(f"{a:016x}", f"{b:016x}") == hash_distance(f"{b:016x}", f"{a:016x}") == (a ^ b).bit_count()


def test_sha256_is_of_the_original_bytes() -> None:
    body = encode(noise(20, 20), "PNG")
    assert transcode(body, ImageSpec()).sha256 == hashlib.sha256(body).hexdigest()


# ---------------------------------------------------------------- boxes


@settings(max_examples=25)
@given(st.tuples(*[st.floats(-0.2, 1.2)] * 4))
def test_a_box_changes_only_its_area(box: tuple[float, float, float, float]) -> None:
    body = encode(noise(80, 60), "PNG")
    spec = ImageSpec(resize="no", format="png")
    before, after = decoded(transcode(body, spec).body), decoded(transcode(body, spec, [box]).body)
    left, top, right, bottom = (min(max(share, 0), 1) for share in box)
    inside = np.zeros((60, 80), bool)
    inside[int(top * 60) : int(np.ceil(bottom * 60)), int(left * 80) : int(np.ceil(right * 80))] = True
    assert np.array_equal(before[~inside], after[~inside])


def test_what_was_in_a_box_cannot_be_seen() -> None:
    stripes = np.zeros((120, 160, 3), np.uint8)
    stripes[:, ::4] = 255
    spec = ImageSpec(resize="no", format="png")
    after = decoded(transcode(encode(Image.fromarray(stripes), "PNG"), spec, [(0.25, 0.25, 0.75, 0.75)]).body)
    assert after[40:80, 50:110].std() < 15 < stripes[40:80, 50:110].std()


def test_boxes_are_shares_of_the_upright_image() -> None:
    body = oriented(noise(80, 40), "PNG", 6)
    spec = ImageSpec(resize="no", format="png")
    before, after = decoded(transcode(body, spec).body), decoded(transcode(body, spec, [(0, 0, 1, 0.5)]).body)
    assert before.shape == (80, 40, 3)
    assert np.array_equal(before[40:], after[40:])
    assert cv2.norm(before[:40], after[:40]) > 1000
