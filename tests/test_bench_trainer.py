"""The trainer benchmark: its arithmetic, and that our side trains and the shares of a step are whole."""

from pathlib import Path

import pytest

from tests.bench import trainer
from tests.bench.harness import Result
from tests.bench.trainer_engine import part_of
from tests.bench.trainer_inputs import TrainerSetup
from tests.bench.trainer_side import Mark, summary


def test_the_first_step_warms_up_and_the_rest_is_counted() -> None:
    marks = [
        Mark(10, 100.0, 500.0, {"data": 0.9, "rest": 0.1}),
        Mark(20, 102.0, 504.0, {"data": 0.5, "rest": 0.5}),
        Mark(40, 108.0, 516.0, {"data": 0.0, "rest": 1.0}),
    ]
    found = summary(marks)
    assert found["samples_per_cpu_s"] == pytest.approx(30 / 8)
    assert found["samples_per_s"] == pytest.approx(30 / 16)
    assert found["samples_per_step"] == 15
    assert found["shares"] == pytest.approx({"data": 2 / 16, "rest": 14 / 16})


def test_a_loop_without_timers_has_no_shares() -> None:
    marks = [Mark(number, number, number, {}) for number in (1, 2, 3)]
    assert summary(marks)["shares"] == {}


@pytest.mark.parametrize(
    ("operation", "part"),
    [("aten::addmm", "matrix products"), ("genlip::stacked_attention_model", "attention"), ("aten::zeros", "other")],
)
def test_operations_belong_to_parts(operation: str, part: str) -> None:
    assert part_of(operation) == part


def test_a_peer_that_is_not_there_is_named_with_its_option() -> None:
    setup = TrainerSetup("open_clip", "nano8", 512, 1, 256, 1, run_dir="unused")
    peer = trainer.make_peer(setup)
    assert peer.measure is None
    assert peer.name == "open_clip: pass --open-clip FOLDER"


@pytest.mark.slow
def test_our_side_trains_on_the_benchmarks_store(tmp_path: Path) -> None:
    run_dir, vocab_size = trainer.make_bench_run(tmp_path, "ti16", 2_000, row_tokens=700)
    setup = TrainerSetup("ours", "ti16", vocab_size, 1, 700, num_steps=2, run_dir=str(run_dir))
    data_waits: list[float] = []
    figures = trainer.measure(setup, data_waits)
    assert figures["train_samples_per_cpu_s"] > 0
    assert 0 <= data_waits[0] < 1
    again = trainer.measure(setup, data_waits)  # in a fresh folder: nothing is resumed
    assert again.keys() == figures.keys()
    answer = trainer.run_module("trainer_engine", setup)
    engine, *parts = trainer.take_apart(answer)
    assert engine.peer == "a plain PyTorch loop"
    assert 0 < sum(part.value for part in parts) <= 1
    peer = Result("trainer", "train_samples_per_cpu_s", 3.0, "samples/CPU s", "peer", 2.0, 1.5)
    bound = trainer.bound(answer, peer)
    assert bound.ratio is not None
    assert bound.ratio == bound.value / 2
    assert bound.value > answer["num_samples"] / answer["engine"]
