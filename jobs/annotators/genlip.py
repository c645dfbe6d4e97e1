"""Our own model as a filter and as a captioner.

`genlip_score` asks how much an image tells the model about its caption; `genlip_caption` writes captions. Together they
are CapFilt (Li et al. 2022, https://arxiv.org/abs/2201.12086) with one generative model in both places.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from jobs.annotators.checkpoints import (
    load_checkpoint,
    pair_log_probs,
    prior_log_probs,
    read_prior_images,
    weights_fingerprint,
)
from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.annotate.overlay import mask_text as without_text

if TYPE_CHECKING:
    from model import EncodedSample, LoadedModel


class _OurModel(Annotator):
    """What both have in common: a checkpoint, and images that stand for any image."""

    checkpoint: str
    """Run folder (its newest checkpoint; name a checkpoint while the run is training), checkpoint folder, or Hugging
    Face folder."""
    prior_images: str = ""
    """Folder of typical images, of which the first 8 count; by default, the first training images of the run in which
    the checkpoint lies."""

    def state(self) -> str:
        prior = hashlib.sha256(b"".join(read_prior_images(self.checkpoint, self.prior_images))).hexdigest()
        return f"{weights_fingerprint(self.checkpoint)} {prior}"

    def gain_and_likelihood(
        self, loaded: "LoadedModel", pairs: Sequence["EncodedSample"]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(log P(T | I) - log P(T)) / |T| and log P(T | I) / |T| of each pair, in nats per token, [N] each."""
        captions = [pair.caption_ids for pair in pairs]
        num_tokens_N = np.array([len(ids) for ids in captions])
        log_probs_N = pair_log_probs(loaded.genlip, pairs)
        images = read_prior_images(self.checkpoint, self.prior_images)
        gain_N = log_probs_N - prior_log_probs(loaded, images, captions)
        return (gain_N / num_tokens_N).astype(np.float32), (log_probs_N / num_tokens_N).astype(np.float32)


@annotator("genlip_score")
class GenLIPScore(_OurModel):
    """Information gain per caption token, (log P(T | I) - log P(T)) / |T| in nats, and log P(T | I) / |T| beside it.

    |T| counts the caption's tokens and its two ending tokens, as the caption loss of `genlip eval` does. P(T) is, as
    there, P(T | I) averaged over some training images. With the image masked out instead, a network that has never
    been without one gives a P(T) that separates right pairs from wrong ones far worse.
    """

    max_caption_tokens: Annotated[int, Field(ge=4)] = 1_024
    """Longer captions are cut, as in training."""
    mask_text: bool = False
    """Paint over text in the image first, so that a caption which merely spells out the image gains nothing by it."""
    column: str = "genlip_gain"

    def columns(self) -> dict[str, pa.DataType]:
        return {self.column: pa.float32(), f"{self.column}_likelihood": pa.float32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        loaded = load_checkpoint(self.checkpoint)
        images = [_patches(loaded, body, self.mask_text) for body in batch.image_bytes]
        pairs = [
            _pair(loaded, image, caption, self.max_caption_tokens)
            for image, caption in zip(images, batch.captions, strict=True)
        ]
        gain_N, likelihood_N = self.gain_and_likelihood(loaded, pairs)
        return {self.column: gain_N, f"{self.column}_likelihood": likelihood_N}


@annotator("genlip_caption")
class GenLIPCaption(_OurModel):
    """A caption by our own model, and its information gain per token as in `genlip_score`."""

    beams: Annotated[int, Field(ge=1)] = 3
    """Hypotheses of beam search; 1 decodes greedily."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    column: str = "genlip_caption"

    def columns(self) -> dict[str, pa.DataType]:
        return {self.column: pa.string(), f"{self.column}_gain": pa.float32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        from model import Decoding, generate

        loaded = load_checkpoint(self.checkpoint)
        images = [_patches(loaded, body) for body in batch.image_bytes]
        decoding = Decoding(num_beams=self.beams)
        captions = generate(loaded.genlip, images, loaded.tokenizer, self.max_new_tokens, decoding=decoding)
        pairs = [_pair(loaded, image, caption) for image, caption in zip(images, captions, strict=True)]
        gain_N, _ = self.gain_and_likelihood(loaded, pairs)
        return {self.column: captions, f"{self.column}_gain": gain_N}


def _patches(loaded: "LoadedModel", image: bytes, mask_text: bool = False) -> tuple[Any, tuple[int, int]]:
    from model import load_rgb

    rgb = load_rgb(image)
    if not mask_text:
        return loaded.processor.patches(rgb)
    return loaded.processor.patches(without_text(np.asarray(rgb)))


def _pair(
    loaded: "LoadedModel", image: tuple[Any, tuple[int, int]], caption: str, max_caption_tokens: int | None = None
) -> "EncodedSample":
    from model import EncodedSample

    tokenizer = loaded.tokenizer
    caption_ids = tokenizer.encode(caption)[:max_caption_tokens]
    return EncodedSample(*image, tokenizer.prompt_ids, [*caption_ids, *tokenizer.ending_ids])
