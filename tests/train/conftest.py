"""A small real store, made as `genlip ingest` makes it but in a plain loop, and run folders on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from train_runs import begin_run, small_recipe

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from pipeline.inputs.plan import extend_plan
from pipeline.store import open_store
from pipeline.work import run_unit
from tests.stores import curate_in_turn


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of the shipped fixtures: shards `demo` and `demo-heldout`."""
    folder = tmp_path_factory.mktemp("small")
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, folder / "urls.parquet", seed=0)
        recipe = small_recipe(folder, folder)
        store = open_store(recipe.store, recipe.ingest.content())
        for unit in extend_plan(store, recipe.ingest.source, recipe.ingest.unit_samples).iter_units():
            assert run_unit(unit, recipe.ingest, store).committed
    curate_in_turn(store, recipe.curate, recipe.shards, recipe.seed)
    return folder


@pytest.fixture
def make_run(small_store: Path, tmp_path: Path) -> Callable[..., Path]:
    """Begin a run folder on the small store; the recipe is tmp_path/recipe.yaml plus the overrides."""
    return lambda *overrides: begin_run(small_recipe(small_store, tmp_path, *overrides))
