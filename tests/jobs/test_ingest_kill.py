"""`genlip ingest` under SIGKILL: what is stored in the end is what an undisturbed run stores."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from jobs.recipe import load_recipe
from pipeline.materialise import finish_dataset, plan_shards, select, write_shard
from pipeline.sources import plan_units
from pipeline.store import Store, open_store
from pipeline.work import SUCCESS, run_unit

MAX_WAIT_S = 240
NUM_KILLS = 3


def write_recipe(folder: Path, urls: Path, store: str) -> Path:
    content = {
        "name": "kill",
        "store": str(folder / store),
        "ingest": {
            "source": {"urls": str(urls)},
            "unit_samples": 12,
            "fetch": {"timeout_s": 3, "in_flight": 8},
        },
        "shards": {"name": "demo", "shard_samples": 50, "holdout": 0.1},
        "train": {"length": 1000},
    }
    path = folder / f"{Path(store).name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def start_ingest(recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", "ingest", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ingest_in_a_loop(recipe_path: Path) -> Store:
    """The undisturbed run, without Ray."""
    recipe = load_recipe(recipe_path)
    store = open_store(recipe.store, recipe.ingest.content())
    for unit in plan_units(recipe.ingest.source, recipe.ingest.unit_samples):
        assert run_unit(unit, recipe.ingest, store).committed
    selection = select(store, recipe.shards)
    jobs = plan_shards(selection, recipe.shards, recipe.seed)
    for job in jobs:
        write_shard(job, store)
    finish_dataset(store, jobs, selection)
    return store


def contents(store: Store) -> dict[str, object]:
    """Everything a reader can see, by name."""
    seen: dict[str, object] = {}
    for folder, suffix in (("ledger", ".parquet"), ("shards/demo", ".tar"), ("shards/demo-heldout", ".tar")):
        for name in store.names(folder, suffix):
            path = f"{folder}/{name}"
            seen[path] = store.read_table(path).to_pylist() if suffix == ".parquet" else store.read(path)
    for dataset in ("demo", "demo-heldout"):
        seen[f"{dataset} index"] = store.read_table(f"shards/{dataset}/index.parquet").to_pylist()
    return seen


def kill_in_the_middle(recipe: Path, rng: random.Random) -> None:
    """Start the driver, and SIGKILL it once it has committed a few more units."""
    store = Store(load_recipe(recipe).store)
    before = len(store.names("ledger", ".parquet"))
    process = start_ingest(recipe)
    give_up_at = time.monotonic() + MAX_WAIT_S
    while len(store.names("ledger", ".parquet")) < before + rng.randint(1, 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    helpers = psutil.Process(process.pid).children(recursive=True)
    assert process.poll() is None, "the driver ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # Ray's two monitoring agents take a minute to notice; what could still write must go at once.
    agents = [helper for helper in helpers if helper.is_running() and is_agent(helper)]
    for agent in agents:
        agent.kill()
    _, alive = psutil.wait_procs(set(helpers) - set(agents), timeout=30)
    assert not [helper for helper in alive if helper.status() != psutil.STATUS_ZOMBIE]


def is_agent(process: psutil.Process) -> bool:
    try:
        return process.name().startswith(("ray::Dashboard", "ray::RuntimeEnv"))
    except psutil.NoSuchProcess:
        return False


@pytest.mark.ray
@pytest.mark.slow
def test_three_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    rng = random.Random(int.from_bytes(os.urandom(4), "big"))
    urls = tmp_path / "urls.parquet"
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
        expected = contents(ingest_in_a_loop(write_recipe(tmp_path, urls, "undisturbed")))
        recipe = write_recipe(tmp_path, urls, "killed")
        for _ in range(NUM_KILLS):
            kill_in_the_middle(recipe, rng)
        last = start_ingest(recipe)
        output, _ = last.communicate(timeout=MAX_WAIT_S)
    assert last.returncode == 0, output
    store = Store(load_recipe(recipe).store)
    assert contents(store) == expected

    kept = [row["key"] for name in store.names("ledger", ".parquet") for row in ledger(store, name)]
    stored = [key for keys in store.read_table("shards/demo/index.parquet")["keys"].to_pylist() for key in keys]
    assert len(stored) == len(set(stored))
    assert set(stored) <= set(kept)

    again = start_ingest(recipe)  # the server is gone: nothing is asked of it
    output, _ = again.communicate(timeout=MAX_WAIT_S)
    assert again.returncode == 0
    assert "0 still to do" in output
    assert "nothing to do" in output
    assert contents(store) == expected


def ledger(store: Store, name: str) -> list[dict[str, object]]:
    return [row for row in store.read_table(f"ledger/{name}").to_pylist() if row["status"] == SUCCESS]


@pytest.mark.ray
@pytest.mark.slow
def test_units_whose_server_is_down_stay_pending_and_are_said(tmp_path: Path) -> None:
    urls = tmp_path / "urls.parquet"
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
    recipe = write_recipe(tmp_path, urls, "down")
    process = start_ingest(recipe)
    output, _ = process.communicate(timeout=MAX_WAIT_S)
    assert process.returncode == 1, output
    assert "connection_refused" in output
    assert "next: run the same command again" in output
    store = Store(load_recipe(recipe).store)
    assert store.names("ledger", ".parquet") == []
    assert store.names("raw", ".tar") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mounted)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a small disk takes root: {done.stderr.decode().strip()}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_full_disk_is_said_and_costs_nothing_that_was_stored(tmp_path: Path, small_disk: Path) -> None:
    urls = tmp_path / "urls.parquet"
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
        expected = contents(ingest_in_a_loop(write_recipe(tmp_path, urls, "undisturbed")))
        recipe = write_recipe(tmp_path, urls, "disk/store")
        output, _ = (process := start_ingest(recipe)).communicate(timeout=MAX_WAIT_S)
        assert process.returncode == 3, output
        assert "error: no space left" in output
        assert "Traceback" not in output
        store = Store(load_recipe(recipe).store)
        before = store.names("ledger", ".parquet")
        assert before
        subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
        output, _ = (process := start_ingest(recipe)).communicate(timeout=MAX_WAIT_S)
    assert process.returncode == 0, output
    assert set(before) <= set(store.names("ledger", ".parquet"))
    assert contents(store) == expected
