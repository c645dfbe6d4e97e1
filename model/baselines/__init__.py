"""The objectives that GenLIP is compared with, on the same backbone. See README.md of `model`, "Baselines"."""

from .baseline import Baseline
from .build import OBJECTIVES, build_model, count_parameters
from .cappa import CapPa
from .contrastive import Clip, Contrastive, SigLip
from .counting import flops_per_sample
from .mae import Mae

__all__ = [
    "OBJECTIVES",
    "Baseline",
    "CapPa",
    "Clip",
    "Contrastive",
    "Mae",
    "SigLip",
    "build_model",
    "count_parameters",
    "flops_per_sample",
]
