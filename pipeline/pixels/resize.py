"""How large an image is stored, and how it gets there."""

import cv2
import numpy as np
from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

from pipeline.pixels.decode import REDUCTIONS, Pixels
from pipeline.pixels.spec import ImageSpec

_LANCZOS = ResizeAlg.convolution(FilterType.lanczos3)
_PIXEL_TYPES = {1: PixelType.U8, 3: PixelType.U8x3, 4: PixelType.U8x4}
_HEAD_ROOM = 2
"""Pixels decoded on each side for one that is stored: below two, the cosine transform's filter is seen."""


def scaled_size(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Width and height after scaling, before a crop or a border: img2dataset's own arithmetic."""
    if not _is_resized(width, height, spec):
        return width, height
    scale = spec.size_px / _deciding_side(width, height, spec)
    return max(1, round(width * scale)), max(1, round(height * scale))


def choose_reduction(width: int, height: int, size: tuple[int, int]) -> int:
    """The largest reduction of a JPEG that leaves the head-room over `size`, or 1."""
    for reduction in REDUCTIONS:
        if width >= _HEAD_ROOM * reduction * size[0] and height >= _HEAD_ROOM * reduction * size[1]:
            return reduction
    return 1


def resample(pixels: Pixels, size: tuple[int, int], extent: tuple[float, float]) -> Pixels:
    """Lanczos in 8 bits. Colours are weighted by their alpha, so that what is invisible leaves no trace.

    Args:
        pixels: [height, width, channels].
        size: width and height wanted.
        extent: width and height of what `pixels` shows, which is a fraction of a pixel less than its sides where a
            reduced JPEG was rounded up.
    """
    height, width, num_channels = pixels.shape
    if (width, height) == size:
        return pixels
    kind = _PIXEL_TYPES[num_channels]
    source = ImageData(width, height, kind, pixels.tobytes())
    target = ImageData(*size, kind)
    options = ResizeOptions(_LANCZOS, use_alpha=num_channels == 4, crop_box=CropBox(0, 0, *extent))
    Resizer().resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size[1], size[0], num_channels)


def on_white(pixels: Pixels) -> Pixels:
    """BGR of grey, BGR or BGRA; transparency shows white."""
    num_channels = pixels.shape[2]
    if num_channels == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), np.uint8)
    if num_channels == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint16)
    # Rounded to nearest; the sum is at most 255 × 255 + 127 and so fits 16 bits.
    return ((pixels[..., :3] * alpha + (255 * (255 - alpha) + 127)) // 255).astype(np.uint8)


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def fit(bgr: Pixels, original_size: tuple[int, int], spec: ImageSpec) -> Pixels:
    """The crop of `center_crop` or the border of `border`, for images that were resized."""
    if not _is_resized(*original_size, spec):
        return bgr
    height, width = bgr.shape[:2]
    side = spec.size_px
    if spec.resize == "center_crop":
        top, left = (height - side) // 2, (width - side) // 2
        return np.ascontiguousarray(bgr[top : top + side, left : left + side])
    if spec.resize == "border":
        square = np.full((side, side, 3), 255, np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = bgr
        return square
    return bgr


def _deciding_side(width: int, height: int, spec: ImageSpec) -> int:
    return max(width, height) if spec.resize in ("border", "keep_ratio_largest") else min(width, height)


def _is_resized(width: int, height: int, spec: ImageSpec) -> bool:
    if spec.resize == "no":
        return False
    return not spec.only_if_bigger or _deciding_side(width, height, spec) > spec.size_px
