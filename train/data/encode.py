"""A stored caption and image to the tokens the model reads: the same rule for planning and training."""

import numpy as np
from numpy.typing import NDArray

from model import ImageProcessor, Tokenizer
from train.data.pixels import image_pixels, write_patches
from train.recipe import ModelSpec


def build_processor(spec: ModelSpec, patch_size: int) -> ImageProcessor:
    """The image processor of a recipe's model section."""
    return ImageProcessor(
        mode=spec.image,
        image_px=spec.image_px,
        patch_size=patch_size,
        min_pixels=spec.min_pixels,
        max_pixels=spec.max_pixels,
    )


class PlanMismatch(ValueError):
    """A sample is not as long as it was planned: the store or the tokenizer has changed."""


def encode_caption(caption: str, tokenizer: Tokenizer, max_caption_tokens: int) -> list[int]:
    """Tokenise and end a caption: the ids that are trained on."""
    return [*tokenizer.encode(caption)[:max_caption_tokens], *tokenizer.ending_ids]


def encode_image(image: bytes, processor: ImageProcessor, patches_out: NDArray[np.uint8]) -> tuple[int, int]:
    """Decode, resize and cut into patches.

    Args:
        image: A file's content.
        processor: Decides the size.
        patches_out: [P, p, p, 3], for as many patches as planned.

    Returns:
        (rows, columns) of patches.

    Raises:
        ModelError: The image cannot be decoded.
        PlanMismatch: It has another number of patches.
    """
    pixels, grid = image_pixels(image, processor)
    if grid[0] * grid[1] != len(patches_out):
        raise PlanMismatch(f"a sample has {grid[0] * grid[1]} patches, {len(patches_out)} were planned")
    write_patches(pixels, grid, patches_out)
    return grid
