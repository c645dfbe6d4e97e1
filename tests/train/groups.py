"""Training processes as a launcher starts them, forked from a process that has imported everything once."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

from train.checkpoints import committed_checkpoints
from train.metrics import read_metrics

MAX_WAIT_S = 500

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when the import below finds no GPU
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["train.main", "jobs.cli", "jobs.training", "deepspeed"])


def _train(environment: dict[str, str], arguments: list[str], output: Path) -> None:
    os.environ.update(environment)
    sys.argv = ["genlip", *arguments]
    from jobs.cli import main

    with output.open("a", encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
        main()


class Group:
    """The processes of one life of a run."""

    def __init__(
        self, recipe_path: Path, *overrides: str, world_size: int = 1, words: Sequence[str] = ("train",)
    ) -> None:
        """Args:
        recipe_path: Of the run.
        overrides: `--set` options.
        world_size: Processes.
        words: The command's verb and its other options.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [*words, str(recipe_path), *(part for one in overrides for part in ("--set", one))]
        self._output = recipe_path.with_name(f"output-{port}.txt")
        self.processes: list[BaseProcess] = []
        for rank in range(world_size):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            # The server that forks them was started at another time.
            environment |= {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "GENLIP_"))}
            process = forks.Process(target=_train, args=(environment, arguments, self._output))
            process.start()
            self.processes.append(process)

    @property
    def output(self) -> str:
        """What they have said so far."""
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""

    def wait(self) -> list[int | None]:
        """Their exit codes."""
        for process in self.processes:
            process.join(MAX_WAIT_S)
        return [process.exitcode for process in self.processes]

    def finish(self) -> None:
        """Wait for their success."""
        codes = self.wait()
        assert codes == [0] * len(codes), f"{codes}: {self.output}"

    def send(self, number: signal.Signals, rank: int) -> None:
        pid = self.processes[rank].pid
        assert pid
        os.kill(pid, number)

    def wait_until(self, is_reached: Callable[[], bool]) -> None:
        """Watch for something while they run."""
        give_up_at = time.monotonic() + MAX_WAIT_S
        while not is_reached():
            assert all(process.is_alive() for process in self.processes), self.output
            assert time.monotonic() < give_up_at
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to all."""
        for process in self.processes:
            process.kill()
            process.join()


def is_past(run_dir: Path, step: int) -> Callable[[], bool]:
    """Whether a run has logged a step."""
    return lambda: any(entry["step"] >= step for entry in read_metrics(run_dir))


def is_saved(run_dir: Path, num_checkpoints: int, step: int) -> Callable[[], bool]:
    """Whether it has committed so many checkpoints, and logged a step."""
    return lambda: len(committed_checkpoints(run_dir)) >= num_checkpoints and is_past(run_dir, step)()
