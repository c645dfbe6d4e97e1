"""`genlip ingest` when its driver is killed, its server is down or its disk is full."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ingest_runs import (
    MAX_WAIT_S,
    ingest_in_a_loop,
    run_ingest,
    start_ingest,
    visible_files,
    wait_for_the_end,
    write_recipe,
)

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from jobs.recipe import load_recipe
from pipeline.outcomes import SUCCESS
from pipeline.store import Store
from tests.stores import shard_rows

NUM_KILLS = 3


def store_of(recipe: Path) -> Store:
    return Store(load_recipe(recipe).store)


def kill_in_the_middle(recipe: Path, rng: random.Random) -> None:
    """Start the driver, and SIGKILL it once it has committed a few more units."""
    store = store_of(recipe)
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
    process.kill()
    process.communicate()
    wait_for_the_end(helpers)


@pytest.mark.ray
@pytest.mark.slow
def test_three_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    rng = random.Random(int.from_bytes(os.urandom(4), "big"))
    urls = tmp_path / "urls.parquet"
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
        expected = visible_files(ingest_in_a_loop(write_recipe(tmp_path, urls, "undisturbed")))
        recipe = write_recipe(tmp_path, urls, "killed", per_host_rate=30)
        for _ in range(NUM_KILLS):
            kill_in_the_middle(recipe, rng)
        code, output = run_ingest(recipe)
    assert code == 0, output
    store = store_of(recipe)
    assert visible_files(store) == expected

    ledgers = [store.read_table(f"ledger/{name}").to_pylist() for name in store.names("ledger", ".parquet")]
    kept = [row["key"] for ledger in ledgers for row in ledger if row["status"] == SUCCESS]
    stored = [key for shard in shard_rows(store, "demo") for key in shard["keys"]]
    assert len(stored) == len(set(stored))
    assert set(stored) <= set(kept)

    code, output = run_ingest(recipe)  # the server is gone: nothing is asked of it
    assert code == 0
    assert "0 still to do" in output
    assert "writing" not in output
    assert visible_files(store) == expected


@pytest.mark.ray
@pytest.mark.slow
def test_units_whose_server_is_down_stay_pending_and_are_said(tmp_path: Path) -> None:
    urls = tmp_path / "urls.parquet"
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
    recipe = write_recipe(tmp_path, urls, "down")
    code, output = run_ingest(recipe)
    assert code == 1, output
    assert "rows answered, 50% wanted" in output
    assert "next: run the same command again" in output
    assert store_of(recipe).names("ledger", ".parquet") == []
    assert store_of(recipe).names("raw", ".tar") == []


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
        expected = visible_files(ingest_in_a_loop(write_recipe(tmp_path, urls, "undisturbed")))
        recipe = write_recipe(tmp_path, urls, "disk/store")
        code, output = run_ingest(recipe)
        assert code == 3, output
        assert "error: no space left" in output
        assert "Traceback" not in output
        before = store_of(recipe).names("ledger", ".parquet")
        assert before
        subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
        code, output = run_ingest(recipe)
    assert code == 0, output
    assert set(before) <= set(store_of(recipe).names("ledger", ".parquet"))
    assert visible_files(store_of(recipe)) == expected
