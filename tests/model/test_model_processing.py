"""Image preprocessing against the official processors, and every kind of image file."""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from model import ImageProcessor, ModelError, load_rgb
from model.layers import normalise

GOLDEN = Path(os.environ.get("GENLIP_GOLDEN", Path(__file__).parents[1] / "golden" / "genlip"))
FOLDER = GOLDEN / "preprocess"
NATIVE = ImageProcessor(mode="native")


def to_u8(normalised: torch.Tensor) -> np.ndarray[Any, Any]:
    return ((normalised / 2 + 0.5) * 255).round().to(torch.uint8).numpy()


def to_patches(pixels: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """[3, H, W] to [patches, 3, size, size], spelled out."""
    rows, columns = pixels.shape[1] // size, pixels.shape[2] // size
    cut = [pixels[:, r * size : (r + 1) * size, c * size : (c + 1) * size] for r in range(rows) for c in range(columns)]
    return np.stack(cut)


def grid_of(outputs: dict[str, torch.Tensor], tag: str) -> tuple[int, ...]:
    """The stored (rows, columns)."""
    return tuple(outputs[f"{tag}.image_grid_thw"][0, 1:].tolist())


def test_stage_1_resize_is_exact() -> None:
    outputs = load_file(FOLDER / "outputs.safetensors")
    patches, grid = ImageProcessor().patches(load_rgb(FOLDER / "input.png"))
    assert grid == (14, 14)
    assert np.array_equal(patches, to_patches(outputs["stage1.pixel_values_u8"][0].numpy(), 16))
    assert patches.flags.c_contiguous
    # The normalised values of the first 8 pixel rows, as the model makes them of uint8 patches.
    top = torch.from_numpy(patches).view(14, 14, 3, 16, 16)[0, :, :, :8].permute(1, 2, 0, 3).flatten(2)
    torch.testing.assert_close(normalise(top), outputs["stage1.pixel_values_rows0_7"][0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("file", "tag"), [("input", "stage2"), ("tiny", "tiny")])
def test_native_resize_is_exact(file: str, tag: str) -> None:
    outputs = load_file(FOLDER / "outputs.safetensors")
    patches, grid = NATIVE.patches(load_rgb(FOLDER / f"{file}.png"))
    assert grid == grid_of(outputs, tag)
    assert np.array_equal(patches, to_u8(outputs[f"{tag}.pixel_values"]))
    torch.testing.assert_close(normalise(torch.from_numpy(patches)), outputs[f"{tag}.pixel_values"], atol=1e-6, rtol=0)


def test_native_resize_of_a_big_image_is_exact() -> None:
    outputs = load_file(FOLDER / "outputs.safetensors")
    patches, grid = NATIVE.patches(load_rgb((FOLDER / "big.png").read_bytes()))
    assert grid == grid_of(outputs, "big")
    assert np.array_equal(patches[:16], outputs["big.first16_u8"].numpy())
    assert np.array_equal(patches[-16:], outputs["big.last16_u8"].numpy())
    hashes = json.loads((FOLDER / "hashes.json").read_text())
    assert hashlib.sha256(patches.tobytes()).hexdigest() == hashes["big_all_patches_u8_sha256"]


def test_grids_of_many_sizes_are_official() -> None:
    table = json.loads((FOLDER / "smart_resize.json").read_text())
    processor = ImageProcessor("native", min_pixels=table["min_pixels"], max_pixels=table["max_pixels"])
    for height, width, new_height, new_width in table["rows_h_w_H_W"]:
        if new_height is None:
            with pytest.raises(ModelError, match="more than 200 times"):
                processor.grid(width, height)
        else:
            assert processor.grid(width, height) == (new_height // 16, new_width // 16), (height, width)


def test_golden_samples_come_from_their_images() -> None:
    """The same images through both modes at toy sizes."""
    samples = load_file(GOLDEN / "samples.safetensors")
    settings = json.loads((FOLDER / "pipeline.json").read_text())
    square = ImageProcessor("square", image_px=settings["stage1"]["size"])
    budget = settings["navit"]
    native = ImageProcessor("native", min_pixels=budget["min_pixels"], max_pixels=budget["max_pixels"])
    numbers = [int(path.stem.removeprefix("sample")) for path in FOLDER.glob("sample*.png")]
    assert numbers
    for number in numbers:
        image = load_rgb(FOLDER / f"sample{number}.png")
        expected = to_u8(samples[f"stage1.{number}.pixel_values"][0])
        assert np.array_equal(square.patches(image)[0], to_patches(expected, 16))
        assert np.array_equal(native.patches(image)[0], to_u8(samples[f"navit.{number}.pixel_values"]))


@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_native_grid_respects_the_pixel_budget(width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ModelError):
            NATIVE.grid(width, height)
        return
    rows, columns = NATIVE.grid(width, height)
    assert min(rows, columns) >= 1
    # A side of one patch cannot shrink further, so only then may the area exceed the budget.
    assert rows * columns * 256 <= NATIVE.max_pixels or min(rows, columns) == 1
    assert rows * columns * 256 >= NATIVE.min_pixels


@given(width=st.integers(1, 90), height=st.integers(1, 90), mode=st.sampled_from(["square", "native"]))
def test_patches_have_the_planned_grid_and_array_equals_image(width: int, height: int, mode: Any) -> None:
    processor = ImageProcessor(mode, image_px=24, patch_size=8, min_pixels=256, max_pixels=2048)
    pixels = np.random.default_rng(width * 91 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    patches, grid = processor.patches(pixels)
    assert grid == processor.grid(width, height)
    assert patches.shape == (grid[0] * grid[1], 3, 8, 8)
    assert patches.dtype == np.uint8
    assert np.array_equal(patches, processor.patches(Image.fromarray(pixels))[0])


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_alpha_is_composited_on_white() -> None:
    rgba = Image.new("RGBA", (1, 3))
    rgba.putdata([(200, 0, 0, 0), (200, 0, 0, 255), (0, 0, 0, 128)])
    assert np.asarray(load_rgb(encode(rgba, "PNG")))[:, 0].tolist() == [[255] * 3, [200, 0, 0], [127] * 3]
    grey = Image.new("LA", (1, 1), (10, 0))
    assert load_rgb(encode(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 60, 50, 40])
    palette.putdata([0, 1])
    opaque, clear = load_rgb(encode(palette, "PNG")), load_rgb(encode(palette, "PNG", transparency=1))
    assert np.asarray(opaque).tolist() == [[[9, 8, 7], [60, 50, 40]]]
    assert np.asarray(clear).tolist() == [[[9, 8, 7], [255, 255, 255]]]


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("PNG", "1"), ("JPEG", "CMYK"), ("JPEG", "L")])
def test_other_modes_become_rgb(kind: str, mode: str) -> None:
    white = Image.new("RGB", (8, 8), "white").convert(mode)
    loaded = load_rgb(encode(white, kind))
    assert loaded.mode == "RGB"
    assert np.asarray(loaded).min() >= 250


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    loaded = np.asarray(load_rgb(encode(Image.fromarray(values), "PNG")))
    assert loaded[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_grey_keeps_transparency_and_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    values = np.array([[0, 1000, 32768]], np.uint16)
    loaded = np.asarray(load_rgb(encode(Image.fromarray(values), "PNG", exif=exif, transparency=1000)))
    assert loaded[:, 0].tolist() == [[0] * 3, [255] * 3, [128] * 3]


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        loaded = load_rgb(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert loaded.size == (8, 6)
        assert loaded.getpixel((3, 3)) == (255, 0, 0), kind


@pytest.mark.parametrize("exact", [True, False])
def test_extreme_shapes_are_squashed_or_refused(exact: bool) -> None:
    for size in ((1, 1), (1, 5000), (5000, 1)):
        data = encode(Image.new("RGB", size, (10, 200, 30)), "PNG")
        patches, grid = ImageProcessor().load_patches(data, exact)
        assert grid == (14, 14)
        assert (patches == np.array([10, 200, 30], np.uint8).reshape(3, 1, 1)).all()
        if size == (1, 1):
            assert NATIVE.load_patches(data, exact)[1] == (4, 4)
        else:
            with pytest.raises(ModelError, match="more than 200 times"):
                NATIVE.load_patches(data, exact)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_rgb(encode(Image.new("RGB", (30, 10)), kind, exif=exif)).size == (10, 30)


def test_undecodable_bytes_are_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encode(noise, "JPEG")
    for broken in (b"", b"not an image", whole[:200], whole[: len(whole) // 2]):
        with pytest.raises(ModelError, match="cannot be decoded"):
            load_rgb(broken)
    with pytest.raises(ModelError, match=r"^image cannot be decoded \(no known image format\)"):
        load_rgb(b"not an image")
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ModelError, match=r"broken\.png cannot be decoded"):
        load_rgb(path)
    with pytest.raises(ModelError, match="no defined range"):
        load_rgb(Image.new("F", (2, 2)))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours: 5 x 5 random ones, enlarged."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(300, 1500),
    height=st.integers(300, 1500),
    orientation=st.integers(1, 9),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    processor=st.sampled_from([ImageProcessor(image_px=96), ImageProcessor("native", max_pixels=64 * 256)]),
)
def test_fast_patches_have_the_same_grid_and_nearly_the_same_pixels(
    width: int, height: int, orientation: int, mode: str, processor: ImageProcessor
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(width, height, width).convert(mode), "JPEG", quality=95, exif=exif)
    exact, grid = processor.load_patches(data)
    fast, fast_grid = processor.load_patches(data, exact=False)
    assert np.array_equal(exact, processor.patches(load_rgb(data))[0])
    assert fast_grid == grid
    difference = np.abs(fast.astype(int) - exact)
    assert difference.mean() < 3
    assert difference.max() < 30


def test_the_fast_path_decodes_fewer_pixels_but_enough() -> None:
    data = encode(photo(1000, 500), "JPEG")
    assert load_rgb(data, (224, 224)).size == (500, 250)
    assert load_rgb(data, (200, 60)).size == (250, 125)
    assert load_rgb(data, (600, 100)).size == load_rgb(data).size == (1000, 500)
    assert load_rgb(encode(photo(1000, 500), "PNG"), (10, 10)).size == (1000, 500)


def test_both_paths_refuse_the_same_files(tmp_path: Path) -> None:
    whole = encode(photo(900, 900), "JPEG")
    path = tmp_path / "cut.jpg"
    for broken in (b"", b"not an image", whole[:200], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        messages = []
        for exact in (True, False):
            with pytest.raises(ModelError, match=r"cut\.jpg cannot be decoded") as caught:
                ImageProcessor().load_patches(path, exact)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_give_an_image_or_a_model_error(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encode(Image.linear_gradient("L").resize((32, 32)).convert("RGB"), kind))
    for where, value in changes:
        data[int(where * len(data))] = value
    with contextlib.suppress(ModelError):
        assert load_rgb(bytes(data)).mode == "RGB"


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (3, 4, 4)])
def test_arrays_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"uint8 \[height, width, 3\]"):
        ImageProcessor().patches(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("processor", [NATIVE, ImageProcessor(image_px=64, patch_size=8)])
def test_dict_round_trip(processor: ImageProcessor) -> None:
    assert ImageProcessor.from_dict(json.loads(json.dumps(processor.to_dict()))) == processor


def test_from_dict_reads_fixed_size_processors_and_refuses_others() -> None:
    siglip = {"size": {"height": 384, "width": 384}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    assert ImageProcessor.from_dict(siglip) == ImageProcessor(image_px=384)
    for name, value in [("resample", 3), ("image_mean", "abc"), ("image_std", [0.5, 0.5]), ("rescale_factor", None)]:
        with pytest.raises(ModelError, match=f"only {name}="):
            ImageProcessor.from_dict({**siglip, name: value})
    with pytest.raises(ModelError, match="neither 'mode' nor a square 'size'"):
        ImageProcessor.from_dict({"size": {"shortest_edge": 224}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "crop"}, "'square' or 'native'"),
        ({"image_px": 100}, "not a multiple"),
        ({"patch_size": 0}, "patch_size"),
        ({"mode": "native", "min_pixels": 10, "max_pixels": 5}, "above max_pixels"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ImageProcessor(**settings)
