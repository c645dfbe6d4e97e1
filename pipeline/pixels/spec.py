"""The recipe's `image` section: what is stored of each picture, and what a picture may cost."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.section import Section


class ImageSpec(Section):
    """How an image is decoded, scaled and stored. Names and meanings of `resize` are img2dataset's."""

    resize: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio_largest"
    """`keep_ratio`: the shortest side becomes `size_px`; `keep_ratio_largest`: the longest; `center_crop`: as
    `keep_ratio`, then the square in the middle; `border`: as `keep_ratio_largest`, then white up to a square."""
    size_px: Annotated[int, Field(ge=1, le=65_000)] = 384
    """The side that `resize` speaks of."""
    only_if_bigger: bool = True
    """Leave an image alone whose side is `size_px` or less; false scales up as well."""
    min_side_px: Annotated[int, Field(ge=0)] = 0
    """Originals with a shorter side are refused: `image_too_small`."""
    max_aspect: Annotated[float, Field(ge=1)] = 1000.0
    """Originals with a longer side of more than this many shorter sides are refused: `image_too_narrow`."""
    format: Literal["jpg", "webp", "png"] = "jpg"
    """What is stored."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Of JPEG and WebP; PNG has none."""
    reencode: Literal["always", "if_changed"] = "always"
    """`if_changed` keeps the original bytes where they are already of this format, upright, sRGB and of this size."""
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Images with more, as they come or as they would be stored, are refused before they are decoded: `bomb`."""
    max_frames: Annotated[int, Field(ge=1)] = 10_000
    """Animations with more are refused: `bomb`. Of the others, the first frame is stored."""
    max_expansion: Annotated[int, Field(ge=1)] = 2_000
    """Images of more than 16 megapixels whose RGB pixels take more than this many times the file are refused: `bomb`.
    A JPEG cannot exceed 1,024 and a flat RGB PNG 1,032; smaller images are cheap to decode whatever their ratio."""
    exact: bool = False
    """Decode JPEG at full size. Without, one far larger than needed is decoded at a half, a quarter or an eighth, with
    at least twice the pixels on each side that are stored: README, Fidelity."""
    decode_memory_mb: Annotated[int, Field(ge=1)] = 1_500
    """Memory that the decoder process may map for images, beside its libraries. An image that needs more is one
    `decoder_crashed`."""
    decode_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """An image that takes longer is one `decoder_timeout`."""
