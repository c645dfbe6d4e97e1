"""A run goes on with changed keys where they are allowed by name, and its folder says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
from groups import Group
from train_runs import samples_of_steps, small_recipe

from jobs.runs import open_run
from pipeline.errors import UserError
from pipeline.store import refuse_changes
from train.allowed import ALLOWED_FILE
from train.audit import audit_run
from train.jsonl import read_lines
from train.metrics import read_metrics
from train.recipe import TrainJob


@pytest.mark.parametrize("allowed", ["a", "a.b", "a.b.c"])
def test_a_key_is_allowed_with_all_below_it(allowed: str) -> None:
    known, wanted = {"a": {"b": {"c": 1}}, "d": 2}, {"a": {"b": {"c": 3}}, "d": 2}
    assert refuse_changes(known, wanted, "here", "leave it", [allowed]) == ["a.b.c was 1, is 3"]


@pytest.mark.parametrize("allowed", ["a.b.c.d", "a.bb", "b", "a.b.", ""])
def test_others_are_not(allowed: str) -> None:
    with pytest.raises(UserError, match=r"a\.b\.c was 1, is 3"):
        refuse_changes({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 3}}}, "here", "leave it", [allowed])


def test_a_run_folder_takes_what_is_allowed_and_nothing_else(make_run: Callable[..., Path], small_store: Path) -> None:
    run_dir = make_run("name=one")
    changed = small_recipe(small_store, run_dir.parents[1], "name=one", "train.optim.lr=0.5", "seed=3")
    for allowed in ([], ["train.optim"]):
        with pytest.raises(UserError, match=r"seed was 42, is 3(.|\n)*--allow KEY"):
            open_run(changed, allowed)
    assert not (run_dir / ALLOWED_FILE).exists()
    assert open_run(changed, ["train.optim", "seed"]) == run_dir
    assert TrainJob.read(run_dir).train.optim.lr == 0.5
    (entry,) = read_lines(run_dir / ALLOWED_FILE)
    assert entry["differences"] == ["seed was 42, is 3", "train.optim.lr was 0.001, is 0.5"]
    open_run(changed)


@pytest.mark.slow
def test_a_finished_run_is_made_longer(make_run: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    run_dir = make_run("name=run", "train.length=20")
    Group(recipe, "name=run", "train.length=20").finish()
    num_steps = len(read_metrics(run_dir))
    longer = f"train.length={samples_of_steps(run_dir, num_steps + 2)}"
    refused = Group(recipe, "name=run", longer)
    assert refused.wait() == [2]
    assert "train.length was 20" in refused.output
    Group(recipe, "name=run", longer, words=("train", "--allow", "train.length")).finish()
    assert [entry["step"] for entry in read_metrics(run_dir)] == list(range(1, num_steps + 3))
    assert audit_run(run_dir).problems == []
    (entry,) = read_lines(run_dir / ALLOWED_FILE)
    assert entry["differences"][0].startswith("train.length was 20")
