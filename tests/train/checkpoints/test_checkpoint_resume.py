"""A resumed run continues with the same numbers, whatever number of processes and ZeRO stage wrote the checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_engines import CASES, TwoProcesses, finish, launch, tiny_engine, train

from train.checkpoints import Checkpoints, TrainState
from train.checkpoints.engine_state import EngineState
from train.engine import Ranks
from train.recipe import CheckpointSpec

STATE = TrainState(step=3, samples_seen=24, stream={"pass": 1, "sources": {"a": 3}}, refused_steps=2)


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_one_process_goes_on_bit_for_bit(stage: int, precision: str, ranks: Ranks, tmp_path: Path) -> None:
    engine, _ = tiny_engine(stage, precision, average=0.9)
    train(engine, ranks, 0, 3)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks)
    checkpoints.save(engine, STATE)
    straight = train(engine, ranks, 3, 6)
    checkpoints.wait()

    resumed, _ = tiny_engine(stage, precision, average=0.9)
    assert Checkpoints(tmp_path, CheckpointSpec(), ranks).restore(resumed) == STATE
    assert train(resumed, ranks, 3, 6) == straight
    ours, theirs = EngineState(resumed), EngineState(engine)
    assert ours.num_steps == theirs.num_steps == 6
    assert ours.kinds == ("weight", "exp_avg", "exp_avg_sq", "ema")
    for name in ours.parameters:
        for kind, tensor in ours.read(name).items():
            assert torch.equal(tensor, theirs.read(name)[kind]), (name, kind)


def test_stages_follow_each_other(ranks: Ranks, tmp_path: Path) -> None:
    engine, _ = tiny_engine(1)
    straight = train(engine, ranks, 0, 8)
    losses = []
    for number, stage in enumerate((1, 3, 0, 2)):
        engine, _ = tiny_engine(stage)
        checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks)
        state = checkpoints.restore(engine)
        assert state.step == 2 * number
        losses += train(engine, ranks, state.step, state.step + 2)
        checkpoints.save(engine, TrainState(step=state.step + 2))
        checkpoints.wait()
    assert losses == pytest.approx(straight, rel=1e-5)


def test_before_the_first_step(ranks: Ranks, tmp_path: Path) -> None:
    for stage in range(4):
        engine, _ = tiny_engine(stage)
        checkpoints = Checkpoints(tmp_path / str(stage), CheckpointSpec(), ranks)
        assert checkpoints.restore(engine) == TrainState()
        checkpoints.save(engine, TrainState())
        straight = train(engine, ranks, 0, 3)
        checkpoints.wait()
        engine, _ = tiny_engine(stage)
        train(engine, ranks, 0, 1)  # so that there is something to be replaced
        assert Checkpoints(tmp_path / str(stage), CheckpointSpec(), ranks).restore(engine) == TrainState()
        assert train(engine, ranks, 0, 3) == straight


@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit(two_processes: TwoProcesses) -> None:
    ours, theirs = (result["resumed"] for result in two_processes.results)
    assert ours == theirs
    assert len(ours) == len(CASES)
    for straight, resumed in ours.values():
        assert resumed == straight


@pytest.mark.slow
def test_two_processes_then_one_then_two(two_processes: TwoProcesses, ranks: Ranks, tmp_path: Path) -> None:
    engine, _ = tiny_engine(1)
    straight = train(engine, ranks, 0, 9)

    shutil.copytree(two_processes.run_dir / "fp32-1" / "checkpoints", tmp_path / "checkpoints")
    engine, _ = tiny_engine(3)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks)
    state = checkpoints.restore(engine)
    assert state.step == 3
    losses = train(engine, ranks, state.step, 6)
    checkpoints.save(engine, TrainState(step=6))
    checkpoints.wait()
    finish(launch("go_on", tmp_path, world_size=2))
    losses += json.loads((tmp_path / "result-0.json").read_text())
    assert losses == pytest.approx(straight[3:], rel=1e-5)
