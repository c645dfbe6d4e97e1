"""Models by the name of their objective."""

from collections.abc import Mapping
from typing import Any

import torch

from ..configuration_genlip import GenLIPConfig
from ..errors import ModelError
from ..modeling_genlip import GenLIP
from .baseline import Baseline
from .cappa import CapPa
from .contrastive import Clip, SigLip
from .mae import Mae

# In config.json of a baseline's folder.
BASELINE_MODEL_TYPE = "genlip_baseline"
OBJECTIVES = ("genlip", "clip", "siglip", "mae", "cappa")


def build_model(
    config: GenLIPConfig, objective: str, mask_ratio: float = 0.75, parallel: float = 0.75
) -> GenLIP | Baseline:
    """A model with fresh parameters (seed 0); on the meta device without any.

    Args:
        config: the backbone, of which the sizes of everything else follow.
        objective: "genlip", "clip", "siglip", "mae" or "cappa".
        mask_ratio: of "mae": share of masked patches, above 0 and below 1.
        parallel: of "cappa": share of samples predicted in parallel, 0 to 1.

    Raises:
        ModelError: no such objective, or an option out of range.
    """
    if not 0 < mask_ratio < 1 or not 0 <= parallel <= 1:
        raise ModelError(f"mask_ratio ({mask_ratio}) must lie between 0 and 1, parallel ({parallel}) within 0 to 1")
    match objective:
        case "genlip":
            return GenLIP(config)
        case "clip":
            model: Baseline = Clip(config)
        case "siglip":
            model = SigLip(config)
        case "mae":
            model = Mae(config, mask_ratio)
        case "cappa":
            model = CapPa(config, parallel)
        case _:
            raise ModelError(f"there is no objective {objective!r}; choose one of {', '.join(OBJECTIVES)}")
    if model.device.type != "meta":
        model.init_weights(seed=0)
    return model


def count_parameters(objective: str, config: GenLIPConfig) -> int:
    """Number of trainable parameters of the whole model, counted on a model without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config, objective).parameters())


def baseline_to_dict(model: Baseline) -> dict[str, Any]:
    """config.json of a baseline's folder; `baseline_from_dict` is its inverse."""
    return {
        "model_type": BASELINE_MODEL_TYPE,
        "objective": model.objective,
        **model.options,
        "backbone": model.config.to_dict(),
    }


def baseline_from_dict(values: Mapping[str, Any]) -> Baseline:
    """A baseline as `baseline_to_dict` described it.

    Raises:
        ModelError: a value is missing or out of range.
    """
    objective, backbone = values.get("objective"), values.get("backbone")
    if objective not in OBJECTIVES[1:] or not isinstance(backbone, Mapping):
        raise ModelError(f"model config: objective {objective!r} is no baseline, or there is no backbone")
    options = {name: float(values[name]) for name in ("mask_ratio", "parallel") if name in values}
    model = build_model(GenLIPConfig.from_dict(backbone), objective, **options)
    assert isinstance(model, Baseline)
    return model
