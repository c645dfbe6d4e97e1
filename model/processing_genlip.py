"""From an image file to uint8 patches, exactly as the published models saw them, or faster and nearly so.

Shape legend: P patches (row-major over the grid), C = 3 channels, p patch side in pixels.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .errors import ModelError

MAX_ASPECT_RATIO = 200
# Pillow's decoders raise any of these for damaged bytes.
DAMAGED_FILE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# What `GenLIP` does with uint8 patches; written to preprocessor_config.json for readers of the folder.
NORMALISATION: dict[str, Any] = {
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}


@dataclass(frozen=True)
class ImageProcessor:
    """Resizes an image and cuts it into patches.

    Attributes:
        mode: "square" squashes every image to image_px x image_px (official stage 1); "native" keeps the aspect ratio
            and rounds each side to whole patches within a pixel budget (official stage 2).
        image_px: side of the square, in pixels ("square" only).
        patch_size: side of a patch, in pixels.
        min_pixels: smallest area after resizing ("native" only).
        max_pixels: largest area after resizing ("native" only).
    """

    mode: Literal["square", "native"] = "square"
    image_px: int = 224
    patch_size: int = 16
    min_pixels: int = 4096
    max_pixels: int = 262144

    def __post_init__(self) -> None:
        if self.mode not in ("square", "native"):
            raise ModelError(f"image processor: mode must be 'square' or 'native', got {self.mode!r}")
        for name in ("image_px", "patch_size", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ModelError(f"image processor: {name} must be a whole number of at least 1, got {value!r}")
        if self.mode == "square" and self.image_px % self.patch_size:
            raise ModelError(
                f"image processor: image_px {self.image_px} is not a multiple of patch_size {self.patch_size}"
            )
        if self.mode == "native" and self.min_pixels > self.max_pixels:
            raise ModelError(f"image processor: min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of patches that an image of this size, in pixels, will have; pure arithmetic.

        Raises:
            ModelError: a side below 1, or (native) one side more than 200 times the other.
        """
        if width < 1 or height < 1:
            raise ModelError(f"image of {width}x{height} pixels: both sides must be at least 1")
        if self.mode == "square":
            side = self.image_px // self.patch_size
            return side, side
        return self._native_grid(width, height)

    def patches(self, image: Image.Image | npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        """Resizes (PIL bilinear) and cuts: uint8 [P, 3, p, p] and the grid.

        Args:
            image: a PIL image (made RGB by `load_rgb`'s rules if it is not) or uint8 pixels [height, width, 3].
        """
        picture = _as_picture(image)
        grid = self.grid(picture.width, picture.height)
        return self._cut(picture, grid), grid

    def load_patches(
        self, file: bytes | str | Path, exact: bool = True
    ) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        """Decodes a file by `load_rgb`'s rules and cuts it: uint8 [P, 3, p, p] and the grid.

        With `exact=False`, a JPEG at least twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size: same
        grid, less than half the time for 2000 pixels. Pixels differ by 1 to 4 of 255 on average, and by up to 60 at
        hard edges (README.md has the numbers). Smaller JPEGs and other formats give the exact result at no gain.

        Raises:
            ModelError: as `load_rgb` and `grid`.
        """
        if exact:
            return self.patches(load_rgb(file))
        grid = self.grid(*_upright_size(file))
        num_rows, num_columns = grid
        return self._cut(load_rgb(file, (num_columns * self.patch_size, num_rows * self.patch_size)), grid), grid

    def to_dict(self) -> dict[str, Any]:
        """Content of preprocessor_config.json."""
        return {"image_processor_type": "GenLIPImageProcessor", **asdict(self), **NORMALISATION}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageProcessor":
        """Reads `to_dict`'s output, or a fixed-size processor in the Hugging Face style (`size` of equal sides).

        Raises:
            ModelError: neither, or a normalisation or filter other than the one this package applies.
        """
        for name, only in NORMALISATION.items():
            if not _is_close(values.get(name, only), only):
                raise ModelError(f"image processor: only {name}={only} is implemented, got {values[name]!r}")
        if "mode" in values:
            return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
        size = values.get("size")
        if isinstance(size, Mapping) and size.get("height") == size.get("width") is not None:
            return cls(image_px=size["height"], patch_size=values.get("patch_size", cls.patch_size))
        raise ModelError(
            "image processor: preprocessor_config.json has neither 'mode' nor a square 'size'; write it with"
            " ImageProcessor(...).to_dict()"
        )

    def _cut(self, picture: Image.Image, grid: tuple[int, int]) -> npt.NDArray[np.uint8]:
        num_rows, num_columns = grid
        p = self.patch_size
        resized = picture.resize((num_columns * p, num_rows * p), Image.Resampling.BILINEAR)
        tiles = np.asarray(resized).reshape(num_rows, p, num_columns, p, 3)
        return np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, p, p)

    def _native_grid(self, width: int, height: int) -> tuple[int, int]:
        """The official stage-2 resize: each side to the nearest patch (half to even), then the area into the budget."""
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ModelError(
                f"image of {width}x{height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other; drop it"
            )
        p = self.patch_size
        num_rows, num_columns = round(height / p), round(width / p)
        area = num_rows * num_columns * p * p
        if area > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            num_rows = max(1, math.floor(height / shrink / p))
            num_columns = max(1, math.floor(width / shrink / p))
        elif area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            num_rows, num_columns = math.ceil(height * grow / p), math.ceil(width * grow / p)
        return num_rows, num_columns


def load_rgb(image: bytes | str | Path | Image.Image, at_least_px: tuple[int, int] | None = None) -> Image.Image:
    """Decodes an image to upright 8-bit RGB.

    EXIF orientation is applied, transparency is composited on white, palettes, grey, CMYK and 16-bit are converted, and
    of an animation the first frame is taken.

    Args:
        image: content or path of a file, or a PIL image.
        at_least_px: (width, height) that is enough: a much larger JPEG file is decoded at a fraction of its size,
            which is faster and no longer exact. None: the whole image.

    Raises:
        ModelError: the bytes are no image, are cut short, or hold a kind of pixel without a defined range.
    """
    if isinstance(image, Image.Image):
        with _decoding("image"):
            return _to_rgb(ImageOps.exif_transpose(image))
    with _opened(image) as opened:
        if at_least_px:
            opened.draft(None, _turned(at_least_px, opened))
        return _to_rgb(ImageOps.exif_transpose(opened))


def _upright_size(file: bytes | str | Path) -> tuple[int, int]:
    """(width, height) in pixels, from the file's header."""
    with _opened(file) as opened:
        return _turned(opened.size, opened)


def _turned(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    """The size with its sides exchanged if EXIF lays the image on its side."""
    return size[::-1] if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else size


@contextmanager
def _opened(file: bytes | str | Path) -> Iterator[Image.Image]:
    with (
        _decoding("image" if isinstance(file, bytes) else f"image {file}"),
        Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened,
    ):
        yield opened


@contextmanager
def _decoding(source: str) -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault."""
    try:
        yield
    except DAMAGED_FILE_ERRORS as error:
        # Pillow's own message would name a buffer by its address.
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise ModelError(f"{source} cannot be decoded ({reason}); drop the sample or replace the file") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow would clip at 255 instead of scaling.
        values = np.asarray(image).astype(np.int64)
        pixels = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
        pixels[values == image.info.get("transparency")] = 255
        return Image.fromarray(pixels).convert("RGB")
    if image.mode == "F":
        raise ModelError("floating point pixels have no defined range; convert the image to 8 bits first")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _is_close(value: Any, only: Any) -> bool:
    try:
        return np.shape(value) == np.shape(only) and bool(np.allclose(value, only))
    except (TypeError, ValueError):  # no numbers
        return False


def _as_picture(image: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else load_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ModelError(
            f"image array must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}; use load_rgb"
        )
    return Image.fromarray(image)
