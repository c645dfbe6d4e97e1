"""A training loop around the official model, with its dense mask and its cross entropy over all positions."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from model import EncodedSample, pack_rows
from tests.bench.model_official import NAME, build_model, import_model, model_inputs
from tests.bench.trainer_inputs import TrainerSetup
from tests.bench.trainer_peer import train
from tests.bench.trainer_side import Mark

__all__ = ["NAME", "run"]


def run(setup: TrainerSetup) -> list[Mark]:
    """Steps on one packed row."""
    model = build_model(import_model(Path(setup.folder)), setup).train()

    def loss(samples: list[EncodedSample]) -> Tensor:
        rows = pack_rows([samples], setup.row_tokens)
        logits = model(**model_inputs(rows, setup)).logits[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), rows.labels_BS[:, 1:].flatten())

    return train(setup, model, loss)
