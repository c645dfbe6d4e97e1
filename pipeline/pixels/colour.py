"""Colour profiles to sRGB, which is what training and browsers take pixels without a profile for."""

import io
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Of the profile's colour space, which stands at byte 16."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LEAST_DIFFERENCE = 3
"""Out of 255, on any colour of a grid: a profile closer to sRGB than this is sRGB by another name."""


def to_srgb(bgr: NDArray[np.uint8], icc_profile: bytes) -> NDArray[np.uint8]:
    """Pixels [height, width, 3] in sRGB; the same array where the profile is sRGB, unfit for RGB, or damaged."""
    transform = _transform(icc_profile) if icc_profile else None
    if transform is None or transform.input_mode == "CMYK":
        return bgr
    rgb = Image.fromarray(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)))
    if transform.input_mode == "L":
        channels = rgb.split()
        if not channels[0] == channels[1] == channels[2]:
            return bgr
        rgb = channels[0]
    converted = np.asarray(_applied(transform, rgb))
    return np.asarray(cv2.cvtColor(converted, cv2.COLOR_RGB2BGR), np.uint8)


def cmyk_to_srgb(cmyk: Image.Image, icc_profile: bytes) -> Image.Image:
    """By the profile, which most such files have, or by plain inversion."""
    transform = _transform(icc_profile)
    if transform is None or transform.input_mode != "CMYK":
        return cmyk.convert("RGB")
    return _applied(transform, cmyk)


@lru_cache(maxsize=64)
def _transform(icc_profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """None where nothing is to be done. Few different profiles make up nearly all, so they are judged once."""
    mode = _MODES.get(icc_profile[16:20])
    if mode is None:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        transform = ImageCms.ImageCmsTransform(source, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return transform
    probe = _colour_grid(mode)
    difference = np.asarray(_applied(transform, probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return transform if np.abs(difference).max() >= _LEAST_DIFFERENCE else None


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is only for a transform in place
    return converted


def _colour_grid(mode: str) -> Image.Image:
    """Colours from all over the cube, or all greys, in one row."""
    levels = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    return Image.fromarray(np.stack(np.meshgrid(*[levels[::32]] * 3), axis=-1).reshape(1, -1, 3))
