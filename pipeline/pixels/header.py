"""What bytes claim to be, by their content, and whether the recipe lets them be decoded."""

import io
import itertools

from PIL.Image import Image

from pipeline.pixels.containers import Header, count_gif_frames, read_jpeg, read_png, read_webp
from pipeline.pixels.errors import ImageError
from pipeline.pixels.exif import read_orientation
from pipeline.pixels.plugins import PLUGINS
from pipeline.pixels.spec import ImageSpec

_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)

_ALWAYS_CHEAP_PIXELS = 16_000_000
"""Up to this many, an image is decoded in less than half a second and 64 MB, however small its file."""


def read_header(body: bytes, max_frames: int) -> Header:
    """Size, frames, orientation and profile, without decoding a pixel.

    Raises:
        ImageError: `not_image`, `undecodable`, `image_truncated`.
    """
    image_format = _format_of(body)
    if image_format == "jpeg":
        return read_jpeg(body)
    if image_format == "png":
        return read_png(body)
    if image_format == "webp":
        return read_webp(body)
    return _read_with_pillow(body, image_format, max_frames)


def check_limits(header: Header, spec: ImageSpec, num_bytes: int) -> None:
    """Refuse what costs more than the recipe allows, and what its size rules say.

    Raises:
        ImageError: `undecodable` (no pixels), `bomb`, `image_too_small`, `image_too_narrow`.
    """
    num_pixels = header.width * header.height
    shorter_side, longer_side = sorted(header.upright_size)
    is_expansive = num_pixels > _ALWAYS_CHEAP_PIXELS and 3 * num_pixels > spec.max_expansion * num_bytes
    reason = ""
    if num_pixels == 0:
        reason = "undecodable"
    elif num_pixels > spec.max_pixels or header.num_frames > spec.max_frames or is_expansive:
        reason = "bomb"
    elif shorter_side < spec.min_side_px:
        reason = "image_too_small"
    elif longer_side > spec.max_aspect * shorter_side:
        reason = "image_too_narrow"
    if reason:
        raise ImageError(reason, *header.upright_size)


def _format_of(body: bytes) -> str:
    """The type by its signature; neither a URL's ending nor a Content-Type header is asked."""
    if body.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "webp"
    if body.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if body.startswith(_TIFF_SIGNATURES):
        return "tiff"
    if body.startswith(b"BM") and int.from_bytes(body[14:18], "little") in _BMP_HEADER_BYTES:
        return "bmp"
    if body[4:8] == b"ftyp":
        brands = {body[8:12], *(body[at : at + 4] for at in range(16, min(int.from_bytes(body[:4]), 256), 4))}
        if brands.intersection(_AVIF_BRANDS):
            return "avif"
        if brands.intersection(_HEIC_BRANDS):
            return "heic"
    raise ImageError("not_image")


def _read_with_pillow(body: bytes, image_format: str, max_frames: int) -> Header:
    plugin = PLUGINS.get(image_format)
    if plugin is None:  # HEIC without its optional package
        raise ImageError("undecodable")
    with plugin(io.BytesIO(body)) as image:
        num_frames = count_gif_frames(body, max_frames) if image_format == "gif" else _count_frames(image, max_frames)
        # Pillow turns TIFF, and libheif HEIC, while decoding: their sizes are upright ones already.
        orientation = read_orientation(image.info.get("exif", b"")) if image_format == "avif" else 1
        profile = image.info.get("icc_profile") or b""
        return Header(image_format, image.width, image.height, num_frames, orientation, profile)


def _count_frames(image: Image, most: int) -> int:
    """Frames that can be reached; no more than `most` + 1 are looked for, as each costs a directory to read."""
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    try:
        for frame in itertools.islice(itertools.count(1), most):
            image.seek(frame)
    except EOFError:
        return frame
    return most + 1
