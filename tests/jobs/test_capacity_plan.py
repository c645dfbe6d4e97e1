"""`genlip plan --scale`: each number follows from its inputs, and what is not known is said instead of invented."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.capacity.inputs import Inputs, parse_rows, read_inputs
from jobs.capacity.page import plan_page
from jobs.capacity.record import measured_here, write_bench
from jobs.capacity.sheet import Sheet
from jobs.capacity.stages import plan_curate, plan_ingest, plan_shards
from jobs.capacity.training import plan_train
from jobs.recipe import Recipe, check_recipe, load_recipe
from pipeline.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "plan_scale.txt"
RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
EXACT = 1e-9

CAPACITY: dict[str, Any] = {
    "node_types": {
        "cpu": {"cores": 16, "network_gbit_per_s": 10, "price_per_hour": 0.5},
        "gpu": {"cores": 96, "gpus": 8, "network_gbit_per_s": 100, "price_per_hour": 20},
    },
    "stages": {
        "ingest": {"node": "cpu", "nodes": 50},
        "curate": {"node": "cpu", "nodes": 10},
        "shards": {"node": "cpu", "nodes": 10},
        "train": {"node": "gpu", "nodes": 8},
    },
    "storage_months": 2,
    "prices": {"storage_gb_month": 0.02, "put_per_1000": 0.005, "get_per_1000": 0.0004, "egress_per_gb": 0.01},
    "assumed": {
        "success_share": 0.75,
        "selected_share": 0.5,
        "sample_bytes": 50_000,
        "download_bytes": 100_000,
        "download_s": 1.5,
        "source": "a test",
    },
    "throughput": {
        "ingest_rows_per_s_core": 400,
        "annotate_samples_per_s_core": 500,
        "select_samples_per_s_core": 200_000,
        "shards_samples_per_s_core": 2_000,
        "train_samples_per_s_device": 1_000,
        "train_efficiency": 0.9,
        "source": "a test",
    },
}


def recipe_with(tmp_path: Path, **changes: Any) -> Recipe:
    """A recipe with everything that the plan can be told, less or more."""
    content = {
        "name": "run",
        "store": str(tmp_path / "store"),
        "runs": str(tmp_path / "runs"),
        "ingest": {"source": {"urls": "x.parquet"}, "unit_samples": 10_000},
        "curate": {"annotate": [{"caption_stats": {}}], "select": {"dedup": {"near_bits": 2}}},
        "train": {"length": "8B samples", "lanes": 512},
        "capacity": CAPACITY | changes,
    }
    return check_recipe(content, "test")


def sheets(inputs: Inputs) -> list[Sheet]:
    return [make(inputs) for make in (plan_ingest, plan_curate, plan_shards, plan_train)]


def totals(inputs: Inputs) -> dict[str, float]:
    found = {}
    for sheet in sheets(inputs):
        found |= {f"{sheet.name} {name}": term.value for name, term in sheet.totals.items() if not term.missing}
    return found


def lines_of(sheet: Sheet) -> dict[str, tuple[str, str]]:
    return {line.label: (line.result, line.formula) for line in sheet.lines}


def test_each_number_follows_from_its_inputs(tmp_path: Path) -> None:
    ingest, curate, shards, train = sheets(read_inputs(recipe_with(tmp_path), "8B"))

    rows, stored, trained_on = 8e9, 6e9, 3e9
    assert ingest.totals["hours"].value == pytest.approx(rows * 1.5 / (128 * 16 * 50) / 3600)
    assert ingest.limit == "hosts"
    assert lines_of(ingest)["CPU"] == (
        "6.94 h",
        "= 8,000,000,000 rows ÷ (400 rows/s per core × 16 cores × 50 nodes)",
    )
    assert lines_of(ingest)["hosts"][0] == f"{rows * 1.5 / (128 * 16 * 50) / 3600:.1f} h"
    assert lines_of(ingest)["network"][0] == f"{rows * 1e5 / (50 * 1e10 / 8 * 0.8) / 3600:.2f} h"
    num_parts = -(-(10_000 * 0.75 * 50_000) // (5 * 2**20))
    assert ingest.totals["put"].value == 800_000 * (num_parts + 2 + 1)
    assert curate.totals["hours"].value > stored / (500 * 16 * 10) / 3600
    assert shards.totals["bytes"].value == pytest.approx(trained_on * 50_000)
    assert shards.totals["get"].value == pytest.approx(trained_on + 800_000 * 8)
    assert shards.totals["hours"].value == pytest.approx(trained_on / 5500 / 3600)  # one range serves no more
    assert shards.limit == "GET on raw/"
    assert lines_of(train)["computing"][0] == f"{rows / (1000 * 64 * 0.9) / 3600:.1f} h"
    assert lines_of(train)["passes"][0] == "2.67"
    machines, requests = 10 * shards.totals["hours"].value * 0.5, (29_700_000 * 0.005 + 3_006_400_000 * 0.0004) / 1000
    assert shards.totals["money"].value == pytest.approx(machines + requests + 150_000 * 0.02 * 2)


def test_a_split_folder_serves_more_requests(tmp_path: Path) -> None:
    one = plan_shards(read_inputs(recipe_with(tmp_path), "8B"))
    many = plan_shards(read_inputs(recipe_with(tmp_path, requests={"partitions": 100}), "8B"))
    assert one.warnings
    needed = int(re.search(r"([\d,]+) key ranges are half busy", one.warnings[0])[1].replace(",", ""))  # type: ignore[index]
    enough = plan_shards(read_inputs(recipe_with(tmp_path, requests={"partitions": needed}), "8B"))
    assert many.totals["hours"].value < one.totals["hours"].value
    assert enough.limit == "network"
    assert not [text for text in enough.warnings if "raw/" in text]


@settings(max_examples=30)
@given(
    rows=st.integers(10**4, 10**10),
    factor=st.integers(2, 50),
    nodes=st.integers(1, 64),
    success=st.floats(0.01, 1),
    sample_bytes=st.floats(500, 5e6),
)
def test_more_rows_take_more_of_everything(
    tmp_path_factory: pytest.TempPathFactory, rows: int, factor: int, nodes: int, success: float, sample_bytes: float
) -> None:
    stages = {name: one | {"nodes": nodes} for name, one in CAPACITY["stages"].items()}
    assumed = CAPACITY["assumed"] | {"success_share": success, "sample_bytes": sample_bytes}
    recipe = recipe_with(tmp_path_factory.getbasetemp(), stages=stages, assumed=assumed)
    few, many = totals(read_inputs(recipe, str(rows))), totals(read_inputs(recipe, str(factor * rows)))
    assert few.keys() == many.keys()
    for name, value in many.items():
        if "curate" in name:  # near-duplicates are compared in pairs, of a whole number of samples
            assert value >= few[name] * factor * 0.999
        elif name == "train bytes":  # checkpoints
            assert value == few[name]
        else:
            assert value == pytest.approx(few[name] * factor)


@settings(max_examples=20)
@given(factor=st.integers(2, 100))
def test_more_nodes_take_less_time_and_no_fewer_node_hours(
    tmp_path_factory: pytest.TempPathFactory, factor: int
) -> None:
    more = {name: one | {"nodes": one["nodes"] * factor} for name, one in CAPACITY["stages"].items()}
    folder = tmp_path_factory.getbasetemp()
    split = {"partitions": 100_000}  # else the store's limit decides, whatever the number of nodes
    few = totals(read_inputs(recipe_with(folder, requests=split), "1B"))
    many = totals(read_inputs(recipe_with(folder, requests=split, stages=more), "1B"))
    for stage in ("ingest", "curate", "shards", "train"):
        assert many[f"{stage} hours"] <= few[f"{stage} hours"] * (1 + EXACT)
        assert many[f"{stage} node_hours"] >= few[f"{stage} node_hours"] * (1 - EXACT)


@pytest.mark.parametrize(
    ("text", "rows"), [("8B", 8 * 10**9), ("800M", 8 * 10**8), ("60k samples", 60_000), ("1.5e9", 15 * 10**8)]
)
def test_numbers_of_rows(text: str, rows: int) -> None:
    assert parse_rows(text) == rows


@pytest.mark.parametrize("text", ["8X", "", "-3", "0", "nan", "inf", "1e400"])
def test_what_is_no_number_of_rows_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="8B, 800M, 60k"):
        parse_rows(text)


def test_units_too_small_for_the_driver_are_said(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    small = recipe.model_copy(update={"ingest": recipe.ingest.model_copy(update={"unit_samples": 100})})
    ingest = plan_ingest(read_inputs(small, "8B"))
    assert ingest.limit == "driver"
    assert "raise ingest.unit_samples" in ingest.warnings[0]


def test_an_unknown_node_type_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"capacity: stages\.ingest\.node: no node type is called 'cpuu'; did you mean"):
        recipe_with(tmp_path, stages={"ingest": {"node": "cpuu"}})


def test_an_assumption_must_say_where_it_is_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"capacity\.assumed: say in `source` where success_share comes from"):
        recipe_with(tmp_path, assumed={"success_share": 0.7})


def test_nothing_is_invented(tmp_path: Path) -> None:
    inputs = read_inputs(recipe_with(tmp_path, throughput={}, assumed={}, prices={}, stages={}), "8B")
    page = "\n".join(plan_page(inputs))
    for sheet in sheets(inputs):
        assert sheet.totals["hours"].missing
        assert sheet.totals["money"].missing
    for next_step in (
        "genlip bench RECIPE --only ingest",
        "genlip bench RECIPE --only train",
        "capacity.assumed.success_share",
        "capacity.stages.shards",
        "capacity.prices.put_per_1000",
    ):
        assert next_step in page
    assert "800,000 units" in page  # what is known is said nevertheless


def test_devices_to_which_the_lanes_cannot_be_dealt_are_said(tmp_path: Path) -> None:
    throughput = CAPACITY["throughput"] | {"train_efficiency": None}
    stages = {"train": {"node": "gpu", "nodes": 7}}
    train = plan_train(read_inputs(recipe_with(tmp_path, throughput=throughput, stages=stages), "8B"))
    assert lines_of(train)["efficiency"] == ("?", "not known: how 512 lanes are dealt to 56 devices, 1 at a time")


def test_a_slower_network_between_the_nodes_makes_training_less_efficient(tmp_path: Path) -> None:
    throughput = CAPACITY["throughput"] | {"train_samples_per_s_device": None, "train_efficiency": None}
    numbers = {"samples_per_s_device": 1500.0, "samples_per_row": 60.0, "num_parameters": 3.0e8}

    def plan(gbit_per_s: float) -> Sheet:
        gpu = CAPACITY["node_types"]["gpu"] | {"interconnect_gbit_per_s": gbit_per_s}
        node_types = CAPACITY["node_types"] | {"gpu": gpu}
        recipe = recipe_with(tmp_path, throughput=throughput, node_types=node_types)
        write_bench(recipe.run_dir, {"train": measured_here(recipe, "train", numbers, "", gpu="some GPU")})
        return plan_train(read_inputs(recipe, "8B"))

    fast, slow = plan(3200), plan(50)
    step_s = 512 * 60 / 64 / 1500
    assert lines_of(fast)["efficiency"][1].startswith(f"= {step_s:.3g} s ÷ ({step_s:.3g} s + ")
    shares = [float(lines_of(sheet)["efficiency"][0].removesuffix(" %")) for sheet in (fast, slow)]
    assert 90 < shares[0] < 100
    assert 5 < shares[1] < shares[0]
    speed = float(lines_of(fast)["speed"][0].removesuffix(" samples/s").replace(",", ""))
    assert speed == pytest.approx(1500 * 64 * shares[0] / 100, rel=0.01)


def test_the_page_is_the_golden_one(tmp_path: Path) -> None:
    assert "\n".join(plan_page(read_inputs(recipe_with(tmp_path), "8B"))) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_the_example_recipe_can_be_planned(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "capacity_example.yaml", [f"store={tmp_path}", f"runs={tmp_path}"])
    assert "replace" in "\n".join(plan_page(read_inputs(recipe, "8B")))


def test_the_command_prints_the_plan_and_refuses_other_scales(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_with(tmp_path).model_dump(mode="json")))

    def plan(scale: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.cli", "plan", str(path), "--scale", scale]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done, refused = plan("8B"), plan("8X")
    assert (done.returncode, refused.returncode) == (0, 2)
    assert done.stdout == GOLDEN.read_text(encoding="utf-8")
    assert "--scale 8X: not a number of rows" in refused.stderr
