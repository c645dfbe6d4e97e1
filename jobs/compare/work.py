"""Trains and measures the runs of a comparison, some at a time, each in its own process, and says how far it is."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.compare.pace import Pace
from jobs.compare.runs import Run
from jobs.console import LOG_EVERY_S, duration, say
from jobs.stages import current_stage
from jobs.stop_requests import STOP_SIGNALS
from pipeline.errors import UserError
from train.metrics import LogTail
from train.recipe import RECIPE_FILE

_POLL_S = 0.2
_LAUNCHER = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
_OF_A_LAUNCHER = (*_LAUNCHER, "MASTER_ADDR", "MASTER_PORT")
Verb = Literal["train", "eval"]


@dataclass
class _Task:
    """A command at work on a run."""

    run: Run
    verb: Verb
    process: subprocess.Popen[bytes]
    tail: LogTail
    began_s: float = field(default_factory=time.monotonic)
    latest: dict[str, Any] = field(default_factory=dict)
    """The newest line of the training log that this command has written."""

    def look(self) -> None:
        if lines := self.tail.read():
            self.latest = lines[-1]

    def line(self) -> str:
        if self.verb == "eval":
            return f"{self.run.title} · measuring for {duration(time.monotonic() - self.began_s)}"
        if not self.latest:
            return f"{self.run.title} · training begins"
        step = self.latest
        return (
            f"{self.run.title} · step {step['step']:,} · samples {step['samples']:,}/{self.run.recipe.train.length:,}"
            f" · loss {step['loss']:.4f} · {step['samples_per_s']:,.1f} samples/s · eta {duration(step['eta_s'])}"
        )


def work(runs: Sequence[Run], parallel: int, pace: Pace) -> bool:
    """Do what is missing of all runs. A run that fails does not keep the others from going on.

    Args:
        runs: In the order in which they are begun.
        parallel: Processes at a time.
        pace: Learns how fast it goes.

    Returns:
        Whether it was asked to stop before the end; then every training has left a checkpoint.
    """
    waiting: deque[tuple[Run, Verb]] = deque()
    for run in runs:
        if verb := _next_verb(run):
            waiting.append((run, verb))
    active: list[_Task] = []
    last_s = time.monotonic()
    with _stop_requests() as requests:
        try:
            while (waiting or active) and not requests:
                while waiting and len(active) < parallel:
                    active.append(_start(*waiting.popleft(), parallel))
                time.sleep(_POLL_S)
                for task in [task for task in active if task.process.poll() is not None]:
                    active.remove(task)
                    if _ended(task, pace) and task.verb == "train":
                        waiting.appendleft((task.run, "eval"))
                if time.monotonic() - last_s >= LOG_EVERY_S:
                    last_s = time.monotonic()
                    _say_progress(active, runs, pace, parallel)
        finally:
            _stop(active)
        return bool(requests)


def _next_verb(run: Run) -> Verb | None:
    """What a run needs next."""
    if not run.is_trained():
        return "train"
    return "eval" if run.evaluation() is None else None


def _start(run: Run, verb: Verb, parallel: int) -> _Task:
    """Begin a command. Its log is locked for as long as it lives, even if this process is killed meanwhile.

    Raises:
        UserError: A command that an earlier comparison has started is still at work on this run.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _OF_A_LAUNCHER}
    environment["OMP_NUM_THREADS"] = str(max(1, num_cores() // parallel))
    if verb == "train":
        environment |= _LAUNCHER
    subject = run.run_dir / RECIPE_FILE if verb == "train" else run.run_dir
    tail = LogTail(run.run_dir)
    tail.read()  # what earlier lives have logged
    with run.log.open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is at work on this run",
                where=str(run.run_dir),
                next_step="wait for it, or end it, and run the same command again",
            ) from None
        command = [sys.executable, "-m", "jobs.cli", verb, str(subject)]
        log.write(f"\n$ genlip {verb} {subject}\n".encode())
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    say(f"{run.title} · genlip {verb} {subject} > {run.log}")
    return _Task(run, verb, process, tail)


def _ended(task: _Task, pace: Pace) -> bool:
    """Say how a command has ended. Returns whether it has done all."""
    task.look()
    if task.latest:
        pace.saw(task.run, task.latest)
    took_s = time.monotonic() - task.began_s
    code = task.process.returncode
    if code:
        say(f"{task.run.title} · genlip {task.verb} FAILED with exit code {code}; why: tail {task.run.log}")
    elif task.verb == "eval":
        pace.measured(took_s)
        say(f"{task.run.title} · measured in {duration(took_s)}")
    else:
        say(f"{task.run.title} · trained in {duration(took_s)}")
    return code == 0


def _say_progress(active: Sequence[_Task], runs: Sequence[Run], pace: Pace, parallel: int) -> None:
    for task in active:
        task.look()
        if task.latest:
            pace.saw(task.run, task.latest)
        say(task.line())
    num_done = sum(_next_verb(run) is None for run in runs)
    if stage := current_stage():
        stage.progress(num_done, len(runs), "runs", {})
    say(f"all: {num_done} of {len(runs)} runs done · eta {duration(pace.left_s(runs, parallel))}")


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that gains the number of each signal that asks to stop."""
    requests: list[int] = []
    before = {number: signal.signal(number, lambda number, _: requests.append(number)) for number in STOP_SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(active: Sequence[_Task]) -> None:
    """Ask the commands to stop, and wait until they have: a training writes a checkpoint first."""
    for task in active:
        say(f"{task.run.title} · stops")
        task.process.terminate()
    for task in active:
        task.process.wait()


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))
