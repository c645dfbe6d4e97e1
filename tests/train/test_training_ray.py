"""`genlip train` under Ray Train: a killed worker is replaced, a signal stops the job, a dry run leaves nothing."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from groups import MAX_WAIT_S, Group, is_saved
from train_runs import samples_of_steps

from jobs.cluster.exporter import read_numbers
from jobs.elastic import RESTARTS
from pipeline.errors import EXIT_PREEMPTED
from tests.environment import without_group
from train.audit import audit_run
from train.jsonl import read_lines
from train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@contextmanager
def command(
    recipe: Path, output: Path, *arguments: str, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`genlip train` as a person types it; gone with all its processes when a test gives up."""
    environment = (env or without_group()) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "-m", "jobs.cli", "train", str(recipe), *arguments]
    with output.open("wb") as stream:
        driver = subprocess.Popen(words, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield driver
    finally:
        if driver.poll() is None:
            for process in [*psutil.Process(driver.pid).children(recursive=True), driver]:
                process.kill()
            driver.wait()


def options(*overrides: str) -> list[str]:
    return [part for one in overrides for part in ("--set", one)]


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = psutil.Process(driver.pid).children(recursive=True)
    return [one for one in found if "TrainWorker" in "".join(one.cmdline()[:1])]


def wait_until(driver: subprocess.Popen[bytes], output: Path, is_reached: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + MAX_WAIT_S
    while not is_reached():
        assert driver.poll() is None, output.read_text()
        assert time.monotonic() < give_up_at, output.read_text()
        time.sleep(0.05)


def goes_on(run_dir: Path, before: dict[str, Any]) -> bool:
    """Whether a new life of a run has come past a line of its log: it counts its own time anew."""
    last = (read_metrics(run_dir) or [before])[-1]
    return last["step"] > before["step"] and last["unix_s"] - last["uptime_s"] > before["unix_s"]


def test_a_killed_worker_is_replaced_and_a_signal_to_the_command_stops_it(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "output.txt"
    every = samples_of_steps(make_run("name=count"), 4)
    overrides = ["train.length=1000000", f"train.checkpoint.every={every}"]
    killed = make_run("name=killed", *overrides, "run.workers=2")
    with command(recipe, output, *options("name=killed", *overrides, "run.workers=2")) as driver:
        wait_until(driver, output, is_saved(killed, 1, step=5))
        before = read_metrics(killed)[-1]
        workers = workers_of(driver)
        assert len(workers) == 2
        workers[1].kill()
        wait_until(driver, output, lambda: goes_on(killed, before))
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(MAX_WAIT_S) == EXIT_PREEMPTED, output.read_text()
        assert "stopped on request" in output.read_text()
    assert [(entry["kind"], entry["processes"]) for entry in read_lines(killed / RESTARTS)] == [("failure", 2)]
    entries = read_metrics(killed)
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    assert audit_run(killed).problems == []
    assert read_numbers(killed)["genlip_train_samples_seen"] == entries[-1]["samples"]

    straight = make_run("name=straight", *overrides)
    group = Group(recipe, "name=straight", *overrides, world_size=2)
    group.wait_until(is_saved(straight, 1, step=len(entries)))
    group.kill()
    theirs = {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in read_metrics(straight)}
    for entry in entries:
        # The command has one thread a process, the group one a core: sums are rounded differently.
        assert (entry["loss"], entry["grad_norm"]) == pytest.approx(theirs[entry["step"]], rel=1e-6)


def test_a_dry_run_says_what_a_step_costs_and_leaves_nothing(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run()
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    output = tmp_path / "output.txt"
    with command(tmp_path / "recipe.yaml", output, "--dry-run", *options("run.workers=2")) as driver:
        assert driver.wait(MAX_WAIT_S) == 0, output.read_text()
    printed = output.read_text()
    assert "dry run    2 steps on 2 processes" in printed
    assert "memory     " in printed
    assert "a step of" in printed
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
