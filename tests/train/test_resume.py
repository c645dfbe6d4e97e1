"""A run that is killed and resumed gives the same losses as one that was not."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_runs import samples_of_steps, start_training

from train.audit import audit_run, verify_resume
from train.checkpoint import committed_checkpoints
from train.metrics import read_metrics

MAX_WAIT_S = 300


def losses(run_dir: Path) -> list[tuple[int, int, float, float]]:
    return [(entry["step"], entry["samples"], entry["loss"], entry["grad_norm"]) for entry in read_metrics(run_dir)]


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=MAX_WAIT_S)
    assert process.returncode == 0, output
    return output


def kill_after(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """SIGKILL a training process once it has logged a step."""
    give_up_at = time.monotonic() + MAX_WAIT_S
    while not any(entry["step"] >= step for entry in read_metrics(run_dir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(committed_checkpoints(run_dir)[-1] / "model" / "model.safetensors")


def run_twice(make_run: Callable[..., Path], *overrides: str) -> tuple[Path, Path]:
    """Two run folders that train the same."""
    return make_run("name=straight", *overrides), make_run("name=killed", *overrides)


@pytest.mark.slow
def test_forty_steps_equal_twenty_kill_twenty_bit_for_bit(make_run: Callable[..., Path], tmp_path: Path) -> None:
    length = samples_of_steps(make_run("name=count"), 40)
    options = [f"train.length={length}", f"train.checkpoint.every={length // 2}"]
    straight, killed = run_twice(make_run, *options)
    recipe = tmp_path / "recipe.yaml"
    finish(start_training(recipe, "name=straight", *options))

    first = start_training(recipe, "name=killed", *options)
    kill_after(first, killed, step=25)
    assert len(committed_checkpoints(killed)) == 1
    output = finish(start_training(recipe, "name=killed", *options))

    assert len(losses(straight)) == 40
    assert losses(killed) == losses(straight), output
    ours, theirs = weights(killed), weights(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for run_dir in (straight, killed):
        assert audit_run(run_dir).problems == []
        assert verify_resume(run_dir, 30).problems == []


@pytest.mark.slow
def test_two_processes_and_accumulation_give_the_losses_of_one(make_run: Callable[..., Path], tmp_path: Path) -> None:
    length = samples_of_steps(make_run("name=count"), 6)
    one, two = make_run("name=one", f"train.length={length}"), make_run("name=two", f"train.length={length}")
    recipe = tmp_path / "recipe.yaml"
    finish(start_training(recipe, "name=one", f"train.length={length}"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [
        start_training(recipe, "name=two", f"train.length={length}", rank=rank, world_size=2, port=port)
        for rank in (0, 1)
    ]
    for process in group:
        finish(process)
    assert [entry[:2] for entry in losses(two)] == [entry[:2] for entry in losses(one)]
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)
        assert ours[3] == pytest.approx(theirs[3], rel=1e-3)
    assert audit_run(two).problems == []


def test_a_half_written_checkpoint_does_not_count(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    (run_dir / "checkpoints" / "step-00000007" / "model").mkdir(parents=True)
    assert committed_checkpoints(run_dir) == []
