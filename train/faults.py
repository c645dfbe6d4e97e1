"""What can go wrong while a run trains, and what it does about it: requests to stop, hangs, steps that are refused."""

import faulthandler
import math
import signal
import statistics
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist

from pipeline.errors import UserError
from train.data.loader import StepBatch
from train.engine import Ranks
from train.jsonl import append_line
from train.metrics import REFUSED_STEPS
from train.recipe import RESTART_FILE, STOP_FILE, FaultSpec, SpikeSpec

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they end a job: SLURM's --signal=USR1@120 gives it two minutes."""


class StopRequest:
    """Whether this process was asked to stop: by a signal, by its launcher, or by RUN/stop or RUN/restart.

    Only the first process looks for the files. The ranks agree about it in the sum of the step's loss, so that all of
    them stop after the same step.
    """

    def __init__(self, run_dir: Path, ranks: Ranks, is_preempted: Callable[[], bool] = lambda: False) -> None:
        """Args:
        run_dir: Where a file asks to stop.
        ranks: This process's place.
        is_preempted: What the launcher knows, where signals do not reach the thread that trains.
        """
        self._files = [run_dir / STOP_FILE, run_dir / RESTART_FILE] if ranks.is_first else []
        self._is_preempted = is_preempted
        self._is_signalled = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Ray Train's workers train in another
            self._handlers = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_signalled = True

    def __bool__(self) -> bool:
        return self._is_signalled or self._is_preempted() or any(file.exists() for file in self._files)


class HangWatch:
    """Ends a process that makes no progress: its threads' stacks go to RUN/stacks-RANK.txt, its exit code is 1.

    The watch is a thread of the interpreter's own C code, which runs although Python is stuck in a library.
    """

    def __init__(self, run_dir: Path, rank: int, timeout_s: float) -> None:
        self._path = run_dir / f"stacks-{rank}.txt"
        self._timeout_s = timeout_s
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> "HangWatch":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pause()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()

    def progress(self) -> None:
        """Count anew from now on."""
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)

    def pause(self) -> None:
        """Do not count until there is progress again."""
        faulthandler.cancel_dump_traceback_later()


class SpikeGuard:
    """The running median of the losses, and the largest loss that is none of its spikes."""

    def __init__(self, spec: SpikeSpec, recent: Sequence[float] = ()) -> None:
        """Args:
        spec: How far above the median, and of how many steps.
        recent: The losses that count so far, from `recent` of an earlier life.
        """
        self._spec = spec
        self._losses = deque(recent, maxlen=spec.window)

    @property
    def max_loss(self) -> float:
        """Of the next step."""
        if not self._spec.factor or len(self._losses) < self._spec.window:
            return math.inf
        return self._spec.factor * statistics.median(self._losses)

    @property
    def recent(self) -> tuple[float, ...]:
        """The losses that count: state of the run, empty where no spikes are looked for."""
        return tuple(self._losses) if self._spec.factor else ()

    def add(self, loss: float) -> None:
        """Count the loss of a step that was taken."""
        self._losses.append(loss)


def record_refusal(run_dir: Path, ranks: Ranks, batch: StepBatch, reason: str) -> None:
    """Add a step that was not taken to RUN/refused-steps.jsonl, with the keys of its samples by rank.

    A collective: every rank calls it with its own part of the batch.
    """
    keys_by_rank: list[list[str]] | None = [[]] * ranks.world_size if ranks.is_first else None
    dist.gather_object(batch.keys, keys_by_rank)
    if keys_by_rank is not None:
        record = {"step": batch.step, "reason": reason, "num_samples": batch.num_samples, "keys_by_rank": keys_by_rank}
        append_line(run_dir / REFUSED_STEPS, record)


def check_refusals(num_refused: int, spec: FaultSpec, run_dir: Path, reason: str) -> None:
    """Stop a run that leaves out too many steps.

    Raises:
        UserError: There are more than the recipe allows.
    """
    if num_refused > spec.max_refused_steps:
        raise UserError(
            f"{num_refused} steps of this run were refused, the last because {reason}",
            where=str(run_dir / REFUSED_STEPS),
            why="it lists the keys of their samples; weights and optimiser were not touched by them, and the last"
            " checkpoint is intact",
            next_step="lower train.optim.lr, look at the samples, or raise train.faults.max_refused_steps",
        )
