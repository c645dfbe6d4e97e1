"""Tasks on a real Ray that hang, die, fail or are to stop: each item ends exactly once, and none hangs on."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from jobs.fan_out import TASK_RETRIES, TASKS_PER_SLOT, Policy, Stragglers, fan_out
from jobs.ray_pool import num_cpus, ray_session

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAX_WAIT_S = 60


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with ray_session("local"):
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
        yield


def _note_run(folder: Path, item: int) -> int:
    """Leave a file named after this run of an item, with its process. Returns how many there are."""
    runs = len(list(folder.glob(f"{item}-*")))
    (folder / f"{item}-{runs}").write_text(str(os.getpid()))
    return runs + 1


def _hang_at_first(item: int, folder: Path, hanging: int) -> int:
    if _note_run(folder, item) == 1 and item == hanging:
        time.sleep(3600)
    return item * 10


def _die(item: int, folder: Path, times: int) -> int:
    if item == 1 and _note_run(folder, item) <= times:
        os.kill(os.getpid(), 9)
    if item == 2:
        raise ValueError("two")
    return item * 10


def _wait_for(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + MAX_WAIT_S
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _hold(item: int, folder: Path) -> int:
    """Run until the file `go` is there."""
    _note_run(folder, item)
    _wait_for((folder / "go").exists)
    return item


def test_a_straggler_is_run_once_more_and_the_loser_is_ended(tmp_path: Path) -> None:
    notes: list[str] = []
    policy = Policy(Stragglers(factor=2.0, floor_s=0.5), note=notes.append)
    done = list(fan_out(partial(_hang_at_first, folder=tmp_path, hanging=2), range(8), policy=policy))
    assert sorted((one.item, one.result, one.error) for one in done) == [(item, item * 10, None) for item in range(8)]
    assert len(list(tmp_path.glob("2-*"))) == 2
    assert len(list(tmp_path.iterdir())) == 9, "no other task was repeated"
    assert [note for note in notes if "once more" in note] == notes
    assert len(notes) == 1
    loser = int((tmp_path / "2-0").read_text())
    _wait_for(lambda: not psutil.pid_exists(loser))


@pytest.mark.parametrize(("times", "result"), [(1, 10), (99, None)])
def test_a_task_whose_process_dies_runs_again_until_it_is_given_up(
    tmp_path: Path, times: int, result: int | None
) -> None:
    done = {one.item: one for one in fan_out(partial(_die, folder=tmp_path, times=times), range(5))}
    assert {item: one.result for item, one in done.items()} == {0: 0, 1: result, 2: None, 3: 30, 4: 40}
    assert len(list(tmp_path.iterdir())) == min(times, TASK_RETRIES) + 1
    assert isinstance(done[2].error, ValueError)
    if result is None:
        assert type(done[1].error).__name__ == "WorkerCrashedError"
        assert done[1].node


def test_asked_to_stop_what_runs_is_finished_and_nothing_begins(tmp_path: Path) -> None:
    slots, taken = num_cpus(), list[int]()
    looks: list[bool] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    def should_stop() -> bool:
        """Once all slots are taken, and the driver has had the time to hear of it."""
        looks.append(len(list(tmp_path.iterdir())) >= slots)
        if sum(looks) < 2:
            return False
        (tmp_path / "go").touch()
        return True

    done = list(fan_out(partial(_hold, folder=tmp_path), items(), policy=Policy(should_stop=should_stop)))
    assert len(taken) == TASKS_PER_SLOT * slots, "no more are taken than are kept in flight"
    started = {path.name.partition("-")[0] for path in tmp_path.glob("*-0")}
    assert sorted(str(one.item) for one in done) == sorted(started)
    assert all(one.error is None for one in done)
    assert slots <= len(started) < len(taken)
