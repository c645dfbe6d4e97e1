"""A training loop around open_clip's NaFlexGenLip."""

import importlib
from pathlib import Path

from torch import Tensor, nn

from model import EncodedSample
from tests.bench.model_open_clip import NAME, build_model, pad
from tests.bench.peer_import import bare_package, missing_package
from tests.bench.trainer_inputs import TrainerSetup
from tests.bench.trainer_peer import train
from tests.bench.trainer_side import Mark

__all__ = ["NAME", "run"]


def run(setup: TrainerSetup) -> list[Mark]:
    """Steps on batches whose texts are padded to the longest."""
    bare_package("open_clip", Path(setup.folder) / "src" / "open_clip")
    missing_package("timm.layers", DropPath=nn.Identity)
    model = build_model(importlib.import_module("open_clip.naflex_genlip_model"), setup).train()
    if setup.compile:
        model.compile()  # as its --torchcompile does

    def loss(samples: list[EncodedSample]) -> Tensor:
        mean: Tensor = model(**pad(samples), compute_loss=True)["loss"]
        return mean

    return train(setup, model, loss)
