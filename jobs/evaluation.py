"""`genlip eval`: a run's newest checkpoint, or any model folder, on held-out images; numbers to screen and files."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.console import duration, say, table
from jobs.recipe import Recipe, override_eval
from jobs.runs import read_run
from model import LoadedModel, ModelError, load_model
from model.baselines import Baseline, count_parameters, flops_per_sample
from pipeline.errors import UserError
from pipeline.store import Store
from train.checkpoints import COMMITTED, latest_checkpoint, read_state
from train.evaluation.data import read_eval_data, read_run_data
from train.evaluation.evaluate import evaluate
from train.evaluation.result import Part, to_json
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.spec import EvalSpec
from train.recipe import RECIPE_FILE, TrainSpec

EVAL_FILE = "eval.json"
IMAGES_FILE = "eval_images.parquet"
"""Column `key`, then one of float64 per metric that has a value for each image; NaN where an image was not measured."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and where the results go."""

    checkpoint: Path
    """Checkpoint or model folder."""
    model: Path
    """Folder with the weights."""
    out: Path
    recipe: Recipe | None
    """Of the run that it comes from, where that is known."""
    samples_seen: int | None


def find_subject(where: Path) -> Subject:
    """What a run folder, a checkpoint folder or a model folder holds.

    Raises:
        UserError: It holds nothing, or the run has no checkpoint yet.
    """
    if (where / RECIPE_FILE).exists():
        checkpoint = latest_checkpoint(where)
        return Subject(checkpoint, checkpoint / "model", where, read_run(where), read_state(checkpoint).samples_seen)
    if not where.is_dir():
        raise UserError("there is no such folder", where=str(where), next_step="name a run, a checkpoint or a model")
    is_checkpoint = (where / COMMITTED).exists()
    run_dir = next((parent for parent in where.resolve().parents if (parent / RECIPE_FILE).exists()), None)
    return Subject(
        checkpoint=where,
        model=where / "model" if is_checkpoint else where,
        out=where,
        recipe=read_run(run_dir) if run_dir else None,
        samples_seen=read_state(where).samples_seen if is_checkpoint else None,
    )


def load_latest(run_dir: Path) -> tuple[LoadedModel, dict[str, Any]]:
    """The newest checkpoint's model, and the state it was saved in."""
    checkpoint = latest_checkpoint(run_dir)
    return load_model(checkpoint / "model"), asdict(read_state(checkpoint)) | {"checkpoint": str(checkpoint)}


def read_heldout(run_dir: Path, limit: int) -> list[Labelled]:
    """The first held-out samples of a run's dataset, in the shards' shuffled order.

    Raises:
        UserError: There are none.
    """
    recipe = read_run(run_dir)
    return read_run_data(Store(recipe.store), recipe.shards.name, limit, max_training=1).heldout


def evaluate_folder(where: Path, data: str, tokenizer: Path | None, overrides: Sequence[str]) -> int:
    """Evaluate what the folder holds. Returns the exit code.

    Args:
        where: A run folder, a checkpoint folder, or a model folder, ours or an official one.
        data: What to measure on, as `eval.data`; empty: what the recipe says, else the run's held-out shards.
        tokenizer: Folder of the tokenizer, where the model folder has none.
        overrides: `eval.key=value` entries.
    """
    began = time.monotonic()
    subject = find_subject(where)
    spec = override_eval(subject.recipe.eval if subject.recipe else EvalSpec(), list(overrides))
    spec = spec.model_copy(update={"data": data or spec.data})
    loaded = _load(subject, tokenizer)
    eval_data = _read_data(subject, spec)
    default = TrainSpec.model_fields["max_caption_tokens"].default
    max_caption_tokens = subject.recipe.train.max_caption_tokens if subject.recipe else default
    part = evaluate(loaded, eval_data, spec, max_caption_tokens, say)
    took_s = round(time.monotonic() - began, 1)
    result = _describe(subject, loaded, eval_data, spec) | {"took_s": took_s} | to_json(part)
    (subject.out / EVAL_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _write_images(subject.out / IMAGES_FILE, eval_data, part)
    _show(result)
    say(f"took {duration(time.monotonic() - began)}; numbers in {subject.out / EVAL_FILE}")
    return 0


def _load(subject: Subject, tokenizer: Path | None) -> LoadedModel:
    try:
        return load_model(subject.model, "cuda" if torch.cuda.is_available() else "cpu", tokenizer)
    except ModelError as error:
        raise UserError(
            "the model does not load",
            where=str(subject.model),
            why=str(error),
            next_step="name a run, a checkpoint or a model folder; one without a tokenizer needs --tokenizer FOLDER",
        ) from error


def _read_data(subject: Subject, spec: EvalSpec) -> EvalData:
    if spec.data:
        return read_eval_data(spec.data, spec.max_images)
    if subject.recipe is None:
        raise UserError(
            "there is nothing to measure on",
            where=str(subject.checkpoint),
            why="a model folder outside of a run does not say what was held out of its training",
            next_step="name the data: --data STORE#DATASET, a folder of classes, a COCO or a Karpathy JSON",
        )
    return read_run_data(Store(subject.recipe.store), subject.recipe.shards.name, spec.max_images)


def _describe(subject: Subject, loaded: LoadedModel, data: EvalData, spec: EvalSpec) -> dict[str, Any]:
    """What was measured, and on what."""
    model, tokenizer = loaded.model, loaded.tokenizer
    patches, _ = loaded.processor.load_patches(data.heldout[0].image)
    captions = [len(tokenizer.encode(one.caption)) + len(tokenizer.ending_ids) for one in data.heldout]
    num_labels = round(float(np.mean(captions)))
    options = model.options if isinstance(model, Baseline) else {}
    num_text = len(tokenizer.prompt_ids) + num_labels
    return {
        "checkpoint": str(subject.checkpoint),
        "samples_seen": subject.samples_seen,
        "objective": model.objective,
        "parameters": count_parameters(model.objective, model.config),
        "flops_per_sample": flops_per_sample(
            model.objective, model.config, len(patches), num_text, num_labels, options.get("mask_ratio", 0)
        ),
        "num_images": len(data.heldout),
        "num_training_images": len(data.training),
        "skipped": data.skipped,
        "eval": spec.model_dump(mode="json"),
    }


def _write_images(path: Path, data: EvalData, part: Part) -> None:
    columns: dict[str, Any] = {"key": [one.key for one in data.heldout]}
    pq.write_table(pa.table(columns | part.per_image), path)


def _show(result: dict[str, Any]) -> None:
    seen = "" if result["samples_seen"] is None else f", {result['samples_seen']:,} samples seen"
    say(
        f"{result['checkpoint']}: {result['objective']}, {result['parameters']:,} parameters{seen};"
        f" {result['num_images']:,} held-out images, {result['num_training_images']:,} training images"
    )
    say(table(eval_rows(result)))
    for note in result["notes"]:
        say(f"- {note}")


def eval_rows(result: dict[str, Any]) -> list[list[str]]:
    """The metrics as a table: name, value, interval, chance, and how many times chance."""
    rows = [["metric", "value", "95 % interval", "chance", "× chance"]]
    for name, metric in result["metrics"].items():
        value, chance, unit = metric["value"], metric["chance"], metric["unit"]
        interval = "" if metric["low"] is None else f"{number(metric['low'], unit)} – {number(metric['high'], unit)}"
        times = f"{value / chance:.1f}" if chance and metric["better"] == "higher" and unit == "share" else ""
        label = f"{name}, {unit}" if unit not in ("share", "") else name
        rows.append([label, number(value, unit), interval, "" if chance is None else number(chance, unit), times])
    return rows


def number(value: float, unit: str) -> str:
    """A metric's value as people read it."""
    return f"{value:.1%}" if unit == "share" else f"{value:.4g}"
