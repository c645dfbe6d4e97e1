"""The audit: silent on runs that read what they should, through kills and other numbers of ranks; exact otherwise."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from groups import forks

from pipeline.errors import UserError
from pipeline.store import Store
from train.audit import audit_run, verify_resume
from train.checkpoints import COMMITTED, TrainState
from train.checkpoints.record import Record, write_record
from train.data.consumed import BadSample, bad_samples_file, consumed_file
from train.data.loader import Loader
from train.jsonl import append_line, read_lines
from train.setup import set_up

State = dict[str, int | str]
MAX_WAIT_S = 120


def read_steps(run_dir: Path, num_steps: int, world_size: int = 1, state: State | None = None) -> list[State]:
    """Take steps on all ranks, as a run does, and drop what they prefetched. Returns the state after each step."""
    states = []
    for rank in range(world_size):
        loader = Loader(set_up(run_dir), run_dir, rank, world_size)
        if state:
            loader.load_state_dict(state)
        with closing(iter(loader)) as batches:
            states = [loader.state_dict() for _ in islice(batches, num_steps)]
    return states


def commit(run_dir: Path, state: State, num_samples: int) -> None:
    """A checkpoint as far as the audit looks at it."""
    record = Record(state=TrainState(step=int(state["step"]), samples_seen=num_samples, stream=state))
    write_record(Store(str(run_dir / "checkpoints")), f"step-{state['step']:08d}", record)


def change(path: Path, step: int, **values: Any) -> None:
    """Falsify the last record of a step."""
    entries = read_lines(path)
    last = max(number for number, entry in enumerate(entries) if entry["step"] == step)
    entries[last] |= values
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def num_samples(run_dir: Path, num_steps: int) -> int:
    return sum(entry["num_samples"] for entry in read_lines(consumed_file(run_dir, 0))[:num_steps])


def test_a_run_through_two_kills_on_other_numbers_of_ranks_is_in_order(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    num_steps = 2 * len(set_up(run_dir).stream.segment(0).rows) // 2 + 5  # two passes and more
    states = read_steps(run_dir, 9, world_size=2)
    commit(run_dir, states[5], 0)  # resumed from here, three steps back
    states = read_steps(run_dir, 4, world_size=1, state=states[5])  # killed before it came as far as the first life
    read_steps(run_dir, num_steps - 8, world_size=2, state=states[1])
    (run_dir / "checkpoints" / "step-00000006" / COMMITTED).unlink()
    found = audit_run(run_dir)
    assert found.problems == []
    total = set_up(run_dir).sources[0].dataset.num_samples
    assert f"demo: 2 whole passes of {total:,} samples, each sample once" in found.counts
    assert found.counts[0].startswith(f"{num_steps:,} steps, ")


def test_a_rank_that_was_a_step_ahead_when_all_were_killed_is_in_order(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    read_steps(run_dir, 5, world_size=2)
    lines = consumed_file(run_dir, 1).read_text().splitlines(keepends=True)
    consumed_file(run_dir, 1).write_text("".join(lines[:-1]) + lines[-1][:20])  # cut short by the kill
    found = audit_run(run_dir)
    assert found.problems == []
    assert found.counts[0].startswith("4 steps, ")


@pytest.mark.parametrize(
    ("rank", "values", "words"),
    [
        (0, {"digest": "0" * 32}, r"^step 3, rank 0: was given \d+ samples that are not the \d+ of the plan$"),
        (1, {"num_samples": 1}, r"^step 3, rank 1: was given 1 samples that are not the \d+ of the plan$"),
        (0, {"row": 6}, r"^step 3, rank 0: began at row 6 of segment 0, the step before ended at row 4 of segment 0$"),
        (1, {"world_size": 1}, r"^step 3, rank 1: no record$"),
    ],
)
def test_what_differs_from_the_plan_is_said(
    make_run: Callable[..., Path], rank: int, values: dict[str, Any], words: str
) -> None:
    run_dir = make_run()
    read_steps(run_dir, 5, world_size=2)
    change(consumed_file(run_dir, rank), 3, **values)
    (problem,) = audit_run(run_dir).problems
    assert re.search(words, problem)


def test_steps_that_nobody_wrote_down_are_said(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    read_steps(run_dir, 5)
    path = consumed_file(run_dir, 0)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:]]))
    assert audit_run(run_dir).problems == ["step 3, rank 0: no record"]


def test_a_seed_other_than_the_recipes_is_noticed(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    read_steps(run_dir, 3)
    recipe = json.loads((run_dir / "recipe.json").read_text())
    (run_dir / "recipe.json").write_text(json.dumps(recipe | {"seed": 1}))
    assert "step 1, rank 0: was given" in audit_run(run_dir).problems[0]


def test_a_bad_sample_must_have_been_planned(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    setup = set_up(run_dir)
    read_steps(run_dir, 3)
    row = setup.stream.segment(0).places.take(setup.stream.segment(0).rows[0])
    shard = setup.sources[0].dataset.shard(int(row.shard_N[0]))
    bad = BadSample(1, "demo", setup.job.store, shard.path, shard.keys[int(row.row_N[0])].as_py(), "noise")
    append_line(bad_samples_file(run_dir, 0), asdict(bad))
    found = audit_run(run_dir)
    assert found.problems == []
    assert "of which 1 could not be read" in found.counts[0]
    append_line(bad_samples_file(run_dir, 0), asdict(bad) | {"step": 2})
    assert audit_run(run_dir).problems == [f"step 2: {bad.shard} key {bad.key} is listed as bad and was not planned"]


def test_a_checkpoint_stands_where_its_step_ended(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    states = read_steps(run_dir, 6)
    commit(run_dir, states[2], num_samples(run_dir, 3))
    assert audit_run(run_dir).problems == []
    commit(run_dir, states[4] | {"row": 1}, num_samples(run_dir, 5))
    (problem,) = audit_run(run_dir).problems
    assert problem.startswith("step-00000005: row 1 of segment 0 after")


def test_the_steps_around_a_checkpoint_are_the_same_from_a_fresh_stream(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    with pytest.raises(UserError, match="no checkpoint"):
        verify_resume(run_dir, 3)
    states = read_steps(run_dir, 8, world_size=2)
    commit(run_dir, states[4], 0)
    found = verify_resume(run_dir, 3)
    assert found.problems == []
    assert found.counts == ["3 steps before and 3 after the checkpoint of step 5"]
    change(consumed_file(run_dir, 1), 7, digest="0" * 32)
    assert verify_resume(run_dir, 1).problems == []
    (problem,) = verify_resume(run_dir, 2).problems
    assert problem.startswith("step 7, rank 1: was given")


def test_a_checkpoint_that_stands_elsewhere_is_noticed(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    states = read_steps(run_dir, 8)
    commit(run_dir, states[4] | {"row": 9}, 0)
    problems = verify_resume(run_dir, 2).problems
    assert "step 5 ends at row 10 of segment 0, the checkpoint stands at row 9 of segment 0" in problems
    assert any(problem.startswith("step 6, rank 0: began at row 10") for problem in problems)


def test_a_run_that_has_read_nothing_is_said(make_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"read nothing(.|\n)*genlip train"):
        audit_run(make_run())


def read_as_rank(run_dir: Path, rank: int, world_size: int, state: State | None, last_step: int) -> None:
    """One process of a job: takes steps up to the last, and leaves its latest state behind after each."""
    loader, saved = Loader(set_up(run_dir), run_dir, rank, world_size), run_dir / f"state-{rank}.json"
    if state:
        loader.load_state_dict(state)
    for batch in loader:
        saved.with_suffix(".tmp").write_text(json.dumps(loader.state_dict()))
        saved.with_suffix(".tmp").replace(saved)
        if batch.step == last_step:
            os._exit(0)


def live(run_dir: Path, world_size: int, state: State | None, last_step: int, kill_after_steps: int = 0) -> State:
    """A job's life, which ends at the last step, or when one rank is killed with SIGKILL and then the others.

    Returns:
        The latest state that all ranks have reached.
    """
    for file in run_dir.glob("state-*.json"):
        file.unlink()
    files = [run_dir / f"state-{rank}.json" for rank in range(world_size)]
    ranks = [
        forks.Process(target=read_as_rank, args=(run_dir, rank, world_size, state, last_step))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    give_up_at = time.monotonic() + MAX_WAIT_S

    def states() -> list[State]:
        return [json.loads(file.read_text()) for file in files if file.exists()]

    while kill_after_steps and (
        len(states()) < world_size
        or min(int(one["step"]) for one in states()) < (int(state["step"]) if state else 0) + kill_after_steps
    ):
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
    if kill_after_steps:
        for process in random.sample(ranks, len(ranks)):
            process.kill()
    for process in ranks:
        process.join(MAX_WAIT_S)
        assert process.exitcode == (-signal.SIGKILL if kill_after_steps else 0)
    return min(states(), key=lambda one: int(one["step"]))


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_and_resized_is_in_order(make_run: Callable[..., Path]) -> None:
    run_dir = make_run("train.lanes=4")
    random.seed(0)
    state, reached = None, []
    for world_size in (2, 4, 1, 2):
        state = live(run_dir, world_size, state, last_step=10**6, kill_after_steps=random.randint(5, 30))
        reached.append(int(state["step"]))
    assert reached == sorted(set(reached))
    live(run_dir, 4, state, last_step=reached[-1] + 20)
    entries = read_lines(consumed_file(run_dir, 0))
    assert len(entries) > reached[-1] + 20, "no step was taken twice"
    found = audit_run(run_dir)
    assert found.problems == []
    assert found.counts[0].startswith(f"{reached[-1] + 20:,} steps, ")
