"""Encoded images to resized pixels, fast: what training reads, within a few hundredths of the official pixels.

JPEG files are decoded by libjpeg-turbo, at a half or less of their size where that is enough; all else by
`model.load_rgb`. Both free the GIL, so threads decode in parallel.
"""

import cv2
import numpy as np
import simplejpeg
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from numpy.typing import NDArray

from model import ImageProcessor, load_rgb

Pixels = NDArray[np.uint8]
"""[height, width, 3], RGB."""

_JPEG = b"\xff\xd8"
_EXIF = b"Exif\0\0"
_PLAIN_COLOURS = ("YCbCr", "Gray", "RGB")
_FEWEST_PIXELS_FOR_ONE = 2
"""Fractions between a half and one are slower to decode than the whole image."""
_SMOOTH = ResizeOptions(ResizeAlg.convolution(FilterType.bilinear), use_alpha=False)
_MOST_PLAIN_SCALE = 4 / 3
"""Up to this reduction plain bilinear interpolation, which weighs four pixels, is near the official filter."""

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
    """Pixels, perhaps of a reduced image, and the grid of the whole one.

    None for what is no ordinary JPEG, is damaged, or may have to be turned: Pillow reads it, or says what is wrong.
    """
    if not image.startswith(_JPEG) or _EXIF in image:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
        if colours not in _PLAIN_COLOURS:
            return None
        grid = processor.grid(width, height)
        min_height, min_width = (side * processor.patch_size for side in grid)
        pixels = simplejpeg.decode_jpeg(image, "RGB", False, False, min_height, min_width, _FEWEST_PIXELS_FOR_ONE)
    except ValueError:
        return None
    return pixels, grid


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
