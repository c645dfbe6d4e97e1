"""A run that outlives its processes: started again from its checkpoint, on fewer or more of them, within its budgets.

RUN/restarts.jsonl   {"unix_s", "kind", "what", "details", "checkpoint", "samples", "processes"}, a line for each time
RUN/restart          asks the processes to stop because there is room for more of them
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jobs.console import say
from jobs.ray_train import Devices, Loss, run_group, why_lost
from jobs.recipe import RunSpec
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from train.checkpoints import committed_checkpoints, read_state
from train.jsonl import append_line
from train.recipe import RESTART_FILE, STOP_FILE

RESTARTS = "restarts.jsonl"
LOOK_EVERY_S = 10.0
"""For room for more processes, while fewer than all run."""
NODE_IS_DEAD_AFTER_S = 25.0
"""By then Ray has noticed that a node is gone: five missed health checks, one every three seconds."""


class ElasticRun:
    """One command's attempts to bring a run to its end."""

    def __init__(self, run_dir: Path, length: int, spec: RunSpec, devices: Devices, sizes: Sequence[int]) -> None:
        """Args:
        run_dir: Of the run, shared by all nodes.
        length: In samples.
        spec: The budgets.
        devices: Of the cluster that is joined.
        sizes: Numbers of processes that it may train with, the largest first.
        """
        self._run_dir, self._length, self._devices, self._sizes = run_dir, length, devices, sizes
        self._left = {"failure": spec.max_failures, "preemption": spec.max_preemptions}
        self._allowed = dict(self._left)
        self._leaving: set[str] = set()

    def train(self, function: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> int:
        """Run the function in the processes until the run is complete or asked to stop. Returns the samples seen.

        Raises:
            UserError: As the function raised it, or a budget is used up.
            Exception: Ray Train ends as it never should.
        """
        room, has_waited = self._devices.room(self._leaving), False
        while not self._is_at_end():
            size = self._largest(room) or self._sizes[0]  # where not even the fewest fit, all are waited for
            loss = self._one_life(function, config, size)
            if self._is_at_end():
                break
            self._charge(loss)
            self._leaving |= loss.leaving
            self._settle(loss)
            room = self._devices.room(self._leaving)
            if loss.kind == "no room":
                room = min(room, self._devices.free())
            if loss.kind != "no room" or not has_waited:
                self._say_next(loss, room)
            has_waited = loss.kind == "no room"
        return _last_checkpoint(self._run_dir)[1]

    def _one_life(self, function: Callable[[dict[str, Any]], None], config: dict[str, Any], size: int) -> Loss:
        """Until the processes have ended. Returns why."""
        from ray.train import TrainingFailedError

        restart = self._run_dir / RESTART_FILE
        restart.unlink(missing_ok=True)  # of a command that was killed
        try:
            with self._restarting_when_there_is_room(size):
                leaving = run_group(function, config, self._devices, size, self._run_dir / "ray")
            if restart.exists():
                return Loss("more room", "there is room for more processes; a checkpoint is written")
            return Loss("preemption", "a node or process is taken away; a checkpoint is written", leaving=leaving)
        except TrainingFailedError as error:
            return why_lost(error)
        finally:
            restart.unlink(missing_ok=True)

    def _is_at_end(self) -> bool:
        return (self._run_dir / STOP_FILE).exists() or _last_checkpoint(self._run_dir)[1] >= self._length

    def _largest(self, room: int) -> int:
        """The most processes that fit; 0 where not even the fewest do."""
        return next((size for size in self._sizes if size <= room), 0)

    def _settle(self, loss: Loss) -> None:
        """Wait until Ray knows of a lost node, of whose processes it is first heard as broken connections."""
        if loss.kind != "failure" or loss.is_process:
            return
        before, end = self._devices.room(self._leaving), time.monotonic() + NODE_IS_DEAD_AFTER_S
        while self._devices.room(self._leaving) == before and time.monotonic() < end:
            time.sleep(0.5)

    def _charge(self, loss: Loss) -> None:
        if loss.kind not in self._left:
            return
        self._left[loss.kind] -= 1
        if self._left[loss.kind] >= 0:
            return
        key = {"failure": "run.max_failures", "preemption": "run.max_preemptions"}[loss.kind]
        allowed = self._allowed[loss.kind]
        raise UserError(
            f"training was interrupted again, by a {loss.kind}: {loss.what}",
            where=f"{key}: {allowed}",
            why=loss.details,
            next_step=f"the same command goes on from the last checkpoint; --set {key}={2 * allowed + 1} allows more",
            exit_code=EXIT_FAILED_UNITS,
        )

    def _say_next(self, loss: Loss, room: int) -> None:
        """Say and write down what was lost, and from where the run goes on."""
        checkpoint, samples = _last_checkpoint(self._run_dir)
        begins = f"from {checkpoint} ({samples:,} samples seen)" if checkpoint else "from the beginning: no checkpoint"
        size = self._largest(room)
        how = f"with {size} of {self._sizes[0]} processes" if size else f"when there is room for {self._sizes[-1]}"
        left = ", ".join(f"{self._left[kind]} of {self._allowed[kind]} {kind}s" for kind in self._left)
        say(f"{loss.kind}: {loss.what}")
        say(f"going on {begins} {how}; left: {left}")
        entry = {"unix_s": round(time.time(), 3), **{key: getattr(loss, key) for key in ("kind", "what", "details")}}
        entry |= {"checkpoint": checkpoint, "samples": samples, "processes": size}
        append_line(self._run_dir / RESTARTS, entry)

    @contextmanager
    def _restarting_when_there_is_room(self, size: int) -> Iterator[None]:
        """Within the block: ask the processes to stop as soon as more of them fit."""
        if size == self._sizes[0]:
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            looks = 0
            while looks < 2 and not ended.wait(LOOK_EVERY_S):
                more = min(self._devices.room(self._leaving) - size, self._devices.free())
                looks = looks + 1 if self._largest(size + more) > size else 0
            if not ended.is_set():
                (self._run_dir / RESTART_FILE).touch()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _last_checkpoint(run_dir: Path) -> tuple[str, int]:
    """Its name and the samples seen; a damaged one is passed over, as the processes will do."""
    for folder in reversed(committed_checkpoints(run_dir)):
        with suppress(UserError):
            return folder.name, read_state(folder).samples_seen
    return "", 0
