"""Bytes to a stored image: decode, orient, put on white, scale down, encode as JPEG."""

import io
import re
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.recipe import ImageSpec

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF")
"""What is decoded. Pillow knows more, some of which start other programs."""

# Within scan data, 0xFF is followed by 0x00 (an escaped byte) or a restart marker (0xD0 to 0xD7).
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

# One decoding thread for each unit: the scheduler above already fills the cores.
cv2.setNumThreads(1)


class ImageError(Exception):
    """The bytes cannot become an image; the message is the ledger's reason."""


@dataclass(frozen=True)
class StoredImage:
    """An encoded image, its size, and the size it came with."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def transcode(body: bytes, spec: ImageSpec) -> StoredImage:
    """Decode any common image and encode it as the recipe says.

    Raises:
        ImageError: `not_an_image`, `image_too_large` (the header's size exceeds the limit) or `image_undecodable`.
    """
    rgb = decode_rgb(body, spec.max_pixels)
    original_height, original_width = rgb.shape[:2]
    scaled = _scale_down(rgb, spec.longest_side_px)
    ok, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(scaled, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, spec.jpeg_quality]
    )
    if not ok:
        raise ImageError("image_not_encodable")
    height, width = scaled.shape[:2]
    return StoredImage(jpeg.tobytes(), width, height, original_width, original_height)


def decode_rgb(body: bytes, max_pixels: int) -> Pixels:
    """Pixels [height, width, 3] with the EXIF orientation applied and transparency put on white."""
    try:
        # Pillow only reads the header here: real type and size by content, before any decoding.
        with Image.open(io.BytesIO(body), formats=FORMATS) as header:
            if header.width * header.height > max_pixels:
                raise ImageError("image_too_large")
            if header.format == "JPEG":
                return _decode_jpeg(body)
            return _decode_with_pillow(header)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image") from error
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large") from error
    except Exception as error:  # damaged files make decoders raise anything, and one must not stop its unit
        raise ImageError("image_undecodable") from error


def _decode_jpeg(body: bytes) -> Pixels:
    """OpenCV's libjpeg-turbo: twice as fast as Pillow; applies EXIF orientation, converts grey and CMYK."""
    if not _has_jpeg_end(body):
        raise ImageError("image_truncated")
    bgr = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ImageError("image_undecodable")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _has_jpeg_end(body: bytes) -> bool:
    """Whether the scan data runs to its end marker; libjpeg fills the rest of a cut file with grey and only warns.

    Segments are stepped over by their lengths, so that a thumbnail's own end marker does not count. What follows the
    end (phones append videos) does not matter.
    """
    at = 2
    while found := _JPEG_MARKER.search(body, at):
        at = found.end()
        marker = body[at - 1]
        if marker == 0xD9:
            return True
        if marker not in (0x01, 0xD8):
            at += int.from_bytes(body[at : at + 2])
    return False


def _decode_with_pillow(image: Image.Image) -> Pixels:
    """Everything that may have a palette, transparency or 16 bits; the first frame of an animation."""
    oriented = ImageOps.exif_transpose(image)
    if oriented.mode.startswith("I"):
        grey = np.asarray(oriented, dtype=np.int64)
        pixels = (grey >> 8).clip(0, 255).astype(np.uint8)
        pixels[grey == oriented.info.get("transparency")] = 255
        oriented = Image.fromarray(pixels)
    if oriented.mode in ("RGBA", "LA", "PA") or "transparency" in oriented.info:
        rgba = oriented.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        oriented = Image.alpha_composite(white, rgba)
    return np.asarray(oriented.convert("RGB"))


def _scale_down(rgb: Pixels, longest_side_px: int) -> Pixels:
    height, width = rgb.shape[:2]
    scale = longest_side_px / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
