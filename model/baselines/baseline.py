"""What the baselines have in common: GenLIP's backbone, run on the patches of padded images.

Shape legend: M samples, P patches of the largest image, D hidden width, K channels of a head.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..batch import PackedRows
from ..configuration_genlip import GenLIPConfig
from ..layers import VisionEmbeddings
from ..modeling_genlip import BlockStack, ImagePatches, LossOutput, init_parameters
from ..rope import rope_cos_sin
from .parts import Recompute, key_mask, make_attend, run_blocks
from .unpack import ImageBatch, batch_images


class Baseline(nn.Module, ABC):
    """An objective that GenLIP is compared with, on the same vision encoder under the same parameter names.

    `build_model` makes one; parameters are those of `init_weights(0)` then.

    Attributes:
        objective: its name in recipes and model folders.
        loss_per: the loss sum of the global batch is divided by its number of labels or of samples.
        needs_whole_batch: whether the loss of a sample depends on the other samples of the batch.
        gradient_checkpointing: recompute every block in the backward pass instead of keeping its activations.
        recompute: what that means: "all" of a block, or what is "cheap", keeping matrix products and attention.
    """

    objective: str
    loss_per: ClassVar[Literal["label", "sample"]]
    needs_whole_batch: ClassVar[bool]

    def __init__(self, config: GenLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.recompute: Recompute = "all"
        self.vision_embeddings = VisionEmbeddings(config)
        self.visual = BlockStack(config)
        self.ln_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @abstractmethod
    def forward(self, rows: PackedRows) -> LossOutput:
        """Summed loss of packed rows; divide by what `loss_per` names to get the mean.

        Without any sample the sum is 0 and still has a gradient graph.

        Raises:
            ModelError: `rows` do not fit the model.
        """

    @property
    def options(self) -> dict[str, float]:
        """What `build_model` was told beyond the backbone and the objective."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.ln_post.weight.device

    def encode_images(self, images: Sequence[ImagePatches]) -> list[Tensor]:
        """Vision features [P, D] of every image, computed in one pass: `ln_post` output, full attention."""
        if not images:
            return []
        batch = batch_images(images, self.config, self.device)
        return [z_PD[:count] for z_PD, count in zip(self.encode(batch), batch.num_patches_M.tolist(), strict=True)]

    def encode(self, images: ImageBatch) -> Tensor:
        """Vision features of a batch, [M, P, D]; what stands at padding has no meaning."""
        return self.run_backbone(self.embed(images), images.positions_M3P, images.is_patch_MP)

    def embed(self, images: ImageBatch) -> Tensor:
        """Input of the first block, [M, P, D]."""
        return images.pad(self.vision_embeddings(images.patches_NCPP))

    def run_backbone(self, x_MPD: Tensor, positions_M3P: Tensor, is_patch_MP: Tensor | None) -> Tensor:
        """Patches through all blocks and the last norm, [M, P, D]; every patch sees all of its image."""
        cos_MPK, sin_MPK = rope_cos_sin(positions_M3P, self.config, x_MPD.dtype)
        attend = make_attend(key_mask(is_patch_MP))
        drop_group_M1 = torch.arange(len(x_MPD), device=x_MPD.device).unsqueeze(1)
        x_MPD = run_blocks(
            self.visual.layers, x_MPD, cos_MPK, sin_MPK, attend, drop_group_M1, recompute=self.recompute_now
        )
        z_MPD: Tensor = self.ln_post(x_MPD)
        return z_MPD

    @property
    def recompute_now(self) -> Recompute | None:
        """What blocks recompute in this pass."""
        return self.recompute if self.gradient_checkpointing and self.training else None

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """GenLIP's initialisation, drawn on the CPU; the backbone first, so it is the same for every baseline."""
        generator = torch.Generator().manual_seed(seed)
        for part in self.children():
            init_parameters(part, self.config, generator)
