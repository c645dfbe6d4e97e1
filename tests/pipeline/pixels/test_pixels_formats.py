"""Whatever the file, what is stored is what a viewer shows: upright, on white, in sRGB."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from pixel_files import (
    BLUE,
    FORMATS,
    GREEN,
    HEIC,
    RED,
    WHITE,
    decoded,
    encode,
    near,
    noise,
    oriented,
    photo,
    png_chunk,
    png_with,
    quarters,
)

from pipeline.pixels.images import transcode
from pipeline.pixels.spec import ImageSpec

AS_IT_IS = ImageSpec(resize="no", format="png")
SPEC = ImageSpec(size_px=100)

# Where the four corners of `quarters` go, in reading order, for each EXIF orientation.
CORNERS = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),
    3: (WHITE, BLUE, GREEN, RED),
    4: (BLUE, WHITE, RED, GREEN),
    5: (RED, BLUE, GREEN, WHITE),
    6: (BLUE, RED, WHITE, GREEN),
    7: (WHITE, GREEN, BLUE, RED),
    8: (GREEN, WHITE, RED, BLUE),
}


def _pixels(body: bytes) -> np.ndarray:
    return decoded(transcode(body, AS_IT_IS).body)


def _show_corners(rgb: np.ndarray, corners: tuple[tuple[int, int, int], ...]) -> bool:
    height, width = rgb.shape[:2]
    rows, columns = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
    at = [(row, column) for row in rows for column in columns]
    return all(near(rgb[place], colour, tolerance=40) for place, colour in zip(at, corners, strict=True))


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_type_is_known_by_its_content(image_format: str) -> None:
    stored = transcode(encode(quarters(), image_format), AS_IT_IS)
    assert stored.original_format == image_format.lower()
    assert (stored.width, stored.height, stored.num_frames, stored.extension) == (64, 32, 1, "png")
    assert _show_corners(decoded(stored.body), CORNERS[1])


def test_heic_where_its_package_is_installed() -> None:
    pytest.importorskip("pi_heif")
    stored = transcode(HEIC, AS_IT_IS)
    assert (stored.original_format, stored.width, stored.height) == ("heic", 64, 32)
    assert near(decoded(stored.body)[16, 10], RED, tolerance=40)
    assert near(decoded(stored.body)[16, 50], GREEN, tolerance=40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("scale", [1, 8])
def test_all_orientations(image_format: str, orientation: int, scale: int) -> None:
    """At scale 8, JPEG is decoded at a quarter of its size."""
    body = oriented(quarters(64 * scale, 32 * scale), image_format, orientation)
    stored = transcode(body, ImageSpec(size_px=64, format="png"))
    assert (stored.original_width, stored.original_height) == (
        (64 * scale, 32 * scale) if orientation < 5 else (32 * scale, 64 * scale)
    )
    assert (stored.width, stored.height) == ((64, 32) if orientation < 5 else (32, 64))
    assert _show_corners(decoded(stored.body), CORNERS[orientation])


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    assert _show_corners(_pixels(oriented(quarters(), "JPEG", value)), CORNERS[1])


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "AVIF", "TIFF"])
def test_transparency_is_put_on_white(image_format: str) -> None:
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (20, 0, 40, 20))
    rgb = _pixels(encode(image, image_format))
    assert near(rgb[10, 5], WHITE)
    assert near(rgb[10, 35], RED, tolerance=12)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("size_px", [8, 64])
def test_half_transparent_is_mixed_with_white(mode: str, size_px: int) -> None:
    image = Image.new(mode, (64, 64), (0, 128) if mode == "LA" else (0, 0, 255, 128))
    rgb = decoded(transcode(encode(image, "PNG"), ImageSpec(size_px=size_px, format="png")).body)
    assert near(rgb[4, 4], (127, 127, 127) if mode == "LA" else (127, 127, 255), tolerance=1)


def test_invisible_colours_leave_no_trace_when_scaled() -> None:
    """Black under alpha 0 beside opaque red: the edge goes from white to red and never gets dark."""
    image = Image.new("RGBA", (256, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (128, 0, 256, 64))
    rgb = decoded(transcode(encode(image, "PNG"), ImageSpec(size_px=37, format="png")).body)
    assert rgb[..., 0].min() >= 250


@pytest.mark.parametrize(("image_format", "first"), [("PNG", WHITE), ("GIF", WHITE)])
def test_palette_with_a_transparent_entry(image_format: str, first: tuple[int, int, int]) -> None:
    image = Image.new("P", (20, 10), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (10, 0, 20, 10))
    rgb = _pixels(encode(image, image_format, transparency=0))
    assert near(rgb[5, 2], first)
    assert near(rgb[5, 17], RED)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_colour_that_is_transparent(mode: str) -> None:
    image = Image.new(mode, (20, 10), 0)
    image.paste(90 if mode == "L" else (90, 90, 90), (10, 0, 20, 10))
    rgb = _pixels(encode(image, "PNG", transparency=0 if mode == "L" else (0, 0, 0)))
    assert near(rgb[5, 2], WHITE)
    assert near(rgb[5, 17], (90, 90, 90))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_grey_bits_and_palettes_become_rgb(mode: str, image_format: str) -> None:
    rgb = _pixels(encode(quarters().convert("L").point([0, *[255] * 255]).convert(mode), image_format))
    assert rgb.shape == (32, 64, 3)
    assert near(rgb[24, 48], WHITE)


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_16_bit_mid_grey_stays_mid_grey(num_channels: int) -> None:
    pixels = np.full((8, 8, num_channels), 0x8000, dtype=np.uint16)
    if num_channels == 4:
        pixels[:, :, 3] = 0xFFFF
    assert near(_pixels(cv2.imencode(".png", pixels)[1].tobytes())[4, 4], (128, 128, 128), tolerance=1)


def test_16_bit_grey_tiff() -> None:
    assert near(_pixels(encode(Image.fromarray(np.full((8, 8), 0x8000, np.uint16)), "TIFF"))[4, 4], (128, 128, 128), 1)


def test_16_bit_grey_keeps_its_orientation_and_its_transparent_level() -> None:
    pixels = np.full((8, 16), 0x8000, dtype=np.uint16)
    pixels[:, :8] = 0x1234
    png = oriented(Image.fromarray(pixels), "PNG", 6)
    rgb = _pixels(png_with(png, png_chunk(b"tRNS", struct.pack(">H", 0x1234))))
    assert rgb.shape == (16, 8, 3)
    assert near(rgb[3, 4], WHITE)
    assert near(rgb[12, 4], (128, 128, 128), tolerance=1)


@pytest.mark.parametrize("size", [(32, 32), (1024, 1024)])
def test_cmyk_jpeg(size: tuple[int, int]) -> None:
    stored = transcode(encode(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG", quality=95), SPEC)
    assert (stored.original_width, stored.width) == (size[0], min(100, size[0]))
    assert near(decoded(stored.body)[16, 16], RED, tolerance=12)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_grey_becomes_three_equal_channels(image_format: str) -> None:
    stored = transcode(encode(Image.new("L", (160, 120), 90), image_format), SPEC)
    assert near(decoded(stored.body)[30, 50], (90, 90, 90))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_an_animation_the_first_frame(image_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    stored = transcode(encode(frames[0], image_format, save_all=True, append_images=frames[1:]), AS_IT_IS)
    assert stored.num_frames == 3
    assert near(decoded(stored.body)[8, 8], RED, tolerance=12)


def test_jpeg_of_another_sampling_and_progressive() -> None:
    image = photo(320, 200)
    for options in ({"subsampling": 0}, {"subsampling": 2, "progressive": True}, {"restart_marker_rows": 1}):
        rgb = _pixels(encode(image, "JPEG", quality=95, **options))
        assert np.abs(rgb.astype(int) - np.asarray(image)).mean() < 3


# ---------------------------------------------------------------- colour profiles


def _swapped_primaries() -> bytes:
    """A profile whose red is what sRGB calls blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_a_colour_profile_is_converted_to_srgb(image_format: str) -> None:
    body = encode(Image.new("RGB", (64, 32), RED), image_format, icc_profile=_swapped_primaries())
    assert near(_pixels(body)[16, 32], BLUE, tolerance=12)


@pytest.mark.parametrize("profile", ["srgb", "damaged", "none"])
def test_srgb_and_damaged_profiles_change_nothing(profile: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    icc_profile = {"srgb": srgb, "damaged": srgb[:200], "none": None}[profile]
    image = noise(40, 30)
    assert np.array_equal(_pixels(encode(image, "PNG", icc_profile=icc_profile)), np.asarray(image))


def test_a_profile_of_grey_is_for_grey_only() -> None:
    """One of linear light, whose level 90 is a bright grey."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    at = profile.index(b"rTRC")
    profile[at : at + 4] = b"kTRC"
    gamma = profile.index(b"para") + 12
    profile[gamma : gamma + 4] = struct.pack(">I", 1 << 16)
    grey = _pixels(encode(Image.new("L", (16, 16), 90), "PNG", icc_profile=bytes(profile)))[8, 8]
    assert 140 < grey[0] == grey[1] == grey[2]
    colour = _pixels(encode(Image.new("RGB", (16, 16), RED), "PNG", icc_profile=bytes(profile)))[8, 8]
    assert near(colour, RED, tolerance=1)


# ---------------------------------------------------------------- what is stored


@pytest.mark.parametrize(("image_format", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_the_stored_format(image_format: str, name: str) -> None:
    stored = transcode(encode(photo(300, 150), "PNG"), ImageSpec(size_px=100, format=image_format))
    with Image.open(io.BytesIO(stored.body)) as image:
        assert (image.format, image.mode, image.size) == (name, "RGB", (100, 50))
    assert stored.extension == image_format


@pytest.mark.parametrize(("image_format", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_if_changed_keeps_the_bytes(image_format: str, name: str) -> None:
    spec = ImageSpec(size_px=100, format=image_format, reencode="if_changed")
    body = encode(photo(90, 60), name)
    stored = transcode(body, spec)
    assert stored.body == body
    assert stored.phash == transcode(body, spec.model_copy(update={"reencode": "always"})).phash


@pytest.mark.parametrize("case", ["larger", "turned", "transparent", "profile", "boxes", "other", "16 bit", "cmyk"])
def test_if_changed_encodes_what_is_changed(case: str) -> None:
    image, boxes = photo(90, 60), []
    body = {
        "larger": lambda: encode(photo(101, 60), "PNG"),
        "turned": lambda: oriented(image, "PNG", 3),
        "transparent": lambda: encode(image.convert("RGBA"), "PNG"),
        "profile": lambda: encode(image, "PNG", icc_profile=_swapped_primaries()),
        "boxes": lambda: encode(image, "PNG"),
        "other": lambda: encode(image, "JPEG"),
        "16 bit": lambda: encode(Image.fromarray(np.full((60, 90), 0x8000, np.uint16)), "PNG"),
        "cmyk": lambda: encode(image.convert("CMYK"), "JPEG"),
    }[case]()
    if case == "boxes":
        boxes = [(0.1, 0.1, 0.5, 0.5)]
    image_format = "jpg" if case == "cmyk" else "png"
    stored = transcode(body, ImageSpec(size_px=100, format=image_format, reencode="if_changed"), boxes)
    assert stored.body != body
    assert decoded(stored.body).shape == (60 if case != "larger" else 59, min(100, stored.original_width), 3)
