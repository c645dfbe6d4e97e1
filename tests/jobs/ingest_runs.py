"""Ingestions for the tests that disturb them: the command in a process, the same work in a plain loop, the result."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from jobs.recipe import load_recipe
from pipeline.inputs.plan import extend_plan
from pipeline.processes import forget
from pipeline.store import Store, open_store
from pipeline.work import run_unit
from tests.stores import curate_in_turn

MAX_WAIT_S = 240
LOOPBACK = {"allow_addresses": ["127.0.0.0/8"], "per_host": 8, "in_flight": 8, "spill": 0}


def write_recipe(folder: Path, urls: Path, store: str, unit_samples: int = 12, **fetch: object) -> Path:
    """A recipe in FOLDER/NAME.yaml for the store FOLDER/STORE (or any URL)."""
    content = {
        "name": "run",
        "store": store if "://" in store else str(folder / store),
        "runs": str(folder / "runs"),
        "ingest": {
            "source": {"urls": str(urls)},
            "unit_samples": unit_samples,
            "fetch": {"timeout_s": 3, **LOOPBACK, **fetch},
        },
        "shards": {"name": "demo", "shard_samples": 50, "holdout": 0.1},
        "train": {"length": 1000},
    }
    path = folder / f"{store.rstrip('/').rsplit('/', 1)[-1]}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def start_ingest(recipe: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", "ingest", str(recipe), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_ingest(recipe: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of an undisturbed command."""
    process = start_ingest(recipe, *arguments)
    output, _ = process.communicate(timeout=MAX_WAIT_S)
    return process.returncode, output


def ingest_in_a_loop(recipe_path: Path) -> Store:
    """The undisturbed run, without Ray."""
    forget()  # what earlier tests of this process met on the network
    recipe = load_recipe(recipe_path)
    store = open_store(recipe.store, recipe.ingest.content())
    for unit in extend_plan(store, recipe.ingest.source, recipe.ingest.unit_samples).iter_units():
        assert run_unit(unit, recipe.ingest, store).committed
    curate_in_turn(store, recipe.curate, recipe.shards, recipe.seed)
    return store


def visible_files(store: Store) -> dict[str, bytes]:
    """Everything that a reader of the data can see, by name."""
    folders = ("ledger", "raw", "shards/demo", "shards/demo-heldout", "selection/demo")
    return {
        f"{folder}/{name}": store.read(f"{folder}/{name}")
        for folder in folders
        for name in store.names(folder, "")
        if name != "README.md"  # the dataset card, which the command writes and the loop does not
    }


def wait_for_the_end(helpers: Sequence[psutil.Process]) -> None:
    """Until nothing of a killed driver can still write."""
    # Ray's two monitoring agents take a minute to notice; what could still write must go at once.
    agents = [helper for helper in helpers if helper.is_running() and _is_agent(helper)]
    for agent in agents:
        agent.kill()
    _, alive = psutil.wait_procs(set(helpers) - set(agents), timeout=30)
    assert not [helper for helper in alive if helper.status() != psutil.STATUS_ZOMBIE]


def _is_agent(process: psutil.Process) -> bool:
    try:
        return process.name().startswith(("ray::Dashboard", "ray::RuntimeEnv"))
    except psutil.NoSuchProcess:
        return False
