"""`genlip bench` measures training on a device of this machine, and `genlip plan --scale` goes on from it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from groups import Group

from jobs.capacity.inputs import read_inputs
from jobs.capacity.record import read_bench
from jobs.capacity.requests import TRAIN_GETS_PER_SHARD
from jobs.capacity.training import plan_train
from jobs.recipe import load_recipe
from tests.s3_server import serve_s3
from train.recipe import TrainJob
from train.setup import set_up

CAPACITY = {
    "node_types": {
        "cpu": {"cores": 2, "network_gbit_per_s": 10, "price_per_hour": 1},
        "gpu": {"cores": 2, "gpus": 2, "network_gbit_per_s": 10},
    },
    "stages": {"train": {"node": "cpu"}},
}


@pytest.mark.slow
def test_training_is_measured_and_planned_with(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"capacity": CAPACITY}))
    before = {file: file.stat().st_mtime_ns for file in run_dir.rglob("*")}
    group = Group(path, words=["bench", "--only", "train"])
    group.finish()
    after = {file: file.stat().st_mtime_ns for file in run_dir.rglob("*") if file.name != "bench.json"}
    assert after == before

    numbers = read_bench(run_dir)["train"].numbers
    recipe = load_recipe(path)
    train = plan_train(read_inputs(recipe, "10M"))
    lines = {line.label: line for line in train.lines}
    assert 0 < numbers["samples_per_s_device"] < 10_000
    assert "samples/s per device × 2 cores × 1 node ×" in lines["speed"].formula
    assert f"2 checkpoints × {numbers['num_parameters']:,.0f} parameters × 16.0 B" in lines["storage"].formula
    assert f"a step of {2 * numbers['samples_per_row']:,.0f} samples, ZeRO" in lines["efficiency"].formula
    efficiency = float(lines["efficiency"].result.removesuffix(" %")) / 100
    hours = 10_000_000 / numbers["samples_per_s_device"] / 2 / efficiency / 3600
    assert train.totals["hours"].value == pytest.approx(hours, rel=0.01)

    on_gpus = load_recipe(path, ["capacity.stages.train.node=gpu"])
    refused = plan_train(read_inputs(on_gpus, "10M")).totals["hours"].missing
    assert refused == "speed of gpu: train was measured on a machine without a GPU"


def test_indexes_of_shards_cost_as_many_requests_as_the_plan_counts_on(
    make_run: Callable[..., Path], small_store: Path
) -> None:
    run_dir = make_run()
    with serve_s3() as (server, url):
        for file in (small_store / "store").rglob("*"):
            if file.is_file():
                key = file.relative_to(small_store / "store")
                server.files[f"/{server.bucket}/store/{key}"] = file.read_bytes()
        setup = set_up(run_dir, TrainJob.read(run_dir).model_copy(update={"store": f"{url}/store"}))
        setup.stream.segment(0)  # the whole pass of so small a store
        of_shards = [request for request in server.requests if "/shard-" in request]
        num_shards = setup.sources[0].dataset.num_shards
    assert num_shards * 2 <= len(of_shards) <= num_shards * TRAIN_GETS_PER_SHARD
