"""Encoded bytes to 8-bit pixels, not yet turned upright, with whatever channels they have."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.pixels.colour import cmyk_to_srgb
from pipeline.pixels.containers import Header
from pipeline.pixels.errors import ImageError
from pipeline.pixels.plugins import PLUGINS

Pixels = NDArray[np.uint8]
"""[height, width, channels]: one channel is grey, three are BGR, four BGRA, as OpenCV has them."""

REDUCTIONS = (8, 4, 2)
"""JPEG decoders compute every 8th, 4th or 2nd pixel on each side directly from the cosine transform."""

_JPEG_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

# One decoding thread for each process: the scheduler above already fills the cores.
cv2.setNumThreads(1)
cv2.ocl.setUseOpenCL(False)


def decode(body: bytes, header: Header, reduction: int) -> Pixels:
    """Pixels of the first frame.

    Args:
        body: the file.
        header: what `read_header` says of it.
        reduction: 1, or one of `REDUCTIONS` for a JPEG: sides are divided by it and rounded up.

    Raises:
        ImageError: `undecodable`. The decoders may raise anything else, which says the same.
        MemoryError: there is not enough.
    """
    if not header.is_plain:
        return _decode_with_pillow(body, header, reduction)
    # OpenCV reports a failed allocation like a damaged file.
    np.empty((-(-header.height // reduction), -(-header.width // reduction), 3), np.uint8)
    flags = _JPEG_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    if header.format != "jpeg":
        flags = cv2.IMREAD_UNCHANGED
    decoded = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
    if decoded is None:
        raise ImageError("undecodable", *header.upright_size)
    pixels = (decoded >> 8).astype(np.uint8) if decoded.dtype == np.uint16 else np.asarray(decoded, np.uint8)
    return np.atleast_3d(pixels)


def _decode_with_pillow(body: bytes, header: Header, reduction: int) -> Pixels:
    with PLUGINS[header.format](io.BytesIO(body)) as image:
        image.draft(image.mode, (header.width // reduction, header.height // reduction))
        image.load()
        return _to_pixels(image, header.icc_profile)


def _to_pixels(image: Image, icc_profile: bytes) -> Pixels:
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        pixels = (levels >> 8).astype(np.uint8)
        pixels[levels == image.info.get("transparency", -1)] = 255
        return np.atleast_3d(pixels)
    if image.mode in ("I", "F"):  # measurements without a known white
        raise ImageError("undecodable", image.width, image.height)
    if image.mode == "CMYK":
        return _bgr(cmyk_to_srgb(image, icc_profile))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return np.asarray(cv2.cvtColor(np.asarray(image.convert("RGBA")), cv2.COLOR_RGBA2BGRA), np.uint8)
    return _bgr(image.convert("RGB"))


def _bgr(image: Image) -> Pixels:
    return np.asarray(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR), np.uint8)
