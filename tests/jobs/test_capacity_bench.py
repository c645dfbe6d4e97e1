"""`genlip bench` measures the recipe's own settings here, and the plan calculates with what it has found."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.capacity.bench import bench
from jobs.capacity.inputs import read_inputs
from jobs.capacity.measure_store import probe_store
from jobs.capacity.page import plan_page
from jobs.capacity.record import read_bench
from jobs.capacity.stages import plan_curate, plan_ingest, plan_shards
from jobs.capacity.terms import show_hours
from jobs.demo.corpus import FIXTURES
from jobs.recipe import Recipe, check_recipe
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from tests.s3_server import serve_s3

CAPACITY = {
    "node_types": {"cpu": {"cores": 16, "network_gbit_per_s": 100}},
    "stages": {stage: {"node": "cpu", "nodes": 10} for stage in ("ingest", "curate", "shards", "train")},
    "assumed": {"success_share": 0.5, "selected_share": 0.5, "sample_bytes": 5000, "source": "a test"},
}
SHORT_S = 0.1


def recipe_in(folder: Path, **ingest: Any) -> Recipe:
    content = {
        "name": "run",
        "store": str(folder / "store"),
        "runs": str(folder / "runs"),
        "ingest": {"source": {"urls": "x.parquet"}, "fetch": {"in_flight": 16}} | ingest,
        "curate": {"annotate": [{"caption_stats": {}}], "select": {"where": {"long": "words > 3"}}},
        "train": {"length": 1000},
        "capacity": CAPACITY,
    }
    return check_recipe(content, "test")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe was measured."""
    folder = tmp_path_factory.mktemp("bench")
    assert bench(recipe_in(folder), corpus=FIXTURES, seconds=SHORT_S) == 0
    return folder


def test_every_stage_is_measured_or_says_what_it_waits_for(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_bench(recipe_in(measured).run_dir)
    assert set(found) == {"ingest", "annotate", "select", "shards", "store"}
    assert all(value > 0 for one in found.values() for value in one.numbers.values())
    assert found["ingest"].numbers["kept_share"] == 1
    assert 2_000 < found["ingest"].numbers["sample_bytes"] < 20_000  # an emoji of 2 kB, and its texts
    assert all(one.machine.cores > 0 and one.versions["packages"]["pyarrow"] for one in found.values())
    assert not (measured / "store").exists() or not list((measured / "store").iterdir())  # the probe is removed

    assert bench(recipe_in(measured), only=["train"]) == EXIT_FAILED_UNITS
    assert "this run has no tokenizer; next: run: genlip tokenizer RECIPE" in capsys.readouterr().out
    assert read_bench(recipe_in(measured).run_dir) == found  # what cannot be measured here stays as it was


def test_the_plan_calculates_with_what_was_measured(measured: Path) -> None:
    recipe = recipe_in(measured)
    found, inputs = read_bench(recipe.run_dir), read_inputs(recipe, "1B")
    speeds = {name: found[name].numbers["samples_per_s_core"] for name in ("annotate", "select", "shards")}
    cores, stored, trained_on = 160, 5e8, 2.5e8
    hours = 1e9 / found["ingest"].numbers["rows_per_s_core"] / cores / 3600
    assert plan_ingest(inputs).totals["hours"].value == pytest.approx(hours)
    assert plan_ingest(inputs).totals["bytes"].value == pytest.approx(
        stored * 5000 + 1e9 * found["ingest"].numbers["ledger_bytes_per_row"]
    )
    curate = {line.label: line for line in plan_curate(inputs).lines}
    assert curate["CPU"].formula.startswith("= 500,000,000 samples ÷ (")
    assert plan_curate(inputs).totals["hours"].value >= stored / speeds["annotate"] / cores / 3600
    shards = {line.label: line for line in plan_shards(inputs).lines}
    assert shards["CPU"].result == show_hours(trained_on / speeds["shards"] / cores / 3600)
    page = "\n".join(plan_page(inputs))
    assert f"genlip bench, {found['ingest'].measured_utc[:10]}" in page
    assert "genlip bench RECIPE --only train" in page


def test_what_was_measured_with_other_settings_is_not_used(measured: Path) -> None:
    recipe = recipe_in(measured, image={"size_px": 777})
    ingest = plan_ingest(read_inputs(recipe, "1B"))
    assert ingest.totals["hours"].missing.startswith("measurement of ingest with these settings: ingest.image.size_px")
    assert not plan_shards(read_inputs(recipe, "1B")).totals["hours"].missing


def test_a_corpus_of_which_nothing_is_kept_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_in(tmp_path, filters=[{"caption_words": {"min": 1000, "max": 2000}}])
    assert bench(recipe, only=["ingest", "shards"], corpus=FIXTURES, seconds=SHORT_S) == EXIT_FAILED_UNITS
    assert "nothing of the corpus is kept; why: rejected:caption_" in capsys.readouterr().out
    assert not recipe.run_dir.exists()


def test_the_probe_of_a_store_leaves_nothing_in_a_bucket() -> None:
    with serve_s3() as (server, url):
        numbers, _ = probe_store(f"{url}/store")
        assert all(value > 0 for value in numbers.values())
        assert [request for request in server.requests if request.startswith("PUT")]
        assert not server.files


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one of: ingest, annotate"):
        bench(recipe_in(tmp_path), only=["tain"])


def test_the_record_is_json_by_stage(measured: Path) -> None:
    content = json.loads((recipe_in(measured).run_dir / "bench.json").read_text())
    assert content["store"]["numbers"].keys() == {"write_mb_per_s", "read_mb_per_s", "put_ms", "get_ms"}
    assert content["ingest"]["settings"]["ingest"]["image"]
