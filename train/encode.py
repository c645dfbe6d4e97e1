"""One stored sample to the tokens the model reads: the same rule for planning, training and evaluation."""

from model import EncodedSample, ImageProcessor, Tokenizer, load_rgb
from pipeline.shards import Sample
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


def encode_sample(
    sample: Sample, processor: ImageProcessor, tokenizer: Tokenizer, max_caption_tokens: int
) -> EncodedSample:
    """Decode, resize and cut into patches; tokenise and end the caption."""
    patches, grid = processor.patches(load_rgb(sample.image))
    caption_ids = tokenizer.encode(sample.caption)[:max_caption_tokens]
    return EncodedSample(patches, grid, tokenizer.prompt_ids, [*caption_ids, *tokenizer.ending_ids])
