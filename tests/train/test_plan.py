"""The plan's numbers against each other, and what is refused before anything starts."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from train.checkpoint import COMMITTED, TrainState, load_checkpoint
from train.engine import Ranks
from train.loader import Loader
from train.loop import fit
from train.plan import plan_lines
from train.setup import check_world_size, set_up


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_arithmetic_is_right(make_run: Callable[..., Path]) -> None:
    setup = set_up(make_run("train.length=5000"))
    lines = "\n".join(plan_lines(setup, world_size=2))
    passes = re.search(r"demo: ([\d,]+) samples in (\d+) shards; 5,000 samples ÷ ([\d,]+) = ([\d.]+) passes", lines)
    assert passes
    assert number(passes[1]) == number(passes[3]) == setup.sources[0].dataset.num_samples
    assert number(passes[4]) == pytest.approx(5000 / number(passes[1]), abs=0.01)
    rows = re.search(r"([\d,]+) samples × ([\d.]+) tokens ÷ ([\d,]+) rows of 160 tokens: ([\d.]+)% full", lines)
    assert rows
    samples, mean, num_rows, fill = map(number, rows.groups())
    assert samples * mean / (num_rows * 160) == pytest.approx(fill / 100, rel=2e-3)  # the mean is rounded
    assert fill > 90
    steps = re.search(r"length +5,000 samples ÷ ([\d.]+) ≈ ([\d,]+) steps", lines)
    assert steps
    assert number(steps[1]) == pytest.approx(2 * samples / num_rows, abs=0.05)
    assert number(steps[2]) == pytest.approx(5000 / number(steps[1]), rel=0.02)
    assert "2 lanes = 2 processes × 1 rows × 1 accumulated" in lines


def test_the_plan_says_how_good_the_shuffle_is_and_how_large_the_state(make_run: Callable[..., Path]) -> None:
    lines = "\n".join(plan_lines(set_up(make_run()), world_size=1))
    order = re.search(r"blocks of 32 shards; ([\d.]+) different shards in 64 samples, ([\d.]+)% of neighbours", lines)
    assert order
    num_shards = set_up(make_run()).sources[0].dataset.num_shards
    assert num_shards - 1 < number(order[1]) <= num_shards
    assert number(order[2]) == pytest.approx(100 / num_shards, abs=8)
    state = re.search(r"state +(\d+) bytes", lines)
    assert state
    assert number(state[1]) < 300


def test_lanes_that_cannot_be_dealt_are_refused_with_the_numbers_that_can() -> None:
    check_world_size(lanes=12, micro_rows=2, world_size=3)
    with pytest.raises(UserError, match=r"next: +use one of these numbers of processes: 1, 2, 3, 6"):
        check_world_size(lanes=12, micro_rows=2, world_size=4)


def test_a_sample_longer_than_a_row_is_refused(make_run: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"a sample has \d+ tokens, a row 24(.|\n)*train.row_tokens; .*shard-\d+.tar key \w+"
    ):
        set_up(make_run("train.row_tokens=24"))


def test_the_step_before_is_named(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run()
    (run_dir / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="genlip tokenizer RECIPE"):
        set_up(run_dir)
    with pytest.raises(UserError, match="genlip train RECIPE"):
        set_up(tmp_path)


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / COMMITTED).write_text(json.dumps(asdict(TrainState(step=1)) | {"world_size": 4}))
    with pytest.raises(UserError, match="written by 4 processes"):
        load_checkpoint(None, tmp_path, Ranks(0, 1, torch.device("cpu")))


def test_a_checkpoint_whose_stream_state_was_not_loaded_is_an_error(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    setup = set_up(run_dir)
    loader = Loader(setup, run_dir)
    state = TrainState(step=3, samples_seen=24, stream=loader.state_dict() | {"step": 3, "row": 6})
    with pytest.raises(RuntimeError, match="stream state was not loaded"):
        fit(
            engine=None,
            loader=loader,
            state=state,
            spec=setup.job.train,
            ranks=Ranks(0, 1, torch.device("cpu")),
            run_dir=run_dir,
            tokenizer=setup.tokenizer,
            processor=setup.processor,
            seed=0,
            on_log=lambda metrics: None,
        )
