"""A run that is killed and resumed gives the same losses as one that was not, on other processes too."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from groups import Group, is_saved
from safetensors.torch import load_file
from train_runs import samples_of_steps

from train.audit import audit_run, verify_resume
from train.checkpoints import committed_checkpoints
from train.metrics import read_metrics

pytestmark = pytest.mark.slow


def losses(run_dir: Path) -> list[tuple[int, int, float, float]]:
    return [(entry["step"], entry["samples"], entry["loss"], entry["grad_norm"]) for entry in read_metrics(run_dir)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(committed_checkpoints(run_dir)[-1] / "model" / "model.safetensors")


def kill_behind_checkpoint(group: Group, run_dir: Path, num_checkpoints: int = 1, step: int = 0) -> None:
    """SIGKILL a group once it has so many checkpoints, and a step on top."""
    group.wait_until(is_saved(run_dir, num_checkpoints, step))
    group.kill()


@pytest.mark.parametrize(
    ("world_size", "stage", "num_steps", "options"),
    [
        (1, 1, 40, ["train.precision=fp32"]),
        (2, 1, 12, ["train.precision=fp32"]),
        (2, 2, 12, ["train.precision=fp32"]),
        (2, 3, 8, ["train.precision=bf16"]),
        (1, 1, 8, ["train.precision=fp32", "train.compile=true"]),
    ],
    ids=str,
)
def test_killed_and_resumed_is_bit_for_bit_the_run_that_was_not(
    make_run: Callable[..., Path], tmp_path: Path, world_size: int, stage: int, num_steps: int, options: list[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    length = samples_of_steps(make_run("name=count"), num_steps)
    options = [*options, f"train.length={length}", f"train.checkpoint.every={length // 2}", f"train.zero.stage={stage}"]
    straight, killed = make_run("name=straight", *options), make_run("name=killed", *options)
    first = Group(recipe, "name=killed", *options, world_size=world_size)
    kill_behind_checkpoint(first, killed, step=num_steps // 2 + 2)
    assert len(committed_checkpoints(killed)) == 1
    Group(recipe, "name=killed", *options, world_size=world_size).finish()
    Group(recipe, "name=straight", *options, world_size=world_size).finish()

    assert len(losses(straight)) == num_steps
    assert losses(killed) == losses(straight)
    ours, theirs = weights(killed), weights(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for run_dir in (straight, killed):
        assert audit_run(run_dir).problems == []
        assert verify_resume(run_dir, 30).problems == []


def test_a_run_goes_on_with_other_processes_and_other_stages(make_run: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    length = samples_of_steps(make_run("name=count"), 18)
    options = [f"train.length={length}", f"train.checkpoint.every={length // 3}"]
    straight, moved = make_run("name=straight", *options), make_run("name=moved", *options)
    Group(recipe, "name=straight", *options).finish()

    kill_behind_checkpoint(Group(recipe, "name=moved", *options, world_size=2), moved)
    kill_behind_checkpoint(Group(recipe, "name=moved", *options, "train.zero.stage=3"), moved, num_checkpoints=2)
    Group(recipe, "name=moved", *options, "train.zero.stage=2", "train.threads=2", world_size=2).finish()

    assert [entry[:2] for entry in losses(moved)] == [entry[:2] for entry in losses(straight)]
    for ours, theirs in zip(losses(moved), losses(straight), strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=1e-5)
        assert ours[3] == pytest.approx(theirs[3], rel=1e-4)
    assert audit_run(moved).problems == []
