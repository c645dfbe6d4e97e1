"""Any bytes become an image as a viewer shows it, or a reason; nothing else."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import ImageError, decode_rgb, transcode
from pipeline.recipe import ImageSpec

MAX_PIXELS = 100_000_000
SPEC = ImageSpec(longest_side_px=100)
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def _encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 6) -> bool:
    return bool(np.all(np.abs(pixel.astype(int) - colour) <= tolerance))


# ---------------------------------------------------------------- what is seen


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_transparency_is_put_on_white(image_format: str) -> None:
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 0, 20, 10))
    rgb = decode_rgb(_encode(image, image_format, lossless=True), MAX_PIXELS)
    assert _near(rgb[5, 2], WHITE)
    assert _near(rgb[5, 17], RED)


def test_half_transparent_grey_is_mixed_with_white() -> None:
    rgb = decode_rgb(_encode(Image.new("LA", (8, 8), (0, 128)), "PNG"), MAX_PIXELS)
    assert _near(rgb[4, 4], (127, 127, 127))


def test_palette_with_a_transparent_entry() -> None:
    image = Image.new("P", (20, 10), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (10, 0, 20, 10))
    rgb = decode_rgb(_encode(image, "PNG", transparency=0), MAX_PIXELS)
    assert _near(rgb[5, 2], WHITE)
    assert _near(rgb[5, 17], RED)


def test_16_bit_grey_keeps_its_orientation_and_its_transparent_level() -> None:
    pixels = np.full((8, 16), 0x8000, dtype=np.uint16)
    pixels[:, :8] = 0x1234
    exif = Image.Exif()
    exif[0x0112] = 6
    # Pillow reads the transparency of such files but does not write it: a chunk with the level, before the pixels.
    png = _encode(Image.fromarray(pixels), "PNG", exif=exif)
    level = b"tRNS" + struct.pack(">H", 0x1234)
    at = png.index(b"IDAT") - 4
    body = png[:at] + struct.pack(">I", 2) + level + struct.pack(">I", zlib.crc32(level)) + png[at:]
    rgb = decode_rgb(body, MAX_PIXELS)
    assert rgb.shape == (16, 8, 3)
    assert _near(rgb[3, 4], WHITE)
    assert _near(rgb[12, 4], (128, 128, 128), tolerance=1)


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_16_bit_mid_grey_stays_mid_grey(num_channels: int) -> None:
    pixels = np.full((8, 8, num_channels), 0x8000, dtype=np.uint16)
    if num_channels == 4:
        pixels[:, :, 3] = 0xFFFF
    ok, png = cv2.imencode(".png", pixels)
    assert ok
    assert _near(decode_rgb(png.tobytes(), MAX_PIXELS)[4, 4], (128, 128, 128), tolerance=1)


def test_cmyk_jpeg() -> None:
    body = _encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert _near(decode_rgb(body, MAX_PIXELS)[16, 16], RED, tolerance=12)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_grey_becomes_three_equal_channels(image_format: str) -> None:
    rgb = decode_rgb(_encode(Image.new("L", (16, 12), 90), image_format), MAX_PIXELS)
    assert rgb.shape == (12, 16, 3)
    assert _near(rgb[6, 8], (90, 90, 90))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame(image_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    body = _encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert _near(decode_rgb(body, MAX_PIXELS)[8, 8], RED, tolerance=12)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_6_is_turned_clockwise(image_format: str) -> None:
    image = Image.new("RGB", (64, 32), GREEN)
    image.paste(RED, (0, 0, 32, 32))  # red on the left, which orientation 6 puts on top
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = decode_rgb(_encode(image, image_format, exif=exif), MAX_PIXELS)
    assert rgb.shape == (64, 32, 3)
    assert _near(rgb[8, 16], RED, tolerance=40)
    assert _near(rgb[56, 16], GREEN, tolerance=40)


# ---------------------------------------------------------------- what is stored


def test_the_stored_image_is_a_jpeg_of_the_size_it_names() -> None:
    stored = transcode(_encode(Image.new("RGB", (300, 150), RED), "PNG"), SPEC)
    assert (stored.width, stored.height) == (100, 50)
    assert (stored.original_width, stored.original_height) == (300, 150)
    with Image.open(io.BytesIO(stored.jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 50))
        assert _near(np.asarray(image)[25, 50], RED)


def test_a_small_image_is_never_scaled_up() -> None:
    stored = transcode(_encode(_noise(60, 99), "PNG"), SPEC)
    assert (stored.width, stored.height) == (60, 99)


def test_the_same_bytes_give_the_same_jpeg() -> None:
    body = _encode(_noise(150, 90), "PNG")
    assert transcode(body, SPEC) == transcode(body, SPEC)


@pytest.mark.parametrize(("size", "stored_size"), [((1, 5000), (1, 100)), ((5000, 1), (100, 1)), ((1, 1), (1, 1))])
def test_extreme_aspects(size: tuple[int, int], stored_size: tuple[int, int]) -> None:
    stored = transcode(_encode(Image.new("RGB", size, RED), "PNG"), SPEC)
    assert (stored.width, stored.height) == stored_size


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 200))
def test_scaling_keeps_the_aspect_and_fits(width: int, height: int, longest_side_px: int) -> None:
    body = _encode(Image.new("RGB", (width, height)), "PNG")
    stored = transcode(body, ImageSpec(longest_side_px=longest_side_px))
    scale = min(1.0, longest_side_px / max(width, height))
    assert max(stored.width, stored.height) == min(longest_side_px, max(width, height))
    assert abs(stored.width - max(1, width * scale)) <= 0.5
    assert abs(stored.height - max(1, height * scale)) <= 0.5


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("body", [b"", b"<!doctype html><html><body>gone</body></html>", b"\0" * 4096, b"RIFF"])
def test_not_an_image(body: bytes) -> None:
    with pytest.raises(ImageError, match=r"^not_an_image$"):
        transcode(body, SPEC)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(image_format: str, share: float) -> None:
    body = _encode(_noise(120, 80), image_format)
    assert transcode(body, SPEC).width == 100
    with pytest.raises(ImageError):
        transcode(body[: int(len(body) * share)], SPEC)


@pytest.mark.parametrize("progressive", [False, True])
@given(cut=st.integers(1, 2000), tail=st.binary(max_size=5000))
@settings(deadline=None, max_examples=40)
def test_a_jpeg_ends_at_its_own_end_marker(progressive: bool, cut: int, tail: bytes) -> None:
    """Neither a thumbnail's end marker nor the bytes that phones append decide."""
    exif = Image.Exif()
    exif[0x927C] = b"\xff\xd9" * 400
    body = _encode(_noise(48, 32), "JPEG", progressive=progressive, exif=exif, quality=90)
    assert body.count(b"\xff\xd9") >= 400
    assert transcode(body + tail, SPEC) == transcode(body, SPEC)
    with pytest.raises(ImageError):
        transcode(body[:-cut], SPEC)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (10_001, 10_000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    with pytest.raises(ImageError, match=r"^image_too_large$"):
        transcode(_png_header(width, height), SPEC)


def test_the_pixel_limit_is_inclusive() -> None:
    body = _encode(_noise(40, 25), "PNG")
    assert transcode(body, ImageSpec(max_pixels=1000)).width == 40
    with pytest.raises(ImageError, match="image_too_large"):
        transcode(body, ImageSpec(max_pixels=999))


SEEDS = {name: _encode(_noise(24, 16), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DDS")}


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.integers(0, 199), st.sampled_from([0, 1, 127, 128, 255])), max_size=6),
    st.integers(1, 4000),
)
@example("DDS", [(80, 0)], 4000)  # unknown pixel format: Pillow raises NotImplementedError
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_a_reason(image_format: str, edits: list[tuple[int, int]], size: int) -> None:
    body = bytearray(SEEDS[image_format])
    for position, value in edits:
        body[position % len(body)] = value
    reason = ""
    try:
        stored = transcode(bytes(body[:size]), ImageSpec(max_pixels=1_000_000))
        assert 1 <= max(stored.width, stored.height) <= 384
    except ImageError as error:
        reason = str(error)
    assert reason in ("", "not_an_image", "image_too_large", "image_undecodable", "image_truncated")
