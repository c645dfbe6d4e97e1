"""How well texts fit images, by whatever the model was trained for: likelihoods, or cosines of embeddings.

Shape legend: I images, T texts, E embedding channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor, nn

from model import GenLIP, LoadedModel, load_rgb, score_captions
from model.baselines import CapPa
from model.cache import inference
from model.layers import PatchEmbedding
from model.modeling_genlip import ImagePatches
from train.evaluation.ranking import Scores, log_mean_exp
from train.evaluation.samples import Labelled

NUM_PRIOR_IMAGES = 32
"""Images whose mean likelihood stands for the probability of a text without its image."""
IMAGES_PER_PASS, TEXTS_PER_PASS = 64, 256
"""Of the two towers of a contrastive model."""


class _Encoding:
    """Images and texts as the model takes them."""

    def __init__(self, loaded: LoadedModel, max_caption_tokens: int) -> None:
        self.loaded = loaded
        self.max_caption_tokens = max_caption_tokens
        self._encode = lru_cache(maxsize=2**17)(loaded.tokenizer.encode)  # class captions are asked for again and again

    def images(self, labelled: Sequence[Labelled]) -> list[ImagePatches]:
        """Decoded and cut into patches.

        Raises:
            ModelError: One cannot be decoded.
        """
        return [self.loaded.processor.patches(load_rgb(one.image)) for one in labelled]

    def ids(self, text: str) -> list[int]:
        """A text's tokens, cut to `max_caption_tokens`, with the ending."""
        return [*self.caption_ids(text), *self.loaded.tokenizer.ending_ids]

    def caption_ids(self, text: str) -> list[int]:
        """The same without the ending."""
        return self._encode(text)[: self.max_caption_tokens]

    def seen(self, text: str) -> str:
        """What of a text the model sees: all of it, unless it is cut."""
        return self.loaded.tokenizer.decode(self.caption_ids(text)) if self.num_cut([text]) else text

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than `max_caption_tokens`."""
        return sum(len(self._encode(text)) > self.max_caption_tokens for text in texts)


class LikelihoodScorer(_Encoding):
    """log P(text | image) of a model that writes: GenLIP and CapPa."""

    def __init__(self, loaded: LoadedModel, max_caption_tokens: int, prior_images: Sequence[Labelled]) -> None:
        super().__init__(loaded, max_caption_tokens)
        self.prior_images = self.images(prior_images[:NUM_PRIOR_IMAGES])

    def score(self, images: Sequence[ImagePatches], texts: Sequence[str]) -> Scores:
        """log P(text | image) in nats, ending included, [I, T]; every image is run once."""
        ids, model = [self.ids(text) for text in texts], self.loaded.model
        if isinstance(model, GenLIP):
            scores = score_captions(model, images, self.loaded.tokenizer.prompt_ids, ids)
        else:
            assert isinstance(model, CapPa)
            scores = model.score_captions(images, ids)
        return scores.numpy().astype(np.float64)

    def prior(self, texts: Sequence[str]) -> Scores:
        """log P(text): the likelihood averaged over the prior images, [T]."""
        return log_mean_exp(self.score(self.prior_images, texts), axis=0)


class CosineScorer(_Encoding):
    """Cosine of the embeddings of a contrastive model: CLIP and SigLIP."""

    def score(self, images: Sequence[ImagePatches], texts: Sequence[str]) -> Scores:
        """Cosines, [I, T]; temperature and bias change no ranking and are left out."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    def embed_images(self, images: Sequence[ImagePatches]) -> Scores:
        """Of length 1, [I, E]."""
        model: Any = self.loaded.model
        with inference(model):
            begins = range(0, len(images), IMAGES_PER_PASS)
            return np.concatenate([_numpy(model.embed_images(images[at : at + IMAGES_PER_PASS])) for at in begins])

    def embed_texts(self, texts: Sequence[str]) -> Scores:
        """Of length 1, [T, E]."""
        ids = [self.ids(text) for text in texts]
        model: Any = self.loaded.model
        with inference(model):
            begins = range(0, len(ids), TEXTS_PER_PASS)
            return np.concatenate([_numpy(model.embed_texts(ids[at : at + TEXTS_PER_PASS])) for at in begins])


Scorer = LikelihoodScorer | CosineScorer


def make_scorer(
    loaded: LoadedModel, max_caption_tokens: int, prior_images: Sequence[Labelled]
) -> LikelihoodScorer | CosineScorer | None:
    """What compares texts with images for this model; None if it knows no text, as a masked autoencoder.

    Args:
        loaded: Of any objective.
        max_caption_tokens: Longer texts are cut.
        prior_images: Stand for any image in log P(text); the first `NUM_PRIOR_IMAGES` are used.
    """
    if loaded.model.objective in ("genlip", "cappa"):
        return LikelihoodScorer(loaded, max_caption_tokens, prior_images)
    if loaded.model.objective in ("clip", "siglip"):
        return CosineScorer(loaded, max_caption_tokens)
    return None


class PatchCount:
    """Patches that have gone through a model's patch embedding."""

    def __init__(self) -> None:
        self.num_patches = 0

    def images(self, images: Sequence[ImagePatches]) -> float:
        """How often each of these images was run, on average."""
        return self.num_patches / sum(len(patches) for patches, _ in images)


@contextmanager
def count_patches(model: nn.Module) -> Iterator[PatchCount]:
    """Counts, at the one module that every image must pass, what is run inside the block."""
    count = PatchCount()

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, PatchEmbedding)
        count.num_patches += args[0].numel() // module.weight[0].numel()

    hooks = [part.register_forward_pre_hook(add) for part in model.modules() if isinstance(part, PatchEmbedding)]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def _numpy(x: Tensor) -> Scores:
    return x.cpu().numpy().astype(np.float64)
