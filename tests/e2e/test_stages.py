"""The demo's two stages as their recipes say, by the commands, on the shipped fixtures and with small steps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from jobs.recipe import Recipe, load_recipe
from model import load_tokenizer
from pipeline.inputs.plan import extend_plan
from pipeline.store import open_store
from pipeline.work import run_unit
from tests.environment import without_group
from tests.stores import curate_in_turn
from tests.train.groups import Group
from train.audit import audit_run
from train.checkpoints import latest_checkpoint
from train.init_from import INIT_FILE
from train.metrics import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
MAX_WAIT_S = 300


def fill_store(urls: Path, recipe: Recipe) -> None:
    """Ingest and curate the fixtures in a plain loop."""
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=0)
        store = open_store(recipe.store, recipe.ingest.content())
        for unit in extend_plan(store, recipe.ingest.source, recipe.ingest.unit_samples).iter_units():
            assert run_unit(unit, recipe.ingest, store).committed
    curate_in_turn(store, recipe.curate, recipe.shards, recipe.seed)


def train(recipe_path: Path, overrides: list[str]) -> Path:
    """Make the tokenizer and train, by the commands. Returns the run folder."""
    options = [part for one in overrides for part in ("--set", one)]
    command = [sys.executable, "-m", "jobs.cli", "tokenizer", str(recipe_path), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, env=without_group(), text=True, timeout=MAX_WAIT_S, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    Group(recipe_path, *overrides).finish()
    return load_recipe(recipe_path, overrides).run_dir


def test_the_second_stage_goes_on_from_the_first_at_the_native_aspect_ratio(tmp_path: Path) -> None:
    for name in ("demo.yaml", "demo_stage2.yaml"):
        shutil.copy(RECIPES / name, tmp_path)
    small = [
        f"store={tmp_path / 'store'}",
        f"runs={tmp_path / 'runs'}",
        f"ingest.source.urls={tmp_path / 'urls.parquet'}",
    ]
    small += ["train.row_tokens=256", "train.log_every=1", "model.image_px=32"]
    once = [*small, "train.length=120", "train.optim.warmup=20", "train.optim.lr=2.0e-3", "tokenizer.vocab_size=600"]
    fill_store(tmp_path / "urls.parquet", load_recipe(tmp_path / "demo.yaml", once))
    first = train(tmp_path / "demo.yaml", once)
    again = [*small, "train.length=40", "train.optim.warmup=10", "model.max_pixels=4096"]
    again += [f"tokenizer.path={first / 'tokenizer'}", f"train.init_from={first}"]
    second = train(tmp_path / "demo_stage2.yaml", again)

    assert json.loads((second / INIT_FILE).read_text())["folder"] == str(latest_checkpoint(first) / "model")
    losses = [[entry["loss"] for entry in read_metrics(run_dir)] for run_dir in (first, second)]
    assert losses[1][0] < losses[0][0] - 0.5
    assert load_tokenizer(second / "tokenizer").fingerprint == load_tokenizer(first / "tokenizer").fingerprint
    for run_dir, mode in ((first, "square"), (second, "native")):
        assert audit_run(run_dir).problems == []
        processor = json.loads((latest_checkpoint(run_dir) / "model" / "preprocessor_config.json").read_text())
        assert processor["mode"] == mode
