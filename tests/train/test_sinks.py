"""Where the numbers of a run go, read back from where they went; and the profiler's window."""

import gzip
import json
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from test_metrics import LINE

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.engine import Ranks
from train.metrics import read_metrics
from train.profiler import PROFILE_FOLDER, ProfileWindow
from train.recipe import RECIPE_FILE, LogSpec, ProfileSpec
from train.sinks import TENSORBOARD_FOLDER, WANDB_ID_FILE, Sinks

FIRST, SECOND = (Ranks(rank, 2, torch.device("cpu")) for rank in range(2))


def events(run_dir: Path) -> Iterator[Event]:
    """TensorBoard's records in the order of their files: length, its checksum, an event, its checksum."""
    for path in sorted((run_dir / TENSORBOARD_FOLDER).iterdir(), key=lambda path: path.stat().st_mtime_ns):
        body = path.read_bytes()
        while body:
            (length,) = struct.unpack("<Q", body[:8])
            yield Event.FromString(body[12 : 12 + length])
            body = body[16 + length :]


def shown(run_dir: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: a session that starts again hides the steps from its own on."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events(run_dir):
        if event.HasField("session_log"):
            for curve in curves.values():
                for step in [step for step in curve if step >= event.step]:
                    del curve[step]
        for value in event.summary.value:
            curves[value.tag][event.step] = value.simple_value
    return curves


def test_the_log_is_always_written_and_by_the_first_process_alone(tmp_path: Path) -> None:
    for ranks in (FIRST, SECOND):
        sinks = Sinks(tmp_path, LogSpec(), ranks, 0, 0)
        sinks.log(LINE)
        sinks.close()
    assert len(read_metrics(tmp_path)) == 1
    assert not (tmp_path / TENSORBOARD_FOLDER).exists()


def test_tensorboard_shows_every_number_over_samples_seen(tmp_path: Path) -> None:
    sinks = Sinks(tmp_path, LogSpec(to=("tensorboard",)), FIRST, 0, 0)
    sinks.log(replace(LINE, samples=100, loss=3.0, source_losses={"web": 2.5}))
    sinks.log(replace(LINE, samples=200, loss=2.0, mfu=0.5))
    sinks.close()
    curves = shown(tmp_path)
    assert curves["train/loss"] == {100: 3.0, 200: 2.0}
    assert curves["loss/web"] == {100: 2.5}
    assert curves["speed/mfu"] == {200: 0.5}
    assert curves["time/data"] == pytest.approx({100: 0.01, 200: 0.01})


def test_a_resumed_run_takes_back_what_lies_behind_its_checkpoint(tmp_path: Path) -> None:
    sinks = Sinks(tmp_path, LogSpec(to=("tensorboard",)), FIRST, 0, 0)
    for step in (1, 2, 3):
        sinks.log(replace(LINE, step=step, samples=100 * step, loss=1.0))
    sinks.close()
    sinks = Sinks(tmp_path, LogSpec(to=("tensorboard",)), FIRST, 2, 200)
    sinks.log(replace(LINE, step=4, samples=400, loss=2.0))
    sinks.close()
    assert shown(tmp_path)["train/loss"] == {100: 1.0, 200: 1.0, 400: 2.0}
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 4]


@pytest.mark.parametrize(("sink", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}") as caught:
        Sinks(tmp_path, LogSpec.model_validate({"to": [sink]}), FIRST, 0, 0)
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    Sinks(tmp_path, LogSpec.model_validate({"to": [sink]}), SECOND, 0, 0)  # which logs nothing


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path: Path, offline: None) -> None:
    (tmp_path / RECIPE_FILE).write_text(json.dumps({"name": "a-run", "train": {"length": 1000}}))
    for step in (1, 2):
        sinks = Sinks(tmp_path, LogSpec(to=("wandb",)), FIRST, step - 1, 100 * (step - 1))
        sinks.log(replace(LINE, step=step, samples=100 * step, loss=3.0))
        sinks.close()
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))  # one where both lives began in one second
    assert {path.name for path in files} == {f"run-{(tmp_path / WANDB_ID_FILE).read_text()}.wandb"}
    for path in files:
        assert b"train/loss" in path.read_bytes()
        assert b"a-run" in path.read_bytes()


def test_a_profile_is_of_the_steps_of_the_window(tmp_path: Path) -> None:
    window = ProfileWindow(tmp_path, ProfileSpec(from_step=2, num_steps=2), FIRST)
    for number in range(1, 6):
        with window.step(number), torch.profiler.record_function(f"step {number}"):
            torch.ones(4).sum()
    traces = list((tmp_path / PROFILE_FOLDER).glob("*.json.gz"))
    assert [path.name for path in traces] == ["steps-2-3.json.gz"]
    with gzip.open(traces[0], "rt") as stream:
        names = {event.get("name") for event in json.load(stream)["traceEvents"]}
    assert {"step 2", "step 3", "aten::sum"} <= names
    assert not names & {"step 1", "step 4", "step 5"}
    assert "aten::sum" in (tmp_path / PROFILE_FOLDER / "steps-2-3.txt").read_text()


@pytest.mark.parametrize(("spec", "ranks"), [(None, FIRST), (ProfileSpec(from_step=1), SECOND)])
def test_other_processes_and_other_runs_trace_nothing(tmp_path: Path, spec: ProfileSpec | None, ranks: Ranks) -> None:
    window = ProfileWindow(tmp_path, spec, ranks)
    for number in range(1, 6):
        with window.step(number):
            torch.ones(4).sum()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_resumed_inside_the_window_traces_nothing(tmp_path: Path) -> None:
    window = ProfileWindow(tmp_path, ProfileSpec(from_step=2, num_steps=2), FIRST)
    with window.step(3):
        torch.ones(4).sum()
    assert list(tmp_path.iterdir()) == []
