"""One stored sample to the tokens the model reads: the same rule for planning and training."""

import numpy as np
from numpy.typing import NDArray

from model import EncodedSample, ImageProcessor, Tokenizer
from pipeline.shards import Sample
from train.pixels import image_pixels, write_patches
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


def encode_sample(
    sample: Sample,
    processor: ImageProcessor,
    tokenizer: Tokenizer,
    max_caption_tokens: int,
    num_tokens: int,
    patches_out: NDArray[np.uint8],
) -> EncodedSample:
    """Decode, resize and cut into patches; tokenise and end the caption.

    Args:
        num_tokens: As planned.
        patches_out: [P, 3, p, p], for as many patches as planned; the result refers to it.

    Raises:
        ModelError: The image cannot be decoded.
        PlanMismatch: It has other numbers of patches or tokens.
    """
    pixels, grid = image_pixels(sample.image, processor)
    if grid[0] * grid[1] != len(patches_out):
        raise PlanMismatch(f"a sample has {grid[0] * grid[1]} patches, {len(patches_out)} were planned")
    write_patches(pixels, grid, patches_out)
    caption_ids = tokenizer.encode(sample.caption)[:max_caption_tokens]
    encoded = EncodedSample(patches_out, grid, tokenizer.prompt_ids, [*caption_ids, *tokenizer.ending_ids])
    if encoded.num_tokens != num_tokens:
        raise PlanMismatch(f"a sample has {encoded.num_tokens} tokens, {num_tokens} were planned")
    return encoded
