"""Bytes that are no image, half an image, or a bomb: a reason of the vocabulary, before anything is spent on them."""

import resource
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pixel_files import (
    FORMATS,
    HEIC,
    encode,
    gif_of_many_frames,
    noise,
    oriented,
    photo,
    png_chunk,
    png_of_one_colour,
    png_with,
    webp_lossless_header,
)

from pipeline.pixels.images import ImageError, transcode
from pipeline.pixels.plugins import PLUGINS
from pipeline.pixels.spec import ImageSpec

SPEC = ImageSpec(size_px=100)


def _reason(body: bytes, spec: ImageSpec = SPEC) -> str:
    """Empty for a success."""
    try:
        transcode(body, spec)
    except ImageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html><html><body>gone</body></html>",
        b"\0" * 4096,
        b"RIFF",
        b"RIFF\x04\0\0\0WAVE",
        b"BMW is a car",
        b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00isommp42",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encode(noise(8, 8), "DDS"),
        encode(noise(8, 8), "PPM"),
    ],
)
def test_not_an_image(body: bytes) -> None:
    assert _reason(body) == "not_image"


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0"])
def test_a_signature_and_nothing_more(start: bytes) -> None:
    assert _reason(start) in ("image_truncated", "undecodable")


def test_heic_without_its_package_is_an_image_that_cannot_be_decoded() -> None:
    if "heic" in PLUGINS:
        pytest.skip("the package is installed")
    assert _reason(HEIC) == "undecodable"


# ---------------------------------------------------------------- half an image


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 0}])
def test_a_jpeg_cut_anywhere_is_refused(options: dict[str, int]) -> None:
    body = encode(noise(48, 32), "JPEG", **options)
    assert _reason(body) == ""
    reasons = {_reason(body[:size]) for size in range(3, len(body), 10)}
    assert reasons == {"image_truncated"}


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_a_png_cut_anywhere_is_refused(mode: str) -> None:
    body = encode(noise(48, 32).convert(mode), "PNG")
    assert _reason(body) == ""
    assert {_reason(body[:size]) for size in range(8, len(body), 10)} == {"image_truncated"}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("image_format", ["WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_types_cut_anywhere_are_refused(image_format: str) -> None:
    body = encode(noise(48, 32), image_format)
    assert _reason(body) == ""
    reasons = {_reason(body[:size]) for size in range(16, len(body) - 10, 10)}
    assert reasons <= {"not_image", "image_truncated", "undecodable"}
    assert "image_truncated" in reasons or image_format in ("AVIF", "TIFF")


def test_a_truncated_image_says_how_large_it_was() -> None:
    for image_format in ("JPEG", "PNG", "WEBP"):
        body = oriented(noise(48, 32), image_format, 6)
        with pytest.raises(ImageError) as caught:
            transcode(body[:-20], SPEC)
        size = (caught.value.original_width, caught.value.original_height)
        # A WebP keeps its EXIF, and so its orientation, at its end.
        assert size == ((48, 32) if image_format == "WEBP" else (32, 48))


@pytest.mark.parametrize("progressive", [False, True])
@settings(max_examples=40)
@given(cut=st.integers(1, 2000), tail=st.binary(max_size=5000))
def test_a_jpeg_ends_at_its_own_end_marker(progressive: bool, cut: int, tail: bytes) -> None:
    """Neither a thumbnail's end marker nor the bytes that phones append decide."""
    exif = Image.Exif()
    exif[0x927C] = b"\xff\xd9" * 400
    body = encode(noise(48, 32), "JPEG", progressive=progressive, exif=exif, quality=90)
    assert body.count(b"\xff\xd9") >= 400
    assert transcode(body + tail, SPEC).body == transcode(body, SPEC).body
    assert _reason(body[:-cut]) == "image_truncated"


# ---------------------------------------------------------------- bombs


@pytest.mark.parametrize(
    "body",
    [
        png_of_one_colour(16_000, 16_000, colour_type=0),
        gif_of_many_frames(100_000),
        webp_lossless_header(16_383, 16_383),
        webp_lossless_header(6_000, 4_000),
    ],
    ids=["pixels of a PNG", "frames of a GIF", "pixels of a WebP", "expansion of a WebP"],
)
def test_a_bomb_is_refused_from_its_header(body: bytes) -> None:
    assert _reason(body) == "bomb"


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (10_001, 10_000), (2**31 - 1, 1)])
def test_a_header_that_claims_too_many_pixels(width: int, height: int) -> None:
    body = bytearray(png_of_one_colour(1, 1))
    body[16:24] = width.to_bytes(4) + height.to_bytes(4)
    body[29:33] = zlib.crc32(body[12:29]).to_bytes(4)
    with pytest.raises(ImageError, match=r"^bomb$") as caught:
        transcode(bytes(body), SPEC)
    assert (caught.value.original_width, caught.value.original_height) == (width, height)


@pytest.mark.parametrize("colour_type", [0, 2])
def test_an_honest_flat_image_is_no_bomb(colour_type: int) -> None:
    assert _reason(png_of_one_colour(4_000, 4_000, colour_type)) == ""


def test_a_flat_rgb_image_of_more_than_16_megapixels_is_no_bomb() -> None:
    assert _reason(png_of_one_colour(5_000, 4_000)) == ""


def test_the_limits_are_inclusive() -> None:
    body = encode(noise(40, 25), "PNG")
    assert _reason(body, ImageSpec(max_pixels=1000)) == ""
    assert _reason(body, ImageSpec(max_pixels=999)) == "bomb"
    frames = gif_of_many_frames(7)
    assert transcode(frames, ImageSpec(max_frames=7)).num_frames == 7
    assert _reason(frames, ImageSpec(max_frames=6)) == "bomb"


def test_a_tiff_of_many_pages_is_not_read_to_its_end() -> None:
    body = encode(noise(4, 4), "TIFF", save_all=True, append_images=[noise(4, 4)] * 9)
    assert transcode(body, ImageSpec(max_frames=10)).num_frames == 10
    assert _reason(body, ImageSpec(max_frames=9)) == "bomb"


def test_scaling_up_is_limited_as_well() -> None:
    body = encode(noise(2, 1_000), "PNG")
    assert _reason(body, ImageSpec(size_px=500, resize="keep_ratio", only_if_bigger=False)) == "bomb"


@pytest.mark.parametrize(("image_format", "reason"), [("jpg", ""), ("webp", "bomb"), ("png", "")])
def test_a_side_that_the_stored_format_cannot_have(image_format: str, reason: str) -> None:
    body = encode(Image.new("L", (16_384, 20)), "PNG")
    assert _reason(body, ImageSpec(resize="no", format=image_format)) == reason


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_and_profiles_do_not_expand(kind: bytes) -> None:
    """200 MB of zeros in 200 kB, in a file that is otherwise in order."""
    start = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    chunk = png_chunk(kind, start + zlib.compress(bytes(200_000_000), 9))
    plain = encode(noise(30, 20), "PNG")
    frames = [noise(16, 16), noise(16, 16, seed=1)]
    animated = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    memory_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _reason(png_with(plain, chunk)) == ""
    assert _reason(png_with(animated, chunk)) in ("", "undecodable")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kb < 50_000


# ---------------------------------------------------------------- rules of size


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((50, 200), ""),
        ((49, 200), "image_too_small"),
        ((200, 49), "image_too_small"),
        ((50, 201), "image_too_narrow"),
        ((201, 50), "image_too_narrow"),
    ],
)
def test_small_and_narrow_images_are_refused(size: tuple[int, int], reason: str) -> None:
    assert _reason(encode(noise(*size), "PNG"), ImageSpec(min_side_px=50, max_aspect=4)) == reason


def test_a_refused_image_says_its_upright_size() -> None:
    with pytest.raises(ImageError) as caught:
        transcode(oriented(noise(60, 20), "JPEG", 8), ImageSpec(min_side_px=50))
    assert (caught.value.original_width, caught.value.original_height) == (20, 60)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_default_recipe_takes_a_photograph(image_format: str) -> None:
    stored = transcode(encode(photo(640, 480), image_format), ImageSpec())
    assert (stored.width, stored.height) == (384, 288)
