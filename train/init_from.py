"""A run that begins with the weights of another: the second stage after the first."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from model import GenLIP, LoadedModel, ModelError, Tokenizer, load_model
from model.baselines import Baseline
from pipeline.errors import UserError
from train.checkpoints import latest_checkpoint
from train.recipe import RECIPE_FILE

INIT_FILE = "init_from.json"

# What shapes no weight and changes no output in evaluation.
_FREE = ("drop_path_rate", "initializer_range", "ls_init_value")


def load_initial_weights(model: GenLIP | Baseline, tokenizer: Tokenizer, run_dir: Path, init_from: str) -> None:
    """Replace the fresh weights of a model by those that the recipe names. Optimiser and stream begin anew.

    The folder that they came from is written into the run, so that a run killed before its first checkpoint begins
    with the same ones, although the other run may have gone on.

    Args:
        model: Not yet wrapped for training. Takes the weights in its own precision.
        tokenizer: This run's.
        run_dir: This run's folder.
        init_from: A run folder, whose newest checkpoint is taken, or a folder written by `save_model` or published
            with the official code.

    Raises:
        UserError: There are no weights, or they belong to another objective, model or tokenizer (the
            differing keys are named).
    """
    record = run_dir / INIT_FILE
    folder = _recorded(record, init_from) or _model_folder(Path(init_from))
    loaded = _load(folder)
    if problems := [*_model_problems(model, loaded.model), *_tokenizer_problems(tokenizer, loaded.tokenizer)]:
        raise UserError(
            "these weights do not fit the run:\n" + "\n".join(f"  - {problem}" for problem in problems),
            where=f"train.init_from: {folder}",
            next_step="set objective, model and tokenizer as in the run that made them, or name other weights",
        )
    model.load_state_dict(loaded.model.state_dict())
    _write(record, {"init_from": init_from, "folder": str(folder), "tokenizer": tokenizer.fingerprint})


def _recorded(record: Path, init_from: str) -> Path | None:
    """The folder that this run began with before, if it was asked for the same."""
    if not record.exists():
        return None
    content = json.loads(record.read_text(encoding="utf-8"))
    return Path(content["folder"]) if content["init_from"] == init_from else None


def _model_folder(source: Path) -> Path:
    return latest_checkpoint(source) / "model" if (source / RECIPE_FILE).exists() else source


def _load(folder: Path) -> LoadedModel:
    try:
        return load_model(folder)
    except ModelError as error:
        raise UserError(
            "the initial weights cannot be read",
            where=f"train.init_from: {folder}",
            why=str(error),
            next_step="name a run folder with a checkpoint, or a model folder",
        ) from error


def _model_problems(ours: GenLIP | Baseline, theirs: GenLIP | Baseline) -> list[str]:
    if ours.objective != theirs.objective:
        return [f"objective is {theirs.objective} there, {ours.objective} in this run"]
    mine, other = ours.config.to_dict(), theirs.config.to_dict()
    return [
        f"{key} is {other.get(key)} there, {mine.get(key)} in this run"
        for key in sorted(mine.keys() | other.keys())
        if key not in _FREE and mine.get(key) != other.get(key)
    ]


def _tokenizer_problems(ours: Tokenizer, theirs: Tokenizer) -> list[str]:
    if ours.fingerprint == theirs.fingerprint:
        return []
    return [f"tokenizer {theirs.fingerprint[:16]} (vocabulary or prompt) there, {ours.fingerprint[:16]} in this run"]


def _write(path: Path, content: dict[str, Any]) -> None:
    """At once: every process writes the same."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
