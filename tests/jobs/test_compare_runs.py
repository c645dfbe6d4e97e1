"""`genlip compare`: which runs it makes of a recipe; that it stops, goes on, and reports what failed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.compare.runs import plan_runs
from jobs.recipe import check_recipe, load_recipe
from pipeline.curate.spec import CurateSpec
from pipeline.errors import EXIT_FAILED_UNITS, EXIT_PREEMPTED, UserError
from pipeline.recipe import ShardSpec
from tests.environment import without_group
from tests.stores import Stored, curate_in_turn, make_store, noise
from train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
LEAST: dict[str, Any] = {
    "name": "test",
    "store": "store",
    "ingest": {"source": {"urls": "urls.parquet"}},
    "train": {"length": "8k samples", "lanes": 4},
}
MAX_WAIT_S = 120.0


def recipe_with(**compare: Any) -> Any:
    return check_recipe(LEAST | {"compare": compare}, "recipe.yaml")


# ---------------------------------------------------------------- the runs of a recipe


def test_a_run_for_each_objective_and_seed() -> None:
    runs = plan_runs(recipe_with(objectives=["genlip", "clip"], seeds=[3, 5]))
    assert [run.title for run in runs] == ["genlip s3", "clip s3", "genlip s5", "clip s5"]
    assert [run.recipe.name for run in runs[:2]] == ["test-genlip-s3", "test-clip-s3"]
    assert {run.recipe.tokenizer.path for run in runs} == {"runs/test/tokenizer"}
    for run in runs:
        assert (run.recipe.objective.kind, run.recipe.seed) == (run.objective, run.seed)


def test_runs_differ_in_nothing_but_what_was_asked_for() -> None:
    overrides = {"clip": {"train": {"optim": {"lr": 5e-4}}}, "mae": {"objective": {"mask_ratio": 0.5}}}
    runs = plan_runs(recipe_with(seeds=[1], overrides=overrides))
    contents = {run.objective: run.recipe.model_dump(mode="json", exclude={"name", "objective"}) for run in runs}
    learning_rates = {name: content["train"]["optim"].pop("lr") for name, content in contents.items()}
    micro_rows = {name: content["train"].pop("micro_rows") for name, content in contents.items()}
    assert all(content == contents["genlip"] for content in contents.values())
    assert learning_rates == dict.fromkeys(contents, 1e-3) | {"clip": 5e-4}
    assert micro_rows == {"genlip": 1, "clip": 4, "siglip": 4, "mae": 1, "cappa": 1}
    assert [run.recipe.objective.mask_ratio for run in runs if run.objective == "mae"] == [0.5]


@pytest.mark.parametrize(
    ("compare", "told"),
    [
        ({"objectives": ["clap"]}, "compare.objectives"),
        ({"objectives": []}, "compare.objectives"),
        ({"seeds": [1, 1]}, "each stands once"),
        ({"seed": [1]}, "did you mean compare.seeds"),
        ({"overrides": {"clip": {"model": {"preset": "b16"}}}}, "clip.model must be the same for all"),
        ({"overrides": {"clip": {"train": {"length": 9}}}}, "clip.train.length must be the same for all"),
        ({"overrides": {"clip": {"objective": {"kind": "mae"}}}}, "clip.objective.kind must be the same"),
        ({"overrides": {"clip": {"train": {"optim": {"lrr": 1}}}}}, "did you mean train.optim.lr"),
    ],
)
def test_what_is_wrong_in_the_section_is_named(compare: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_runs(recipe_with(**compare))
    assert told in caught.value.message
    assert "compare" in caught.value.message


def test_the_shipped_recipe_compares_all_objectives_with_large_batches() -> None:
    recipe = load_recipe(ROOT / "jobs" / "recipes" / "demo_compare.yaml")
    runs = plan_runs(recipe)
    assert len(runs) == 15
    assert {run.recipe.train.micro_rows for run in runs if run.objective in ("clip", "siglip")} == {recipe.train.lanes}


# ---------------------------------------------------------------- the command


def write_recipe(folder: Path) -> Path:
    """Pairs of two classes, and a recipe of which one of the two runs cannot begin."""
    words = ("red", "green", "blue", "small", "large")
    samples = [
        Stored(
            f"k{number:03}",
            f"a {words[number % 5]} {kind} beside {words[number % 3]} {kind}s, number {number}",
            noise(number),
            meta={"class_name": kind},
        )
        for number in range(80)
        for kind in [("apple", "house")[number % 2]]
    ]
    store = make_store([samples], str(folder / "store"))
    curate_in_turn(store, CurateSpec(), ShardSpec(name="demo", shard_samples=40, holdout=0.3), seed=0)
    content = LEAST | {
        "store": str(folder / "store"),
        "runs": str(folder / "runs"),
        "shards": {"name": "demo"},
        "tokenizer": {"vocab_size": 300},
        "model": {"preset": "nano8", "image_px": 32},
        "train": {
            "length": 400,
            "lanes": 2,
            "row_tokens": 192,
            "precision": "fp32",
            "threads": 1,
            "log_every": 1,
            "optim": {"warmup": 20},
        },
        "eval": {"tasks": ["zero_shot", "knn"], "max_images": 12, "every": 200, "every_images": 8},
        "compare": {
            "objectives": ["genlip", "siglip"],
            "seeds": [7],
            "parallel": 1,
            "overrides": {"siglip": {"train": {"init_from": str(folder / "nowhere")}}},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def start(recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    environment = without_group() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "jobs.cli", "compare", str(recipe)]
    with output.open("wb") as stream:
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)


def wait_until(process: subprocess.Popen[bytes], output: Path, is_reached: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + MAX_WAIT_S
    while not is_reached():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < give_up_at, output.read_text()
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_reports_what_failed(tmp_path: Path) -> None:
    path, output = write_recipe(tmp_path), tmp_path / "output.txt"
    genlip, siglip = plan_runs(load_recipe(path))
    stopped = start(path, output)
    try:
        wait_until(stopped, output, lambda: bool(read_metrics(genlip.run_dir)))
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(MAX_WAIT_S) == EXIT_PREEMPTED, output.read_text()
    finally:
        stopped.kill()
    assert 0 < genlip.samples_seen() < genlip.recipe.train.length

    again = start(path, output)
    try:
        assert again.wait(MAX_WAIT_S) == EXIT_FAILED_UNITS, output.read_text()
    finally:
        again.kill()
    assert genlip.is_done()
    assert not siglip.is_done()
    assert f"missing: siglip s7; why: tail {siglip.log}" in output.read_text()
    assert "nowhere" in siglip.log.read_text()
    steps = [line["step"] for line in read_metrics(genlip.run_dir)]
    assert steps == sorted(set(steps))
    folder = tmp_path / "runs" / "test"
    content = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    values = {row["name"]: row["values"]["genlip"]["mean"] for row in content["rows"]}
    assert 0 <= values["zero_shot/names_top1"] <= 1
    assert 0 <= values["knn/top1"] <= 1
    assert content["curves"]["genlip"][0]["samples_P"][-1] >= 200
    assert str(siglip.log) in (folder / "compare.html").read_text(encoding="utf-8")
