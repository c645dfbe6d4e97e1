"""Checkpoints: independent of the number of processes and of the ZeRO stage, written while training goes on, verified.

checkpoints/step-00000120/parameters-*.safetensors  master weights and Adam's moments in fp32, by parameter
checkpoints/step-00000120/model/                    the model alone, with tokenizer and image processor; with an
checkpoints/step-00000120/model-ema/                average of the weights (train.ema), this one too
checkpoints/step-00000120/COMMITTED                 the state, and size and sha256 of every file; written last
"""

from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.export import HuggingFaceExport
from train.checkpoints.folder import committed_checkpoints, latest_checkpoint, read_checkpoint, read_state
from train.checkpoints.record import COMMITTED
from train.checkpoints.state import TrainState
from train.checkpoints.writing import ModelExport

__all__ = [
    "COMMITTED",
    "Checkpoints",
    "HuggingFaceExport",
    "ModelExport",
    "TrainState",
    "committed_checkpoints",
    "latest_checkpoint",
    "read_checkpoint",
    "read_state",
]
