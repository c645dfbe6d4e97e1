"""`genlip ingest` once more: failed rows asked for again by class, and new input files added without renumbering."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_runs import run_ingest, write_recipe

from jobs.demo.corpus import FIXTURES
from jobs.demo.server import start_server
from jobs.recipe import load_recipe
from pipeline.funnel import read_funnel
from pipeline.outcomes import SUCCESS
from pipeline.store import Store

NUM_IMAGES = 30
LATE = range(5, 12)
"""Images that the server gets only after the first run."""


def write_urls(path: Path, base_url: str, numbers: range) -> None:
    urls = [f"{base_url}/img/{number:05d}.webp" for number in numbers]
    captions = [f"Picture number {number}." for number in numbers]
    pq.write_table(pa.table({"url": urls, "caption": captions, "number": list(numbers)}), path)


def copy_images(folder: Path, numbers: range) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        shutil.copy(FIXTURES / "images" / f"{number:05d}.webp", folder / "images")


def outcomes(store: Store) -> Counter[tuple[str, str, str]]:
    rows = [row for name in store.names("ledger", "") for row in store.read_table(f"ledger/{name}").to_pylist()]
    return Counter((row["url"].rsplit("/", 1)[-1], row["status"], row["error_message"]) for row in rows)


@pytest.mark.ray
@pytest.mark.slow
def test_failed_rows_are_asked_for_again_and_new_files_extend_the_store(tmp_path: Path) -> None:
    corpus, tables = tmp_path / "corpus", tmp_path / "tables"
    tables.mkdir()
    copy_images(corpus, range(LATE.start))
    copy_images(corpus, range(LATE.stop, NUM_IMAGES + 10))
    with start_server(corpus) as base_url:
        write_urls(tables / "a.parquet", base_url, range(NUM_IMAGES))
        recipe = write_recipe(tmp_path, tables / "*.parquet", "store", robots=False)
        store = Store(load_recipe(recipe).store)
        code, output = run_ingest(recipe)
        assert code == 0, output
        assert read_funnel(store).failed == {"http_404": len(LATE)}
        first = {name: store.read(f"ledger/{name}") for name in store.names("ledger", "")}

        copy_images(corpus, LATE)
        code, output = run_ingest(recipe, "--set", "shards.name=again")
        assert code == 0, output
        assert "0 still to do" in output, "a 404 is an answer, and nothing is asked again unless told so"
        code, output = run_ingest(recipe, "--retry", "http_404", "--set", "shards.name=retried")
        assert code == 0, output
        assert f"retry http_404: {len(LATE)} rows" in output
        funnel = read_funnel(store)
        assert (funnel.seen, funnel.success, funnel.failed) == (NUM_IMAGES, NUM_IMAGES, {})
        late = outcomes(store)
        assert all(late[f"{number:05d}.webp", SUCCESS, ""] == 1 for number in range(NUM_IMAGES))

        code, output = run_ingest(recipe, "--retry", "http_404", "--set", "shards.name=retried")
        assert code == 0, output
        assert "retry http_404: 0 rows" in output

        write_urls(tables / "b.parquet", base_url, range(NUM_IMAGES, NUM_IMAGES + 10))
        code, output = run_ingest(recipe, "--set", "shards.name=extended")
        assert code == 0, output
    assert read_funnel(store).success == NUM_IMAGES + 10
    assert {name: store.read(f"ledger/{name}") for name in first} == first
    extended = store.read_table("shards/extended/index.parquet")["num_samples"].to_pylist()
    heldout = store.read_table("shards/extended-heldout/index.parquet")["num_samples"].to_pylist()
    assert sum(extended) + sum(heldout) == NUM_IMAGES + 10
    report = json.loads(store.read("reports/ingest.json"))
    assert report["seen"] == report["success"] == NUM_IMAGES + 10
