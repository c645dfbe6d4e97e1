"""`genlip ingest` that is asked to stop: it finishes what runs, ends with exit code 75, and goes on when run again."""

import signal
import time
from pathlib import Path

import pytest
from ingest_runs import MAX_WAIT_S, ingest_in_a_loop, run_ingest, start_ingest, visible_files, write_recipe

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from jobs.recipe import load_recipe
from pipeline.errors import EXIT_PREEMPTED
from pipeline.ledger import committed_units
from pipeline.store import Store


@pytest.mark.ray
@pytest.mark.slow
def test_asked_to_stop_it_ends_early_and_goes_on_later(tmp_path: Path) -> None:
    urls = tmp_path / "urls.parquet"
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
        expected = visible_files(ingest_in_a_loop(write_recipe(tmp_path, urls, "undisturbed")))
        recipe = write_recipe(tmp_path, urls, "stopped", per_host_rate=30)
        store = Store(load_recipe(recipe).store)
        driver = start_ingest(recipe)
        end = time.monotonic() + MAX_WAIT_S
        while len(committed_units(store)) < 3:
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=MAX_WAIT_S)
        assert driver.returncode == EXIT_PREEMPTED, output
        assert "asked to stop: nothing new begins" in output
        assert "stopped on request" in output
        assert "Traceback" not in output
        kept = {name: body for name, body in visible_files(store).items() if name.startswith(("ledger/", "raw/"))}
        assert 3 <= len(committed_units(store)) < len([name for name in expected if name.startswith("ledger/")])
        assert kept.items() <= expected.items()
        assert len([name for name in kept if name.startswith("raw/")]) == len(committed_units(store))

        code, output = run_ingest(recipe)
    assert code == 0, output
    assert visible_files(store) == expected
