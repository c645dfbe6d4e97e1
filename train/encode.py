"""One stored sample to the tokens the model reads: the same rule for planning, training and evaluation."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model import EncodedSample, GenLIPConfig, ImageProcessor, Tokenizer, flops_per_sample, load_rgb
from pipeline.errors import UserError
from pipeline.shards import Sample
from train.recipe import ModelSpec
from train.stream import SampleTable


def build_processor(spec: ModelSpec, patch_size: int) -> ImageProcessor:
    """The image processor of a recipe's model section."""
    return ImageProcessor(
        mode=spec.image,
        image_px=spec.image_px,
        patch_size=patch_size,
        min_pixels=spec.min_pixels,
        max_pixels=spec.max_pixels,
    )


@dataclass(frozen=True)
class SampleCosts:
    """What each of N samples costs, from the index alone."""

    tokens_N: NDArray[np.int32]
    """Tokens in a row: patches + prompt + caption + ending."""
    patches_N: NDArray[np.int32]
    flops_N: NDArray[np.int64]
    """To train on it, by `model.flops_per_sample`."""


def sample_costs(
    samples: SampleTable,
    caption_tokens_N: NDArray[np.int32],
    config: GenLIPConfig,
    processor: ImageProcessor,
    tokenizer: Tokenizer,
    max_caption_tokens: int,
) -> SampleCosts:
    """Cost every sample without reading it."""
    sizes = np.stack([samples.width_N, samples.height_N])
    unique_sizes, which = np.unique(sizes, axis=1, return_inverse=True)
    grids = [processor.grid(int(width), int(height)) for width, height in unique_sizes.T]
    patches_N = np.array([math.prod(grid) for grid in grids], np.int32)[which.reshape(-1)]
    labels_N = np.minimum(caption_tokens_N, max_caption_tokens) + len(tokenizer.ending_ids)
    texts_N = labels_N + len(tokenizer.prompt_ids)
    pairs, which = np.unique(np.stack([patches_N, texts_N, labels_N]), axis=1, return_inverse=True)
    flops = [flops_per_sample(config, int(p), int(text), int(labels)) for p, text, labels in pairs.T]
    flops_N = np.array(flops, np.int64)[which.reshape(-1)]
    return SampleCosts((patches_N + texts_N).astype(np.int32), patches_N, flops_N)


def encode_sample(
    sample: Sample, processor: ImageProcessor, tokenizer: Tokenizer, max_caption_tokens: int
) -> EncodedSample:
    """Decode, resize and cut into patches; tokenise and end the caption."""
    patches, grid = processor.patches(load_rgb(sample.image))
    caption_ids = tokenizer.encode(sample.caption)[:max_caption_tokens]
    return EncodedSample(patches, grid, tokenizer.prompt_ids, [*caption_ids, *tokenizer.ending_ids])


def check_fits(tokens_N: NDArray[np.int32], row_tokens: int) -> None:
    """Refuse a row length that some sample exceeds."""
    longest = int(tokens_N.max())
    if longest > row_tokens:
        raise UserError(
            f"the longest sample has {longest} tokens, a row {row_tokens}",
            where="train.row_tokens",
            next_step=f"--set train.row_tokens={longest} or more, or a lower train.max_caption_tokens",
        )
