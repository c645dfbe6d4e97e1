"""Real trouble: signals, a process that stands still, numbers that blow up, and losses that jump."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import Group, is_past
from train_runs import samples_of_steps

from pipeline.errors import EXIT_PREEMPTED, EXIT_USAGE
from train.audit import audit_run
from train.checkpoints import Checkpoints, TrainState, committed_checkpoints, latest_checkpoint, read_state
from train.checkpoints.engine_state import EngineState
from train.data.loader import Loader
from train.faults import REFUSED_STEPS
from train.jsonl import read_lines
from train.loop import Trainer
from train.main import begin
from train.metrics import read_metrics
from train.setup import set_up


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run("train.length=1000000")
    last = 0
    for number, rank in ((signal.SIGTERM, 1), (signal.SIGUSR1, 0)):
        group = Group(tmp_path / "recipe.yaml", "train.length=1000000", world_size=2)
        group.wait_until(is_past(run_dir, last + 2))
        group.send(number, rank)
        assert group.wait() == [EXIT_PREEMPTED, EXIT_PREEMPTED], group.output
        assert "stopped on request" in group.output
        last = read_state(latest_checkpoint(run_dir)).step
        assert last == read_metrics(run_dir)[-1]["step"]
    assert audit_run(run_dir).problems == []


@pytest.mark.slow
def test_a_process_that_stands_still_makes_the_others_write_their_stacks_and_end(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    options = ["train.length=1000000", "train.faults.hang_s=4"]
    run_dir = make_run(*options)
    group = Group(tmp_path / "recipe.yaml", *options, world_size=2)
    group.wait_until(is_past(run_dir, 2))
    group.send(signal.SIGSTOP, rank=1)
    group.processes[0].join()
    group.kill()
    assert group.processes[0].exitcode == 1
    stacks = (run_dir / "stacks-0.txt").read_text()
    assert "Timeout" in stacks
    assert "in train_step" in stacks
    assert stacks.count("Thread 0x") > 1


@pytest.mark.slow
def test_a_run_that_blows_up_stops_with_its_weights_intact(make_run: Callable[..., Path], tmp_path: Path) -> None:
    options = ["train.optim.lr=1.0e+30", "train.optim.warmup=0", "train.faults.max_refused_steps=2"]
    options += ["train.checkpoint.every=8"]
    run_dir = make_run(*options)
    group = Group(tmp_path / "recipe.yaml", *options, world_size=2)
    assert group.wait() == [EXIT_USAGE, EXIT_USAGE], group.output
    assert "3 steps of this run were refused" in group.output
    refused = read_lines(run_dir / REFUSED_STEPS)
    assert len(refused) == 3
    setup = set_up(run_dir)
    for line in refused:
        assert "nan" in line["reason"] or "inf" in line["reason"]
        assert len(line["keys_by_rank"]) == 2
        assert sum(map(len, line["keys_by_rank"])) == line["num_samples"] > 0
    known = {key for shard in range(setup.sources[0].dataset.num_shards) for key in _keys(setup, shard)}
    assert {key for line in refused for keys in line["keys_by_rank"] for key in keys} <= known
    assert audit_run(run_dir).problems == []


def _keys(setup: Any, shard: int) -> list[str]:
    keys: list[str] = setup.sources[0].dataset.shard(shard).keys.to_pylist()
    return keys


class OneProcess:
    """A run inside this process, whose model a test can disturb."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.setup = run_dir, set_up(run_dir)
        self.spec = self.setup.job.train
        self.ranks, self.engine = begin(self.setup, run_dir)
        self.checkpoints = Checkpoints(run_dir, self.spec.checkpoint, self.ranks)
        self.losses: list[float] = []

    def train(self, on_log: Callable[[int], None] = lambda step: None) -> TrainState:
        def log(metrics: Any) -> None:
            self.losses.append(metrics.loss)
            on_log(metrics.step)

        state = self.checkpoints.restore(self.engine)
        loader = Loader(self.setup, self.run_dir)
        if state.stream:
            loader.load_state_dict(state.stream)
        parts = (loader, self.checkpoints, self.spec, self.ranks, self.run_dir, self.setup.job.seed, log)
        return Trainer(self.engine, *parts).fit(state)

    def disturb_once(self) -> None:
        """Make the next forward pass predict nonsense, with certainty."""

        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return output * 1000

        handle = self.engine.module.lm_head.register_forward_hook(hook)

    def weights(self) -> dict[str, torch.Tensor]:
        state = EngineState(self.engine)
        return {f"{kind}/{name}": one.clone() for name in state.shapes for kind, one in state.read(name).items()}


@pytest.mark.slow
@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_a_spike_is_left_out_and_the_stream_goes_on(make_run: Callable[..., Path], action: str) -> None:
    length = samples_of_steps(make_run("name=count"), 8)
    at_four = samples_of_steps(make_run("name=count"), 4)
    options = [f"train.length={length}", f"train.checkpoint.every={at_four}", f"train.faults.spike.action={action}"]
    options += ["train.faults.spike.factor=2", "train.faults.spike.window=3"]
    run = OneProcess(make_run(f"name={action}", *options))
    found = {}

    def at(step: int) -> None:
        if step in (4, 5):
            found[step] = run.weights()
        if step == 5:
            run.disturb_once()

    # The spike is step 6, which is not logged; weights are looked at before the optimiser moves on in step 7.
    original = run.checkpoints.restore

    def restore(engine: Any) -> TrainState:
        state = original(engine)
        found["restored"] = run.weights()
        return state

    run.checkpoints.restore = restore  # type: ignore[method-assign]
    state = run.train(at)
    assert (state.step, state.samples_seen, state.refused_steps) == (8, length, 1)
    assert len(run.losses) == 7
    assert len(state.recent_losses) == 3
    refused = read_lines(run.run_dir / REFUSED_STEPS)
    assert [line["step"] for line in refused] == [6]
    assert "spike" in refused[0]["reason"]
    if action == "rewind":
        assert all(torch.equal(found["restored"][name], found[4][name]) for name in found[4])
        assert any(not torch.equal(found[4][name], found[5][name]) for name in found[4])
    assert [read_state(one).step for one in committed_checkpoints(run.run_dir)] == [4, 8]
    assert audit_run(run.run_dir).problems == []
