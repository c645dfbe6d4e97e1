"""The model of a checkpoint as a Hugging Face folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model import ImageProcessor, Tokenizer, save_model
from train.checkpoints.state import TrainState
from train.network import Network


@dataclass(frozen=True)
class HuggingFaceExport:
    """Writes `model/` of a checkpoint; see `writing.ModelExport`."""

    network: Network
    tokenizer: Tokenizer
    processor: ImageProcessor
    run_name: str

    def __call__(self, folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        model = self.network.skeleton()
        model.load_state_dict(dict(weights), assign=True)
        facts = {"Run": self.run_name, "Samples seen": f"{state.samples_seen:,}", "Steps": f"{state.step:,}"}
        save_model(folder, model, self.tokenizer, self.processor, facts)
