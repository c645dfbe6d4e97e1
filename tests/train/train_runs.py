"""Small runs on a small real store: recipes, tokenizers, and training processes as a launcher starts them."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from jobs.recipe import Recipe, load_recipe
from jobs.runs import open_run
from jobs.tokenizer import count_shard
from model import SentencePieceTokenizer
from train.data.captions import CAPTION
from train.data.dataset import first_samples
from train.data.lengths import LengthsFiles
from train.data.sources import open_datasets
from train.data.stream import Position
from train.recipe import TOKENIZER_FOLDER, TrainJob
from train.setup import set_up

SMALL = {
    "tokenizer": {"vocab_size": 600},
    "model": {"preset": "nano8", "image_px": 32},
    "train": {
        "length": 10**9,
        "lanes": 2,
        "row_tokens": 160,
        "precision": "fp32",
        "threads": 1,
        "log_every": 1,
        "optim": {"lr": 1e-3, "warmup": 20},
    },
}
"""A model of 16 patches an image and steps of some 8 samples: a step takes a tenth of a second."""


def small_recipe(store_folder: Path, run_folder: Path, *overrides: str) -> Recipe:
    """The recipe of a small run on the small store; written to RUN_FOLDER/recipe.yaml without the overrides."""
    content = SMALL | {
        "name": "small",
        "store": str(store_folder / "store"),
        "runs": str(run_folder / "runs"),
        "ingest": {
            "source": {"urls": str(store_folder / "urls.parquet")},
            "unit_samples": 100,
            "fetch": {"timeout_s": 1, "in_flight": 16, "per_host": 16, "spill": 0, "allow_addresses": ["127.0.0.0/8"]},
        },
        "shards": {"name": "demo", "shard_samples": 60, "holdout": 0.1},
    }
    path = run_folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(path, list(overrides))


def begin_run(recipe: Recipe) -> Path:
    """A run folder with its tokenizer and the columns of caption lengths, as `genlip tokenizer` makes them."""
    run_dir = open_run(recipe)
    datasets = open_datasets(TrainJob.model_validate(recipe.model_dump(mode="json"))).values()
    captions = [sample.caption for dataset in datasets for sample in first_samples(dataset)]
    tokenizer = SentencePieceTokenizer.train(captions, recipe.tokenizer.vocab_size, recipe.tokenizer.prompt)
    folder = run_dir / TOKENIZER_FOLDER
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder)
    for dataset in datasets:
        for number in range(dataset.num_shards):
            count_shard(number, dataset, tokenizer, LengthsFiles(dataset, tokenizer.fingerprint, run_dir), [CAPTION])
    return run_dir


def samples_of_steps(run_dir: Path, num_steps: int) -> int:
    """Samples that a run has seen after so many steps."""
    stream, at, seen = set_up(run_dir).stream, Position(), 0
    for _ in range(num_steps):
        step = stream.step(at)
        seen += step.totals.num_samples
        at = step.after
    return seen


def start_training(
    recipe_path: Path, *overrides: str, rank: int = 0, world_size: int = 1, port: int = 0
) -> subprocess.Popen[str]:
    """One training process as a launcher would start it."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"MASTER_PORT": str(port)} if port else {}
    command = [sys.executable, "-m", "jobs.cli", "train", str(recipe_path)]
    command += [part for override in overrides for part in ("--set", override)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
