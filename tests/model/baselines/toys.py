"""Tiny models and samples."""

from collections.abc import Sequence

import numpy as np
import torch

from model import EncodedSample, GenLIPConfig, PackedRows, pack_rows
from model.baselines import Baseline, build_model

BASELINES = ("clip", "siglip", "mae", "cappa")
VOCABULARY = 50
PROMPT = [1, 2]
ENDING = [3, 4]


def tiny_config(**changes: object) -> GenLIPConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    others = {"text_embed_dim": 32, "vocab_size": VOCABULARY, "patch_size": 4, "drop_path_rate": 0.0}
    return GenLIPConfig(**{**sizes, **others, **changes})  # type: ignore[arg-type]


def tiny_baseline(objective: str, **changes: object) -> Baseline:
    """Weights larger than usual, so that everything has an effect that is seen in float32."""
    model = build_model(tiny_config(**{"initializer_range": 0.2, **changes}), objective)
    assert isinstance(model, Baseline)
    return model


def make_sample(seed: int, grid: tuple[int, int] = (2, 3), num_ids: int = 3) -> EncodedSample:
    """A caption of so many ids and the ending."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (grid[0] * grid[1], 3, 4, 4), dtype=np.uint8)
    return EncodedSample(patches, grid, PROMPT, [*rng.integers(5, VOCABULARY, num_ids).tolist(), *ENDING])


def pack(*rows: Sequence[EncodedSample]) -> PackedRows:
    return pack_rows(rows, max([1, *(sum(sample.num_tokens for sample in row) for row in rows)]) + 3)


def image_of(sample: EncodedSample) -> tuple[np.ndarray, tuple[int, int]]:
    return sample.patches, sample.grid


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
