"""Thirty SIGKILLs over one ingestion, of workers, decoders and the driver: the undisturbed run's bytes in the end."""

import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from ingest_runs import ingest_in_a_loop, start_ingest, visible_files, wait_for_the_end, write_recipe

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from jobs.recipe import load_recipe
from pipeline.store import Store

NUM_KILLS = 30
NUM_DRIVER_KILLS = 4
MAX_RUNS = 40


def victims(driver: subprocess.Popen[str], kind: str) -> list[psutil.Process]:
    """The processes of a run that do its work: Ray's busy workers, or their decoders."""
    if kind == "driver":
        return [psutil.Process(driver.pid)]
    mark = {"worker": "ray::run", "decoder": "pipeline.pixels"}[kind]
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if mark in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_one(driver: subprocess.Popen[str], kind: str, rng: random.Random) -> bool:
    """SIGKILL a process of this kind; False where there is none."""
    there = victims(driver, kind)
    if not there:
        return False
    helpers = psutil.Process(driver.pid).children(recursive=True)
    try:
        rng.choice(there).kill()
    except psutil.NoSuchProcess:
        return False
    if kind == "driver":
        driver.wait()
        wait_for_the_end(helpers)
    return True


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_kills_change_no_byte(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)
    kinds = ["driver"] * NUM_DRIVER_KILLS
    kinds += [rng.choice(["worker", "worker", "decoder"]) for _ in range(NUM_KILLS - len(kinds))]
    rng.shuffle(kinds)
    urls = tmp_path / "urls.parquet"
    num_killed = 0
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
        expected = visible_files(ingest_in_a_loop(write_recipe(tmp_path, urls, "undisturbed", 8)))
        # A trickle, so that the kills find it at work.
        recipe = write_recipe(tmp_path, urls, "killed", 8, per_host_rate=16)
        driver = start_ingest(recipe)
        for _ in range(MAX_RUNS * NUM_KILLS):
            if num_killed == NUM_KILLS:
                break
            time.sleep(rng.uniform(0.1, 0.8))
            if driver.poll() is not None:
                driver.communicate()
                driver = start_ingest(recipe)
            else:
                num_killed += kill_one(driver, kinds[num_killed], rng)
        output = driver.communicate()[0]
        for _ in range(MAX_RUNS):
            if driver.returncode == 0:
                break
            # A unit whose worker was killed more often than Ray repeats a task waits for the next run.
            driver = start_ingest(recipe)
            output = driver.communicate()[0]
    assert driver.returncode == 0, output
    assert num_killed == NUM_KILLS, (seed, kinds[:num_killed])
    found = visible_files(Store(load_recipe(recipe).store))
    assert found.keys() == expected.keys(), seed
    assert [name for name in expected if found[name] != expected[name]] == [], seed
