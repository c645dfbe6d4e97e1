"""CLIP and SigLIP: images and captions embedded by two towers, the pairs of a batch told from its other combinations.

Only the loss differs between the two. Identical captions of one batch count as negatives of each other, as published.

Shape legend: M samples of this process, G samples of all processes, P patches, T tokens of a text, I images, W width of
the text tower, E embedding width.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import PackedRows
from ..configuration_genlip import GenLIPConfig
from ..errors import ModelError
from ..modeling_genlip import BlockStack, ImagePatches, LossOutput
from ..rope import rope_cos_sin
from .baseline import Baseline
from .gather import gather_samples
from .parts import MapHead, Recompute, key_mask, make_attend, run_blocks, text_config
from .unpack import ImageBatch, batch_images, unpack_images, unpack_texts

# Of CLIP: the temperature may not go below 0.01.
MAX_SCALE = 100.0


class TextTower(nn.Module):
    """A causal pre-norm Transformer over a caption; its vector is the output at the last token, the ending."""

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = BlockStack(config).layers
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids_MT: Tensor, num_ids_M: Tensor, recompute: Recompute | None) -> Tensor:
        """[M, T] to [M, W]; nothing depends on what stands behind a caption's last token."""
        x_MTW = self.embeddings(ids_MT)
        positions_13T = torch.arange(ids_MT.shape[1], device=ids_MT.device).expand(1, 3, -1)
        cos_1TK, sin_1TK = rope_cos_sin(positions_13T, self.config, x_MTW.dtype)
        attend = make_attend(is_causal=True)
        x_MTW = run_blocks(self.layers, x_MTW, cos_1TK, sin_1TK, attend, None, recompute=recompute)
        sample_M = torch.arange(len(ids_MT), device=ids_MT.device)
        last_MW: Tensor = self.norm(x_MTW[sample_M, num_ids_M - 1])
        return last_MW


class Contrastive(Baseline):
    """The two towers. Both objectives pool patches by the same head, so they differ in the loss alone."""

    loss_per = "sample"
    needs_whole_batch = True

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__(config)
        text = text_config(config)
        self.head = MapHead(config)
        self.image_projection = nn.Linear(config.hidden_size, text.hidden_size, bias=False)
        self.text = TextTower(text)
        self.text_projection = nn.Linear(text.hidden_size, text.hidden_size, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(1))

    def forward(self, rows: PackedRows) -> LossOutput:
        """See `Baseline`: the loss of this process's samples among those of all processes.

        Every process must call it equally often, for features are exchanged; with gradients, so that the sum of the
        processes' gradients is that of the summed loss.
        """
        images, texts = unpack_images(rows, self.config), unpack_texts(rows)
        image_ME = self._embed_images(images)
        text_ME = self._embed_texts(texts.ids_MT, texts.num_ids_M)
        num_labels = torch.tensor(rows.num_labels, device=image_ME.device)
        return LossOutput(self.loss_sum(image_ME, text_ME), num_labels, None)

    @abstractmethod
    def loss_sum(self, image_ME: Tensor, text_ME: Tensor) -> Tensor:
        """The loss of this process's pairs, from normalised embeddings; a float32 scalar."""

    def similarity(self, image_IE: Tensor, text_TE: Tensor) -> Tensor:
        """Logits of every image with every text, float32 [I, T]: cosine times learned scale."""
        return self.scale * image_IE @ text_TE.T

    @property
    def scale(self) -> Tensor:
        """Of the cosines: the inverse temperature, [1]."""
        return self.logit_scale.float().exp()

    def embed_images(self, images: Sequence[ImagePatches]) -> Tensor:
        """Normalised embeddings of images as `ImageProcessor.patches` returns them, float32 [I, E]."""
        if not images:
            return torch.zeros(0, self.text_projection.out_features, device=self.device)
        return self._embed_images(batch_images(images, self.config, self.device))

    def embed_texts(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Normalised embeddings of captions, their endings included, float32 [T, E].

        Raises:
            ModelError: a text without tokens, or with ids that the model does not have.
        """
        for number, text in enumerate(texts):
            if not text or not all(0 <= token_id < self.config.vocab_size for token_id in text):
                raise ModelError(
                    f"text {number} has no tokens, or ids outside the vocabulary of {self.config.vocab_size}; encode"
                    " it with the model's own tokenizer and add the ending ids"
                )
        if not texts:
            return torch.zeros(0, self.text_projection.out_features, device=self.device)
        num_ids_M = torch.tensor([len(text) for text in texts])
        ids_MT = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        return self._embed_texts(ids_MT.to(self.device), num_ids_M.to(self.device))

    def init_weights(self, seed: int) -> None:
        """See `Baseline`; the temperature as published."""
        super().init_weights(seed)
        nn.init.constant_(self.logit_scale, self.initial_logit_scale)

    initial_logit_scale: float

    def _embed_images(self, images: ImageBatch) -> Tensor:
        pooled_MD = self.head(self.encode(images), key_mask(images.is_patch_MP))
        return F.normalize(self.image_projection(pooled_MD).float(), dim=-1)

    def _embed_texts(self, ids_MT: Tensor, num_ids_M: Tensor) -> Tensor:
        text_MW = self.text(ids_MT, num_ids_M, self.recompute_now)
        return F.normalize(self.text_projection(text_MW).float(), dim=-1)


class Clip(Contrastive):
    """Softmax over all texts for each image and over all images for each text (Radford et al. 2021,
    https://arxiv.org/abs/2103.00020, figure 3)."""

    objective = "clip"
    initial_logit_scale = math.log(1 / 0.07)

    @property
    def scale(self) -> Tensor:
        """Learned, at most 100."""
        return super().scale.clamp(max=MAX_SCALE)

    def loss_sum(self, image_ME: Tensor, text_ME: Tensor) -> Tensor:
        """Sum over own pairs of (-log P(text | image) - log P(image | text)) / 2, among the pairs of all processes."""
        image_GE, text_GE = gather_samples(torch.cat([image_ME, text_ME], dim=-1))[0].chunk(2, dim=-1)
        pair_M = self.scale * (image_ME * text_ME).sum(dim=-1)
        over_texts_M = self.similarity(image_ME, text_GE).logsumexp(dim=-1)
        over_images_M = self.similarity(image_GE, text_ME).logsumexp(dim=0)
        return ((over_texts_M + over_images_M) / 2 - pair_M).sum()


class SigLip(Contrastive):
    """Each image with each text is a pair or none, judged alone (Zhai et al. 2023, https://arxiv.org/abs/2303.15343,
    algorithm 1)."""

    objective = "siglip"
    initial_logit_scale = math.log(10)

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__(config)
        self.logit_bias = nn.Parameter(torch.zeros(1))

    def loss_sum(self, image_ME: Tensor, text_ME: Tensor) -> Tensor:
        """Sum over own images and the texts of all processes of -log P(pair or none); the paper divides by pairs."""
        text_GE, first = gather_samples(text_ME)
        logits_MG = self.similarity(image_ME, text_GE)
        is_pair_MG = torch.zeros_like(logits_MG)
        is_pair_MG.diagonal(offset=first).fill_(1)
        return F.binary_cross_entropy_with_logits(logits_MG, is_pair_MG, reduction="sum")

    def similarity(self, image_IE: Tensor, text_TE: Tensor) -> Tensor:
        """Logits of being a pair, float32 [I, T]: cosine times learned scale, plus learned bias."""
        return super().similarity(image_IE, text_TE) + self.logit_bias.float()

    def init_weights(self, seed: int) -> None:
        """See `Contrastive`; the bias as published."""
        super().init_weights(seed)
        nn.init.constant_(self.logit_bias, -10.0)
