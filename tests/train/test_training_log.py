"""What a real run writes down: its log, its trackers, its trace, the average of its weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from groups import Group
from safetensors.torch import load_file
from train_runs import samples_of_steps

from jobs.cluster.exporter import read_numbers
from train.checkpoints import committed_checkpoints
from train.metrics import read_metrics
from train.profiler import PROFILE_FOLDER
from train.sinks import TENSORBOARD_FOLDER


@pytest.mark.slow
def test_a_run_of_two_sources_shows_all_that_is_asked_of_it(make_run: Callable[..., Path], tmp_path: Path) -> None:
    options = [
        "train.sources={web: {dataset: demo, weight: 3}, extra: {dataset: demo, weight: 1}}",
        "train.log.to=[tensorboard]",
        "train.profile={from_step: 3, num_steps: 1}",
        "train.ema={decay: 0.9}",
    ]
    length = samples_of_steps(make_run("name=count", *options), 6)
    options += ["name=shown", f"train.length={length}", f"train.checkpoint.every={length // 2}"]
    run_dir = make_run(*options)
    Group(tmp_path / "recipe.yaml", *options).finish()

    entries = read_metrics(run_dir)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    for entry in entries:
        losses = entry["source_losses"]
        assert losses
        assert min(losses.values()) - 1e-3 <= entry["loss"] <= max(losses.values()) + 1e-3
        assert sum(entry["time_shares"].values()) == pytest.approx(1, abs=0.05)
        assert all(entry["time_shares"][phase] > 0 for phase in ("forward", "backward", "optimiser"))
    assert sum(entry["checkpoint_stall_s"] > 0 for entry in entries) == 1
    assert {name for entry in entries for name in entry["source_losses"]} == {"web", "extra"}
    numbers = read_numbers(run_dir)
    assert numbers["genlip_train_samples_seen"] == numbers["genlip_train_samples_planned"] == length
    assert numbers["genlip_train_loss_nats"] == entries[-1]["loss"]
    assert list((run_dir / TENSORBOARD_FOLDER).iterdir())
    assert (run_dir / PROFILE_FOLDER / "steps-3-3.json.gz").exists()
    for checkpoint in committed_checkpoints(run_dir):
        weights, average = (load_file(checkpoint / name / "model.safetensors") for name in ("model", "model-ema"))
        assert weights.keys() == average.keys()
        assert not all(torch.equal(weights[name], average[name]) for name in weights)
