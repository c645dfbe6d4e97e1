"""`genlip submit --to ray` against a real `ray start --head`: the work is done there, once, and can be watched."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store import Store
from tests.jobs.ingest_runs import ingest_in_a_loop, visible_files, write_recipe
from tests.jobs.ray_head import Head, ray_head

MAX_JOB_S = 120


def _wait_for_the_job(head: Head, folder: Path, submission_id: str) -> str:
    end = time.monotonic() + MAX_JOB_S
    while time.monotonic() < end:
        done = head.run(folder, "ray.scripts.scripts", "job", "status", "--address", head.address, submission_id)
        if found := re.search(rf"'{submission_id}' (succeeded|failed)", done.stdout):
            return found[1]
        time.sleep(0.5)
    raise AssertionError("the job does not end")


@pytest.mark.ray
@pytest.mark.slow
def test_an_ingestion_is_submitted_watched_and_not_submitted_twice(
    tmp_path: Path, server_url: str, url_table: Callable[[str, Path], Path]
) -> None:
    urls = url_table(server_url, tmp_path)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    recipe = write_recipe(there, urls, "store", unit_samples=50)
    runs = f"runs={there / 'runs'}"
    with ray_head() as head:
        submit = ("jobs.cli", "submit", str(recipe), "ingest", "--to", "ray", "--address", head.address, "--set", runs)
        first = head.run(here, *submit)
        assert "submitted as run-ingest-1" in first.stdout, first.stderr
        second = head.run(here, *submit)
        assert second.returncode == 2
        assert "running already, as run-ingest-1" in second.stderr
        status = _wait_for_the_job(head, here, "run-ingest-1")
        logs = head.run(here, "ray.scripts.scripts", "job", "logs", "--address", head.address, "run-ingest-1").stdout
    assert status == "succeeded", logs
    assert "seen =" in logs
    loop = write_recipe(tmp_path, urls, "loop", unit_samples=50)
    store = ingest_in_a_loop(loop)
    assert visible_files(Store(str(there / "store"))) == visible_files(store)
