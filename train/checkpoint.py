"""Checkpoints: DeepSpeed's state and an exported model, committed by a file written last.

checkpoints/step-00000120/          DeepSpeed's shards of weights and optimiser
checkpoints/step-00000120/model/    the model alone, with tokenizer and image processor
checkpoints/step-00000120/COMMITTED the state: counters, the stream's state, world size
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from model import ImageProcessor, Tokenizer, save_model
from pipeline.errors import UserError
from train.engine import Ranks

COMMITTED = "COMMITTED"


@dataclass(frozen=True)
class TrainState:
    """Everything a resumed run needs besides weights and optimiser."""

    step: int = 0
    samples_seen: int = 0
    stream: dict[str, int | str] = field(default_factory=dict)
    """The loader's, from `Loader.state_dict`; empty where nothing was read yet."""


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in run_dir.glob(f"checkpoints/step-*/{COMMITTED}"))


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        UserError: There is none.
    """
    found = committed_checkpoints(run_dir)
    if not found:
        raise UserError("this run has no checkpoint", where=str(run_dir), next_step="run: genlip train RECIPE")
    return found[-1]


def read_state(checkpoint: Path) -> tuple[TrainState, int]:
    """The state of a complete checkpoint, and the number of processes that wrote it."""
    record = json.loads((checkpoint / COMMITTED).read_text(encoding="utf-8"))
    world_size = record.pop("world_size")
    return TrainState(**record), world_size


def save_checkpoint(
    engine: Any,
    state: TrainState,
    run_dir: Path,
    ranks: Ranks,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    keep_last: int,
) -> None:
    """Write a checkpoint and remove the ones that are too old. Called by every rank."""
    folder = run_dir / "checkpoints" / f"step-{state.step:08d}"
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    if ranks.is_first:
        facts = {"Run": run_dir.resolve().name, "Samples seen": f"{state.samples_seen:,}", "Steps": f"{state.step:,}"}
        save_model(folder / "model", engine.module, tokenizer, processor, facts)
    dist.barrier()
    if ranks.is_first:
        record = json.dumps(asdict(state) | {"world_size": ranks.world_size})
        temporary = folder / f".{COMMITTED}.tmp"
        temporary.write_text(record, encoding="utf-8")
        os.replace(temporary, folder / COMMITTED)
        for old in committed_checkpoints(run_dir)[:-keep_last]:
            (old / COMMITTED).unlink()  # first, so that a half-removed checkpoint does not count
            shutil.rmtree(old)


def load_checkpoint(engine: Any, run_dir: Path, ranks: Ranks) -> TrainState:
    """Restore the newest complete checkpoint; a fresh state where there is none.

    The stream's part of the state is for the caller to load: `fit` refuses a loader that did not take it.

    Raises:
        UserError: It was written by another number of processes.
    """
    found = committed_checkpoints(run_dir)
    if not found:
        return TrainState()
    state, world_size = read_state(found[-1])
    if world_size != ranks.world_size:
        raise UserError(
            f"the checkpoint was written by {world_size} processes, this run has {ranks.world_size}",
            where=str(found[-1]),
            next_step=f"--set run.workers={world_size}, or start {world_size} processes",
        )
    loaded, _ = engine.load_checkpoint(str(found[-1].parent), tag=found[-1].name)
    if loaded is None:
        raise UserError(
            "the checkpoint cannot be loaded",
            where=str(found[-1]),
            next_step="delete this folder to use the one before",
        )
    return state
