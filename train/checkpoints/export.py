"""The model of a checkpoint as a Hugging Face folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model import GenLIP, GenLIPConfig, ImageProcessor, Tokenizer, save_model
from train.checkpoints.state import TrainState


@dataclass(frozen=True)
class HuggingFaceExport:
    """Writes `model/` of a checkpoint; see `writing.ModelExport`."""

    config: GenLIPConfig
    tokenizer: Tokenizer
    processor: ImageProcessor
    run_name: str

    def __call__(self, folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        with torch.device("meta"):
            model = GenLIP(self.config)
        model.load_state_dict(dict(weights), assign=True)
        facts = {"Run": self.run_name, "Samples seen": f"{state.samples_seen:,}", "Steps": f"{state.step:,}"}
        save_model(folder, model, self.tokenizer, self.processor, facts)
