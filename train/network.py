"""What an objective is to the trainer: a network, what it costs, and what its loss is counted in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from model import GenLIP, GenLIPConfig
from model.baselines import Baseline, build_model, count_parameters, flops_per_sample
from train.recipe import Objective, ObjectiveSpec

LOSS_UNITS: Mapping[Objective, str] = {
    "genlip": "nats per token",
    "clip": "nats per sample",
    "siglip": "nats per sample",
    "mae": "squared error per sample",
    "cappa": "nats per token",
}


@dataclass(frozen=True)
class Network:
    """The network that a recipe trains, before it is built."""

    config: GenLIPConfig
    """Of the backbone, which all objectives share."""
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)

    @property
    def name(self) -> Objective:
        return self.objective.kind

    @cached_property
    def num_parameters(self) -> int:
        """Of the whole network: text tower or decoder included."""
        return count_parameters(self.name, self.config)

    def build(self) -> GenLIP | Baseline:
        """With fresh weights; `init_weights` draws them by a seed."""
        return build_model(self.config, self.name, self.objective.mask_ratio, self.objective.parallel)

    def skeleton(self) -> GenLIP | Baseline:
        """Shapes and names without numbers, to count or to load into."""
        with torch.device("meta"):
            return self.build()

    def flops_per_sample(self, num_image_tokens: int, num_text_tokens: int, num_labelled_tokens: int) -> int:
        """Floating point operations to train on one sample; see `model.flops_per_sample`."""
        sizes = (num_image_tokens, num_text_tokens, num_labelled_tokens)
        return flops_per_sample(self.name, self.config, *sizes, mask_ratio=self.objective.mask_ratio)
