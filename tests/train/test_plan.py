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
from train.plan import plan_lines
from train.setup import check_world_size, set_up


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_arithmetic_is_right(make_run: Callable[..., Path]) -> None:
    lines = "\n".join(plan_lines(set_up(make_run("train.length=5000")), world_size=2))
    found = re.search(r"([\d,]+) samples × ([\d.]+) tokens = ([\d,]+) tokens", lines)
    assert found
    samples, mean, tokens = found.groups()
    assert number(samples) * number(mean) == pytest.approx(number(tokens), rel=2e-3)  # the mean is rounded
    epochs = re.search(r"5,000 samples ÷ ([\d,]+) = ([\d.]+) epochs", lines)
    assert epochs
    assert number(epochs[2]) == pytest.approx(5000 / number(samples), abs=0.01)
    assert "2 lanes = 2 processes × 1 rows × 1 accumulated" in lines


def test_lanes_that_cannot_be_dealt_are_refused_with_the_numbers_that_can() -> None:
    check_world_size(lanes=12, micro_rows=2, world_size=3)
    with pytest.raises(UserError, match=r"next: +use one of these numbers of processes: 1, 2, 3, 6"):
        check_world_size(lanes=12, micro_rows=2, world_size=4)


def test_a_sample_longer_than_a_row_is_refused(make_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"longest sample has \d+ tokens, a row 24"):
        set_up(make_run("train.row_tokens=24"))


def test_the_step_before_is_named(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run()
    (run_dir / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="genlip tokenizer RECIPE"):
        set_up(run_dir)
    with pytest.raises(UserError, match="genlip train RECIPE"):
        set_up(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"), [("world_size", 4, "written by 4 processes"), ("dataset", "x", "other")]
)
def test_a_checkpoint_of_another_group_or_dataset_is_refused(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    record = asdict(TrainState(step=1, dataset="mine")) | {"world_size": 1} | {key: value}
    (folder / COMMITTED).write_text(json.dumps(record))
    with pytest.raises(UserError, match=words):
        load_checkpoint(None, tmp_path, Ranks(0, 1, torch.device("cpu")), "mine")
