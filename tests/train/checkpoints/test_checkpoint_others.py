"""Checkpoints of something else are refused with the keys that differ, some of which may be allowed."""

from pathlib import Path
from typing import Any

import pytest
from tiny_engines import tiny_engine, train

from pipeline.errors import UserError
from train.allowed import ALLOWED_FILE
from train.checkpoints import Checkpoints, TrainState
from train.engine import Ranks
from train.jsonl import read_lines
from train.recipe import CheckpointSpec

MADE_OF = {"objective": "genlip", "model": {"hidden_size": 5, "drop_path_rate": 0.1}, "tokenizer": "a" * 16}
OTHER = {"objective": "genlip", "model": {"hidden_size": 5, "drop_path_rate": 0.0}, "tokenizer": "b" * 16}


def _save(run_dir: Path, ranks: Ranks, made_of: dict[str, Any] | None = None) -> list[float]:
    """A checkpoint of step 2. Returns the losses after it."""
    engine, _ = tiny_engine(1)
    checkpoints = Checkpoints(run_dir, CheckpointSpec(), ranks, made_of=MADE_OF if made_of is None else made_of)
    train(engine, ranks, 0, 2)
    checkpoints.save(engine, TrainState(step=2))
    checkpoints.wait(is_last=True)
    return train(engine, ranks, 2, 4)


def _restore(
    run_dir: Path, ranks: Ranks, made_of: dict[str, Any], allowed: list[str], width: int = 5
) -> tuple[Any, TrainState]:
    engine, _ = tiny_engine(1, width=width)
    return engine, Checkpoints(run_dir, CheckpointSpec(), ranks, made_of=made_of, allowed=allowed).restore(engine)


@pytest.mark.parametrize(
    ("allowed", "named"),
    [
        ([], {"model.drop_path_rate was 0.1, is 0.0", "tokenizer was"}),
        (["tokenizer"], {"model.drop_path_rate was 0.1, is 0.0"}),
        (["model.drop_path"], {"model.drop_path_rate was 0.1, is 0.0", "tokenizer was"}),
    ],
)
def test_each_key_that_differs_is_named(allowed: list[str], named: set[str], ranks: Ranks, tmp_path: Path) -> None:
    _save(tmp_path, ranks)
    with pytest.raises(UserError) as caught:
        _restore(tmp_path, ranks, OTHER, allowed)
    assert {
        text for text in ("model.drop_path_rate was 0.1, is 0.0", "tokenizer was") if text in str(caught.value)
    } == named
    assert "--allow KEY" in str(caught.value)
    assert not (tmp_path / ALLOWED_FILE).exists()


@pytest.mark.parametrize("allowed", [["model", "tokenizer"], ["model.drop_path_rate", "tokenizer"]])
def test_what_is_allowed_goes_on_and_is_written_down(allowed: list[str], ranks: Ranks, tmp_path: Path) -> None:
    straight = _save(tmp_path, ranks)
    engine, state = _restore(tmp_path, ranks, OTHER, allowed)
    assert state == TrainState(step=2)
    assert train(engine, ranks, 2, 4) == straight
    (entry,) = read_lines(tmp_path / ALLOWED_FILE)
    assert entry["where"].endswith("step-00000002")
    assert entry["differences"] == [
        "model.drop_path_rate was 0.1, is 0.0",
        f"tokenizer was {'a' * 16!r}, is {'b' * 16!r}",
    ]


def test_nothing_is_written_down_where_nothing_differs(ranks: Ranks, tmp_path: Path) -> None:
    _save(tmp_path, ranks)
    _restore(tmp_path, ranks, MADE_OF, ["model", "tokenizer"])
    assert not (tmp_path / ALLOWED_FILE).exists()


def test_tensors_of_other_shapes_are_refused_whatever_is_allowed(ranks: Ranks, tmp_path: Path) -> None:
    _save(tmp_path, ranks)
    allowed = ["model", "parameters", "parameters.first.weight", "kinds"]
    with pytest.raises(UserError, match=r"parameters\.first\.weight was \[5, 3\], is \[6, 3\](.|\n)*never") as caught:
        _restore(tmp_path, ranks, MADE_OF | {"model": {"hidden_size": 6}}, allowed, width=6)
    assert "hidden_size" not in str(caught.value), "that was allowed, and is not why"
