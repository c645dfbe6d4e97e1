"""What a command costs: CPU time, wall time and peak memory of its whole process tree."""

import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_EVERY_S = 0.25
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    cpu_s: float
    """User and system time of all processes."""
    wall_s: float
    peak_bytes: int
    """Largest sum of the proportional set sizes (PSS) of all processes, seen four times a second."""
    exit_code: int | None
    """None where the command had not ended at its time limit, and was killed."""


def measure_command(command: Sequence[str], environment: Mapping[str, str], log: Path, limit_s: float) -> Cost:
    """Runs a command in a process group of its own.

    Args:
        command: program and arguments.
        environment: added to this process's.
        log: gets what the command prints.
        limit_s: after which the whole group is killed.
    """
    # Processes whose parent has ended come to this one, so that their time is counted like that of the others.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, began = _children_cpu_s(), time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=stream, stderr=stream, start_new_session=True
        )
    peak = _Peak(process.pid)
    try:
        exit_code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        exit_code = None
    finally:
        wall_s = time.perf_counter() - began
        peak.stop()
        _end_group(process)
    return Cost(_children_cpu_s() - before, wall_s, peak.num_bytes, exit_code)


class _Peak:
    """Looks at the memory of a process and its descendants until it is stopped."""

    def __init__(self, pid: int) -> None:
        self.num_bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self, pid: int) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            with suppress(psutil.NoSuchProcess):
                root = psutil.Process(pid)
                self.num_bytes = max(self.num_bytes, sum(map(_pss, [root, *root.children(recursive=True)])))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0  # it has just ended


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the command, and waits for all of it, because only then is its time counted."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-process.pid, 0)


def _children_cpu_s() -> float:
    """CPU time of all processes started here that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
