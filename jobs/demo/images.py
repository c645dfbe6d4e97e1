"""Turns an image file of a package into bytes for the corpus, or says why it is of no use there."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MIN_SIDE_PX = 24
MAX_ASPECT = 8
SVG_SIDE_PX = 384
SVG_PROBE_PX = 192
SVG_MAX_PAGE_PX = 2400
# Of a usable image at least this share differs from its commonest grey by more than GREY_RANGE.
MIN_INK = 0.005
GREY_RANGE = 10
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


class UnusableImage(ValueError):
    """The image is left out; the message is a short reason that a summary can count."""


@dataclass(frozen=True)
class Picture:
    """Encoded image of the corpus: JPEG, PNG or WebP with alpha kept."""

    data: bytes
    suffix: str
    width_px: int
    height_px: int


def load_picture(path: Path) -> Picture:
    """Reads and checks an image file; JPEG, PNG and WebP keep their bytes, all else becomes WebP.

    Raises:
        UnusableImage: unreadable, too small, too narrow or blank.
    """
    image, data = _open(path)
    width_px, height_px = image.size
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise UnusableImage("too narrow")
    if min(image.size) < MIN_SIDE_PX:
        raise UnusableImage("too small")
    if _is_blank(image):
        raise UnusableImage("blank")
    suffix = SUFFIX_OF_FORMAT.get(image.format or "")
    if data is None or suffix is None:
        return encode_webp(image, quality=90)
    return Picture(data, suffix, width_px, height_px)


def encode_webp(image: Image.Image, quality: int) -> Picture:
    """Encodes an image as lossy WebP with its alpha."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=4)
    return Picture(stream.getvalue(), ".webp", image.width, image.height)


def _open(path: Path) -> tuple[Image.Image, bytes | None]:
    """Returns the decoded image and, unless it was drawn here, its bytes."""
    try:
        if path.suffix == ".svg":
            return _draw_svg(path.read_text(encoding="utf-8", errors="replace")), None
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow and resvg raise
        if isinstance(error, UnusableImage):
            raise
        raise UnusableImage("unreadable") from error
    return image, data


def _draw_svg(svg: str) -> Image.Image:
    """Draws an SVG so that its ink fills the picture; many use one corner of a page."""
    probe = _render(svg, SVG_PROBE_PX)
    if max(probe.size) > MAX_ASPECT * min(probe.size):
        raise UnusableImage("too narrow")  # found out on a small drawing: a large one may not fit into memory
    box = probe.getbbox()
    if box is None:
        raise UnusableImage("blank")
    zoom = min(SVG_SIDE_PX / max(box[2] - box[0], box[3] - box[1]), SVG_MAX_PAGE_PX / max(probe.size))
    image = _render(svg, round(probe.width * zoom))
    image = image.crop(image.getbbox())
    image.thumbnail((SVG_SIDE_PX, SVG_SIDE_PX), Image.Resampling.LANCZOS)
    return image


def _render(svg: str, width_px: int) -> Image.Image:
    import resvg_py  # optional dependency: only the full tier draws

    # Its default of 0 dots per inch makes every size in millimetres or points invalid.
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width_px, dpi=90))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _is_blank(image: Image.Image) -> bool:
    """Looks at the image on white, as training will see it."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    histogram = Image.alpha_composite(white, rgba).convert("L").histogram()
    commonest = histogram.index(max(histogram))
    plain = sum(histogram[max(0, commonest - GREY_RANGE) : commonest + GREY_RANGE + 1])
    return plain > (1 - MIN_INK) * sum(histogram)
