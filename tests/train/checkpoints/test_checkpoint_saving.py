"""Saving: beside training, at any place, pruned; and what happens when the place is full."""

import json
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from tiny_engines import TwoProcesses, finish, launch, tiny_engine, train
from torch import Tensor

from model import GenLIP, GenLIPConfig, ImageProcessor, SentencePieceTokenizer, load_model
from pipeline.errors import UserError
from train.checkpoints import (
    Checkpoints,
    HuggingFaceExport,
    TrainState,
    committed_checkpoints,
    latest_checkpoint,
    read_checkpoint,
    read_state,
)
from train.checkpoints.engine_state import EngineState
from train.checkpoints.staging import stage as stage_now
from train.engine import Ranks
from train.network import Network
from train.recipe import CheckpointSpec


class FailingFileSystem(MemoryFileSystem):
    """A remote place that cannot be reached at times."""

    protocol = "failing"
    is_down = False

    def exists(self, path: str, **kwargs: Any) -> bool:
        if self.is_down:
            raise TimeoutError("no answer")
        return bool(super().exists(path, **kwargs))


class HeldFileSystem(MemoryFileSystem):
    """A remote place whose uploads wait."""

    protocol = "held"
    may_write = threading.Event()

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.may_write.wait()
        super().put_file(lpath, rpath, **kwargs)


@pytest.fixture
def held() -> Iterator[threading.Event]:
    fsspec.register_implementation("held", HeldFileSystem, clobber=True)
    HeldFileSystem.may_write.clear()
    yield HeldFileSystem.may_write
    HeldFileSystem.may_write.set()


@pytest.mark.parametrize("stage", range(4))
def test_training_goes_on_while_the_write_is_held_up(
    stage: int, ranks: Ranks, tmp_path: Path, held: threading.Event
) -> None:
    spec = CheckpointSpec(folder=f"held://{uuid.uuid4().hex}")
    engine, _ = tiny_engine(stage)
    checkpoints = Checkpoints(tmp_path, spec, ranks)
    train(engine, ranks, 0, 3)
    checkpoints.save(engine, TrainState(step=3))
    straight = train(engine, ranks, 3, 6)

    resumed, _ = tiny_engine(stage)
    assert Checkpoints(tmp_path, spec, ranks).restore(resumed) == TrainState()  # nothing is committed yet
    held.set()
    checkpoints.wait()
    assert Checkpoints(tmp_path, spec, ranks).restore(resumed).step == 3
    assert train(resumed, ranks, 3, 6) == straight


@pytest.mark.parametrize("stage", range(4))
def test_what_is_staged_stays_as_it_was(stage: int, ranks: Ranks) -> None:
    engine, _ = tiny_engine(stage)
    train(engine, ranks, 0, 2)
    state = EngineState(engine)
    staged = stage_now(state, ranks, with_models=True)
    before = {name: {kind: tensor.clone() for kind, tensor in state.read(name).items()} for name in state.parameters}
    train(engine, ranks, 2, 4)
    for name, kinds in before.items():
        assert torch.equal(staged.models["model"][name], kinds["weight"])
        for kind, tensor in kinds.items():
            assert torch.equal(staged.tensors[name][kind], tensor)
            assert not torch.equal(state.read(name)[kind], tensor)


@pytest.mark.parametrize("place", ["", "memory://{}", "file://{}", "{}"])
def test_any_place(place: str, ranks: Ranks, tmp_path: Path) -> None:
    folder = place.format(tmp_path / "elsewhere" if "memory" not in place else uuid.uuid4().hex)
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    def export(folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sum").write_text(str(sum(float(weight.sum()) for weight in weights.values())))

    engine, _ = tiny_engine(1)
    checkpoints = Checkpoints(run_dir, CheckpointSpec(folder=folder), ranks, export)
    for step in (1, 2, 3):
        train(engine, ranks, step - 1, step)
        checkpoints.save(engine, TrainState(step=step))
    checkpoints.wait()
    resumed, _ = tiny_engine(1)
    again = Checkpoints(run_dir, CheckpointSpec(folder=folder), ranks)
    assert again.restore(resumed).step == 3
    assert again.save(resumed, TrainState(step=3)) < 60
    assert train(resumed, ranks, 3, 5) == train(engine, ranks, 3, 5)
    if folder:
        assert not (run_dir / "checkpoints").exists()
    fs, path = fsspec.core.url_to_fs(folder or str(run_dir / "checkpoints"))
    base = f"{path}/run" if folder else path
    assert sorted(Path(one).name for one in fs.ls(base, detail=False)) == ["step-00000002", "step-00000003"]
    assert fs.exists(f"{base}/step-00000003/model/sum")


def test_remote_checkpoints_are_read_through_copies(ranks: Ranks, tmp_path: Path) -> None:
    folder = f"memory://{uuid.uuid4().hex}"
    recipe = {"train": {"length": 1, "checkpoint": {"folder": folder}}, "tokenizer": {}, "model": {}, "eval": {}}
    recipe |= {"seed": 0, "store": "store", "shards": {"name": "shards"}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))

    def export(folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        folder.mkdir()
        (folder / "weights").write_text(str(state.step))

    engine, _ = tiny_engine(0)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(folder=folder), ranks, export)
    for step in (1, 2, 3):
        checkpoints.save(engine, TrainState(step=step))
        checkpoints.wait()
        assert read_state(latest_checkpoint(tmp_path)).step == step
        assert (latest_checkpoint(tmp_path) / "model" / "weights").read_text() == str(step)
    assert [path.name for path in committed_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert len(list(committed_checkpoints(tmp_path)[0].parent.iterdir())) == 2


def test_several_files(ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.checkpoints.writing.FILE_BYTES", 100)
    engine, _ = tiny_engine(2)
    train(engine, ranks, 0, 2)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks)
    checkpoints.save(engine, TrainState(step=2))
    checkpoints.wait()
    assert len(list((tmp_path / "checkpoints" / "step-00000002").glob("*.safetensors"))) == 2
    resumed, _ = tiny_engine(2)
    checkpoints.restore(resumed)
    assert train(resumed, ranks, 2, 4) == train(engine, ranks, 2, 4)


def test_the_last_save_must_not_fail(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    engine, _ = tiny_engine(0)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks)
    checkpoints.save(engine, TrainState(step=1))
    checkpoints.wait()
    checkpoints.save(engine, TrainState(step=2))
    with pytest.raises(UserError, match="the last 2 checkpoints could not be saved"):
        checkpoints.wait(is_last=True)


def test_the_last_ones_and_one_every_so_many_samples_stay(ranks: Ranks, tmp_path: Path) -> None:
    engine, _ = tiny_engine(0)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(keep_last=2, keep_every=100), ranks)
    for step in range(1, 11):
        checkpoints.save(engine, TrainState(step=step, samples_seen=40 * step))
    checkpoints.wait()
    # Multiples of 100 are passed in the steps 3 (120), 5 (200), 8 (320) and 10 (400).
    steps = [read_checkpoint(path).state.step for path in committed_checkpoints(tmp_path)]
    assert steps == [3, 5, 8, 9, 10]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5


def test_the_exported_models_are_those_of_the_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    exported: dict[str, dict[str, Tensor]] = {}

    def export(folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        exported[folder.name] = dict(weights)

    engine, _ = tiny_engine(3, "bf16", average=0.5)
    train(engine, ranks, 0, 2)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks, export)
    checkpoints.save(engine, TrainState(step=2))
    checkpoints.wait()
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        for name, parameter in engine.module.named_parameters():
            assert torch.equal(exported["model"][name], parameter)
            assert exported["model-ema"][name].dtype == torch.bfloat16
            assert not torch.equal(exported["model-ema"][name], parameter)


def test_the_hugging_face_folder_loads(tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer.train(["a red boat", "the green house over the river"] * 50, vocab_size=320)
    config = GenLIPConfig.preset("nano8", vocab_size=tokenizer.vocab_size)
    model = GenLIP(config)
    model.init_weights(0)
    processor = ImageProcessor(mode="native", patch_size=8, min_pixels=1024, max_pixels=2048)
    export = HuggingFaceExport(Network(config), tokenizer, processor, "a-run")
    export(tmp_path / "model", dict(model.named_parameters()), TrainState(step=7, samples_seen=1234))
    loaded = load_model(tmp_path / "model")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    assert "1,234" in (tmp_path / "model" / "README.md").read_text()


def test_an_export_that_fails_is_a_failed_save(ranks: Ranks, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def export(folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        raise RuntimeError("no room for a model")

    engine, _ = tiny_engine(0)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(), ranks, export)
    checkpoints.save(engine, TrainState(step=1))
    checkpoints.wait()
    assert "no room for a model" in caplog.text
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=6m tmpfs {disk} && "
    can_mount = (
        shutil.which("unshare")
        and subprocess.run(["unshare", "-m", "sh", "-c", f"{mount} true"], capture_output=True, check=False).returncode
        == 0
    )
    if not can_mount:
        pytest.skip("this user may not mount a small disk")
    wrapper = ("unshare", "-m", "sh", "-c", f'{mount} export RESULTS={tmp_path} && exec "$@"', "sh")
    finish(launch("disk_is_full", disk, wrapper=wrapper))
    first, full, room, *ends = json.loads((tmp_path / "result-0.json").read_text())
    assert first == full == [["step-00000001"], ["step-00000001"]]
    assert room == [["step-00000001", "step-00000003"]] * 2
    assert ends[:2] == [room, room]
    message, exit_code = ends[2]
    assert "the last 3 checkpoints could not be saved" in message
    assert "no space left" in message
    assert exit_code == 3
    assert ends[3] == room[0]


@pytest.mark.slow
def test_all_processes_hear_of_one_that_cannot_write(two_processes: TwoProcesses) -> None:
    one, four = ["step-00000001"], ["step-00000001", "step-00000004"]
    for result in two_processes.results:
        assert result["failed"] == [one, one, one, four]


def test_a_place_that_cannot_be_reached_is_a_failed_save(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    engine, _ = tiny_engine(0)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(folder=f"failing://{uuid.uuid4().hex}"), ranks)
    monkeypatch.setattr(FailingFileSystem, "is_down", True)
    for step in (1, 2):
        checkpoints.save(engine, TrainState(step=step))
        assert f"step-0000000{step} could not be saved, training goes on: TimeoutError: no answer" in caplog.text
    with pytest.raises(UserError, match="the last 2 checkpoints could not be saved"):
        checkpoints.wait(is_last=True)
    monkeypatch.setattr(FailingFileSystem, "is_down", False)
    checkpoints.save(engine, TrainState(step=3))
    checkpoints.wait()
    assert checkpoints.restore(engine).step == 3


def test_stop_is_at_the_first_failure(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    engine, _ = tiny_engine(0)
    checkpoints = Checkpoints(tmp_path, CheckpointSpec(on_failed_save="stop"), ranks)
    checkpoints.save(engine, TrainState(step=1))
    with pytest.raises(UserError, match="could not be saved"):
        checkpoints.wait()
