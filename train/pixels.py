"""Encoded images to resized pixels, fast: what training reads, within a few hundredths of the official pixels.

JPEG files are decoded by OpenCV (libjpeg-turbo), at 1/2, 1/4 or 1/8 of their size where that is enough; all else by
`model.load_rgb`. Both free the GIL, so threads decode in parallel.
"""

import struct

import cv2
import numpy as np
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from numpy.typing import NDArray

from model import ImageProcessor, load_rgb

Pixels = NDArray[np.uint8]
"""[height, width, 3], RGB."""

_REDUCED_JPEG = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    1: cv2.IMREAD_COLOR_RGB,
}
"""What OpenCV is asked for, by the number that sides are divided by; computed from the cosine transform directly."""
_SMOOTH = ResizeOptions(ResizeAlg.convolution(FilterType.bilinear), use_alpha=False)
_MOST_PLAIN_SCALE = 4 / 3
"""Up to this reduction plain bilinear interpolation, which weighs four pixels, is near the official filter."""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Markers of baseline, extended and progressive frames: the ones in use."""

# The loader's threads fill the cores.
cv2.setNumThreads(1)


def image_pixels(image: bytes, processor: ImageProcessor) -> tuple[Pixels, tuple[int, int]]:
    """Decode an image and resize it to whole patches.

    Args:
        image: A file's content.
        processor: Decides the size.

    Returns:
        uint8 [rows × p, columns × p, 3], and (rows, columns) of patches, as `processor.grid` has them.

    Raises:
        ModelError: It is no image, is cut short, or its sides are beyond what the model takes.
    """
    pixels, grid = _decode_jpeg(image, processor) or _decode_any(image, processor)
    return _resize(pixels, grid[1] * processor.patch_size, grid[0] * processor.patch_size), grid


def write_patches(pixels: Pixels, grid: tuple[int, int], patches_out: NDArray[np.uint8]) -> None:
    """Cut pixels into the patches of a grid, row-major.

    Args:
        pixels: [rows × p, columns × p, 3].
        grid: (rows, columns).
        patches_out: [rows × columns, p, p, 3], contiguous; is written to. Channels stay last, as they are decoded: to
            turn them around takes longer than the copy, and the model reads both.
    """
    num_rows, num_columns = grid
    side = patches_out.shape[1]
    line = np.dtype((np.void, 3 * side))  # a patch's line at a time: half the time of single bytes
    tiles = np.ascontiguousarray(pixels).reshape(num_rows, side, num_columns, 3 * side).view(line)[..., 0]
    tiles_out = patches_out.reshape(num_rows, num_columns, side, 3 * side).view(line)[..., 0]
    tiles_out[...] = tiles.transpose(0, 2, 1)


def _decode_any(image: bytes, processor: ImageProcessor) -> tuple[Pixels, tuple[int, int]]:
    pixels = np.asarray(load_rgb(image))
    return pixels, processor.grid(pixels.shape[1], pixels.shape[0])


def _decode_jpeg(image: bytes, processor: ImageProcessor) -> tuple[Pixels, tuple[int, int]] | None:
    """Upright pixels, perhaps of a reduced image, and the grid of the whole one.

    None for what is no ordinary JPEG, or not a whole one, which OpenCV would fill up with grey.
    """
    size = _jpeg_size(image)
    if size is None:
        return None
    grid = processor.grid(*size)
    reduction = _reduction(size, grid, processor.patch_size)
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), _REDUCED_JPEG[reduction])
    except cv2.error:
        return None
    if pixels is None:
        return None
    width, height = size
    if pixels.shape[0] != -(-height // reduction):  # turned by its EXIF orientation
        grid = processor.grid(height, width)
    return np.asarray(pixels, np.uint8), grid


def _jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Width and height as stored, from the frame header; None if this is not a whole JPEG of grey or three colours."""
    if not image.startswith(_JPEG_START) or not image.endswith(_JPEG_END):
        return None
    at = 2
    while at + 10 <= len(image) and image[at] == 0xFF:
        marker, length = image[at + 1], int.from_bytes(image[at + 2 : at + 4])
        if marker in _JPEG_FRAMES:
            height, width, num_components = struct.unpack_from(">HHB", image, at + 5)
            return (width, height) if width and height and num_components in (1, 3) else None
        at += 2 + length
    return None


def _reduction(size: tuple[int, int], grid: tuple[int, int], patch_px: int) -> int:
    """The largest one that leaves at least the pixels wanted, whichever way the image is turned."""
    spare = min(max(size) // (max(grid) * patch_px), min(size) // (min(grid) * patch_px))
    return next((one for one in (8, 4, 2) if one <= spare), 1)


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Bilinear: over four pixels, or over as many as go into one where the image shrinks by more."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.shape[0] <= _MOST_PLAIN_SCALE * height and pixels.shape[1] <= _MOST_PLAIN_SCALE * width:
        return np.asarray(cv2.resize(pixels, (width, height)), np.uint8)
    source = ImageData(pixels.shape[1], pixels.shape[0], PixelType.U8x3, pixels.tobytes())
    target = ImageData(width, height, PixelType.U8x3)
    Resizer().resize(source, target, _SMOOTH)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)
