"""What is checked before a run spends anything: weights, gradients, memory, and that one batch can be learnt."""

import math
import os
import socket
from collections.abc import Callable
from multiprocessing import SimpleQueue
from pathlib import Path

import pytest
import torch
from groups import MAX_WAIT_S, Group, forks
from tiny_steps import CONFIG, make_engine, multiply_once, step
from torch import nn

from model import GenLIP
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from train.engine import build_engine, join_group
from train.recipe import TrainSpec
from train.sanity import GradientCheck, check_equal_weights


def _compare_weights(rank: int, port: int, is_equal: bool, said: "SimpleQueue[str]") -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = join_group()
    model = GenLIP(CONFIG)
    model.init_weights(seed=0)
    if rank == 1 and not is_equal:
        with torch.no_grad():
            model.visual.layers[0].self_attn.out_proj.bias[3] += 1e-7
    try:
        check_equal_weights(model, ranks)
        said.put("")
    except UserError as error:
        said.put(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("is_equal", [True, False])
def test_two_processes_must_begin_with_the_same_weights(is_equal: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: SimpleQueue[str] = forks.SimpleQueue()
    processes = [forks.Process(target=_compare_weights, args=(rank, port, is_equal, said)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(MAX_WAIT_S)
    assert [process.exitcode for process in processes] == [0, 0]
    answers = [said.get(), said.get()]
    if is_equal:
        assert answers == ["", ""]
    for answer in [] if is_equal else answers:
        assert "weights of process 1 are not those of process 0" in answer
        assert "parameter visual.layers.0.self_attn.out_proj.bias, of 1 that differ" in answer


def test_a_parameter_that_the_loss_does_not_see_is_named() -> None:
    ranks = join_group()
    model = GenLIP(CONFIG)
    model.init_weights(0)
    model.visual.register_parameter("forgotten", nn.Parameter(torch.zeros(3)))
    spec = TrainSpec.model_validate({"length": 1000, "lanes": 2, "precision": "fp32", "zero": {"stage": 2}})
    engine = build_engine(model, spec, ranks.world_size)
    with GradientCheck(engine.module, ranks) as check:
        step(engine, ranks, 1)
    with pytest.raises(UserError, match=r"1 parameters got no gradient(.|\n)*visual\.forgotten"):
        check.verify()


def test_gradients_that_are_not_finite_are_named() -> None:
    engine, ranks = make_engine(1, "fp32")
    with GradientCheck(engine.module, ranks) as check:
        multiply_once(engine, math.inf)
        step(engine, ranks, 1)
    with pytest.raises(UserError, match=r"not finite in the first step(.|\n)*visual\.layers\.0"):
        check.verify()


@pytest.mark.slow
def test_one_batch_is_learnt_and_nothing_is_left_behind(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run()
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    recipe = tmp_path / "recipe.yaml"
    learns = Group(recipe, "train.optim.lr=2.0e-3", words=["overfit", "--steps", "30"])
    learns.finish()
    assert learns.output.count(" · loss ") == 11
    assert "model, loss and optimiser work together" in learns.output
    does_not = Group(recipe, "train.optim.lr=1.0e-9", "train.optim.min_lr=0", words=["overfit", "--steps", "2"])
    assert does_not.wait() == [EXIT_FAILED_UNITS], does_not.output
    assert "not below half" in does_not.output

    dry = Group(recipe, words=["train", "--dry-run"], world_size=2)
    dry.finish()
    assert "2 steps on 2 processes" in dry.output
    assert "every parameter got a finite gradient" in dry.output
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
