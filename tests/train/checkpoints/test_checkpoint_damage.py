"""Nothing counts that is not whole: damaged and half-written checkpoints are passed over, others' are refused."""

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tiny_engines import MAX_WAIT_S, launch, tiny_engine, train
from torch import Tensor

from pipeline.errors import UserError
from train.checkpoints import COMMITTED, Checkpoints, TrainState, committed_checkpoints, latest_checkpoint, read_state
from train.engine import Ranks
from train.recipe import CheckpointSpec


@pytest.fixture
def saved(ranks: Ranks, tmp_path: Path) -> Path:
    """A run folder with checkpoints of the steps 2 and 4."""

    def export(folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(b"some weights")

    engine, _ = tiny_engine(2)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks, export, {"optimizer": {"betas": (0.9, 0.95)}})
    for step in (2, 4):
        train(engine, ranks, step - 2, step)
        checkpoints.save(engine, TrainState(step=step))
    checkpoints.wait()
    return tmp_path


def restore(run_dir: Path, ranks: Ranks, width: int = 5, beta: float = 0.95, average: float = 0.0) -> TrainState:
    engine, _ = tiny_engine(2, width=width, average=average)
    made_of = {"optimizer": {"betas": (0.9, beta)}}
    return Checkpoints(run_dir, CheckpointSpec(), ranks, made_of=made_of).restore(engine)


def flip_a_byte(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_byte, cut, Path.unlink])
@pytest.mark.parametrize("file", ["parameters-00000-00000.safetensors", "model/weights", COMMITTED])
def test_a_damaged_checkpoint_is_passed_over(
    saved: Path, ranks: Ranks, file: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert restore(saved, ranks).step == 4
    damage(saved / "checkpoints" / "step-00000004" / file)
    with caplog.at_level(logging.WARNING):
        assert restore(saved, ranks).step == 2
    assert any("step-00000004" in line and "passed over" in line for line in caplog.messages)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(saved: Path, ranks: Ranks) -> None:
    for folder in committed_checkpoints(saved):
        flip_a_byte(next(folder.glob("*.safetensors")))
    with pytest.raises(UserError, match="all 2 checkpoints of the run are damaged"):
        restore(saved, ranks)


def test_a_damaged_checkpoint_does_not_push_out_good_ones(saved: Path, ranks: Ranks) -> None:
    flip_a_byte(next((saved / "checkpoints" / "step-00000004").glob("*.safetensors")))
    engine, _ = tiny_engine(2)
    checkpoints = Checkpoints(saved, CheckpointSpec(), ranks, made_of={"optimizer": {"betas": [0.9, 0.95]}})
    assert checkpoints.restore(engine).step == 2
    checkpoints.save(engine, TrainState(step=3))
    checkpoints.wait()
    assert [path.name for path in committed_checkpoints(saved)] == ["step-00000002", "step-00000003"]


def test_checkpoints_of_other_runs_are_refused_by_key(saved: Path, ranks: Ranks) -> None:
    with pytest.raises(UserError, match=r"parameters.first.weight was \[5, 3\], is \[7, 3\]"):
        restore(saved, ranks, width=7)
    with pytest.raises(UserError, match=r"optimizer.betas was \[0.9, 0.95\], is \[0.9, 0.99\]"):
        restore(saved, ranks, beta=0.99)
    with pytest.raises(UserError, match=r"kinds was .*'ema'"):
        restore(saved, ranks, average=0.9)


def test_a_newer_format_is_named(saved: Path) -> None:
    path = saved / "checkpoints" / "step-00000004" / COMMITTED
    content = json.loads(path.read_text())
    assert read_state(latest_checkpoint(saved)).step == 4
    content["record"]["state"]["step"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not fit its checksum"):
        read_state(latest_checkpoint(saved))


def test_no_checkpoint(tmp_path: Path) -> None:
    assert committed_checkpoints(tmp_path) == []
    (tmp_path / "checkpoints" / "step-00000007" / "model").mkdir(parents=True)
    assert committed_checkpoints(tmp_path) == []
    with pytest.raises(UserError, match="no checkpoint"):
        latest_checkpoint(tmp_path)


@pytest.mark.slow
def test_killed_while_writing(ranks: Ranks, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = tmp_path / "checkpoints" / "step-00000004"
    (process,) = launch("killed_while_writing", tmp_path)
    give_up_at = time.monotonic() + MAX_WAIT_S
    while not (half / "model" / "weights").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(half.glob("parameters-*"))

    engine, _ = tiny_engine(1)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.restore(engine).step == 2
    assert any("step-00000004 is half-written" in line for line in caplog.messages)
    checkpoints.save(engine, TrainState(step=4))
    checkpoints.wait()
    assert not (half / "model").exists()
    assert read_state(latest_checkpoint(tmp_path)).step == 4
