"""An ingestion on a Ray cluster of several nodes, one of which is killed and one added: the one machine's bytes."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.demo.corpus import FIXTURES
from jobs.recipe import load_recipe
from pipeline.ledger import committed_units
from pipeline.outcomes import SUCCESS
from pipeline.store import Store
from tests.jobs.counting_server import CountingServer, serve_counting
from tests.jobs.ingest_runs import ingest_in_a_loop, start_ingest, visible_files, write_recipe
from tests.jobs.ray_head import end_tree, ray_head
from tests.jobs.ray_nodes import Nodes

NUM_NODES = 4
NUM_VARIANTS = 22
"""Of each image's URL."""
NUM_HELD_VARIANTS = 8
"""Variants, the last ones, that the server holds back until the new node works."""
UNIT_SAMPLES = 120
KILL_AFTER_UNITS = 8
MAX_WAIT_S = 300


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The paths of Ray's sockets are limited."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _write_urls(path: Path, server: CountingServer) -> int:
    held = ["held" if number >= NUM_VARIANTS - NUM_HELD_VARIANTS else "" for number in range(NUM_VARIANTS)]
    urls = [f"{server.url}{name}?v={n}{held[n]}" for n in range(NUM_VARIANTS) for name in sorted(server.bodies)]
    captions = [f"Picture number {number} of its kind." for number in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    return len(urls)


def _runs_a_unit(node: psutil.Process) -> bool:
    """Whether one of the node's workers is at work. It is called so by Ray while it runs a task."""
    for process in node.children(recursive=True):
        try:
            if any(word.startswith("ray::run") for word in process.cmdline()):
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def _wait_for(is_true: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    end = time.monotonic() + MAX_WAIT_S
    while not is_true():
        if time.monotonic() > end:
            driver.kill()
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_is_killed_and_one_joins(tmp_path: Path, short_folder: Path) -> None:
    urls = tmp_path / "urls.parquet"
    fetch = {"robots": False, "timeout_s": 240}
    with serve_counting(FIXTURES / "images") as server, ray_head(num_cpus=0) as head:
        nodes = Nodes(head, short_folder)
        try:
            first = [nodes.add() for _ in range(NUM_NODES)]
            num_rows = _write_urls(urls, server)
            server.gate.set()
            expected = visible_files(ingest_in_a_loop(write_recipe(tmp_path, urls, "one", UNIT_SAMPLES, **fetch)))
            server.gate.clear()
            server.asked.clear()

            recipe = write_recipe(tmp_path, urls, "many", UNIT_SAMPLES, **fetch)
            store = Store(load_recipe(recipe).store)
            driver = start_ingest(recipe, "--set", f"run.ray_address={head.gcs}", env=head.env)
            _wait_for(lambda: all(map(_runs_a_unit, first)) and len(committed_units(store)) >= KILL_AFTER_UNITS, driver)
            end_tree(first[0])
            new = nodes.add()
            log = tmp_path / "runs" / "run" / "stages" / "ingest" / "log.txt"
            _wait_for(lambda: _runs_a_unit(new) and " 1 left (" in log.read_text(), driver)
            server.gate.set()
            output, _ = driver.communicate(timeout=MAX_WAIT_S)
        finally:
            nodes.end()
    assert driver.returncode == 0, output
    assert num_rows >= 5_000
    found = visible_files(store)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    rows = [row for name in committed_units(store) for row in store.read_table(f"ledger/{name}.parquet").to_pylist()]
    assert len({row["key"] for row in rows if row["status"] == SUCCESS}) == num_rows

    # Of the killed node one unit was in flight, for it had one core: its rows alone were asked for twice.
    asked_again = {path for path, count in server.asked.items() if count > 1}
    assert len(server.asked) == num_rows
    assert server.asked.total() <= num_rows + UNIT_SAMPLES
    units = {
        number // UNIT_SAMPLES for number, row in enumerate(rows) if row["url"].removeprefix(server.url) in asked_again
    }
    assert len(units) <= 1
