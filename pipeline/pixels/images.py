"""Bytes to a stored image: recognise, decode, scale, turn upright, put on white, convert to sRGB, encode, hash."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.pixels.blur import Box, blur_boxes
from pipeline.pixels.colour import to_srgb
from pipeline.pixels.containers import Header
from pipeline.pixels.decode import Pixels, decode
from pipeline.pixels.errors import ImageError
from pipeline.pixels.header import check_limits, read_header
from pipeline.pixels.phash import hash_distance, perceptual_hash
from pipeline.pixels.resize import choose_reduction, fit, on_white, resample, scaled_size, turn_upright
from pipeline.pixels.spec import ImageSpec

__all__ = ["Box", "ImageError", "StoredImage", "hash_distance", "perceptual_hash", "transcode"]

_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
_MAX_SIDE_PX = {"jpg": 65_500, "png": 1_000_000, "webp": 16_383}
"""What the encoders take."""


@dataclass(frozen=True)
class StoredImage:
    """An encoded image and what is known of the file that it was made from."""

    body: bytes
    extension: str
    width: int
    height: int
    original_width: int
    """Of the upright image."""
    original_height: int
    original_format: str
    """`jpeg`, `png`, `webp`, `gif`, `avif`, `heic`, `bmp` or `tiff`."""
    num_frames: int
    phash: str
    """Perceptual hash of the stored pixels, 16 hexadecimal digits."""
    sha256: str
    """Of the original bytes."""


def transcode(body: bytes, spec: ImageSpec, boxes: Sequence[Box] = ()) -> StoredImage:
    """Decode an image of any common type and encode it as the recipe says. The same bytes give the same image.

    Args:
        body: the file.
        spec: the recipe's section.
        boxes: parts to make unrecognisable, as shares of the upright image.

    Raises:
        ImageError: any reason but those of the decoder process.
        MemoryError: the process may not have as much as the image needs.
    """
    header = None
    try:
        header = read_header(body, spec.max_frames)
        check_limits(header, spec, len(body))
        return _store(body, header, spec, boxes)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # damaged files make decoders raise anything, and one must not stop its unit
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        reason = "image_truncated" if "truncated" in str(error) else "undecodable"
        raise ImageError(reason, *(header.upright_size if header else ())) from error


def _store(body: bytes, header: Header, spec: ImageSpec, boxes: Sequence[Box]) -> StoredImage:
    size = scaled_size(header.width, header.height, spec)
    if size[0] * size[1] > spec.max_pixels or max(size) > _MAX_SIDE_PX[spec.format]:
        raise ImageError("bomb", *header.upright_size)
    is_reducible = header.format == "jpeg" and not spec.exact
    reduction = choose_reduction(header.width, header.height, size) if is_reducible else 1
    decoded = decode(body, header, reduction)
    scaled = on_white(resample(decoded, size, (header.width / reduction, header.height / reduction)))
    in_srgb = to_srgb(scaled, header.icc_profile)
    upright = blur_boxes(turn_upright(in_srgb, header.orientation), boxes)
    stored = fit(upright, header.upright_size, spec)
    is_as_it_came = (
        _EXTENSIONS.get(header.format) == spec.format
        and header.is_plain
        and header.num_bits == 8
        and header.orientation == 1
        and decoded.shape[2] != 4
        and size == (header.width, header.height) == stored.shape[1::-1]
        and in_srgb is scaled
        and not boxes
    )
    is_kept = spec.reencode == "if_changed" and is_as_it_came
    return StoredImage(
        body=body if is_kept else _encode(stored, spec),
        extension=spec.format,
        width=stored.shape[1],
        height=stored.shape[0],
        original_width=header.upright_size[0],
        original_height=header.upright_size[1],
        original_format=header.format,
        num_frames=header.num_frames,
        phash=f"{perceptual_hash(np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)):016x}",
        sha256=hashlib.sha256(body).hexdigest(),
    )


def _encode(bgr: Pixels, spec: ImageSpec) -> bytes:
    quality = {"jpg": [cv2.IMWRITE_JPEG_QUALITY, spec.quality], "webp": [cv2.IMWRITE_WEBP_QUALITY, spec.quality]}
    _is_encoded, encoded = cv2.imencode(f".{spec.format}", bgr, quality.get(spec.format, []))
    return bytes(encoded)
