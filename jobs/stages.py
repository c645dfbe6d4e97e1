"""What a command leaves in the run folder while it runs, and `genlip status` and `genlip logs` read.

RUN/stages/VERB/stats.json   how far it is, how it ended: the `Stats` of the newest attempt
RUN/stages/VERB/log.txt      what it said, with the time, attempt after attempt: a line in ten seconds of a long loop,
                             a line for each logged step of a training (about 10 MB for 250,000 steps)
RUN/stages/recipe.json       the recipe of the command that was started last

VERB is `ingest-3-16` in a job array.
"""

import json
import os
import re
import shlex
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from jobs.console import clock, listening
from jobs.recipe import Recipe, save_recipe
from pipeline.errors import EXIT_FAILED_UNITS, EXIT_PREEMPTED, EXIT_USAGE

STAGES = "stages"
STATS_FILE = "stats.json"
LOG_FILE = "log.txt"
LAST_RECIPE = "recipe.json"
WRITE_EVERY_S = 2.0
HEARTBEAT_EVERY_S = 10.0
MAX_FAILED_UNITS = 100
"""So many failed units are kept by name; the others are counted."""
SUBMITTED_BY = "GENLIP_SUBMITTED_BY"
"""Environment variable of a job on a cluster: the command line that submitted it, to be repeated in its place."""

State = Literal["running", "done", "failed", "stopped"]
"""`stopped`: asked to, and the same command goes on."""


@dataclass
class Stats:
    """How far a command is: the content of a stats.json."""

    verb: str
    part: str
    """`3/16` in a job array, else empty."""
    command: str
    """That starts it again."""
    cwd: str
    """Where; empty where the command runs anywhere."""
    host: str
    pid: int
    pid_namespace: str
    """In which the pid means something: containers on one host have their own."""
    started_unix_s: float
    updated_unix_s: float
    """Sign of life, and in the end the time of the end."""
    attempt: int = 1
    state: State = "running"
    exit_code: int | None = None
    message: str = ""
    """The error that ended it."""
    line: str = ""
    """What it said last."""
    share: float | None = None
    """Of the loop that it is in, from 0 to 1; one command may have several loops."""
    done: int = 0
    total: int = 0
    unit: str = ""
    """What `done` and `total` count, e.g. units, samples."""
    rate_per_s: float | None = None
    """Of what `done` counts, in this attempt."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Under the names that Prometheus sees, see `jobs.cluster.run_numbers.METRICS`."""
    failed_units: dict[str, str] = field(default_factory=dict)
    """The first so many units that failed, with the reason."""
    num_failed_units: int = 0


class Stage:
    """A command that runs. Its stats.json is written every two seconds at most, every ten at least, and at its end.

    That it cannot be written any more (a full disk) is no reason to end the command.
    """

    def __init__(self, run_dir: Path, verb: str, part: str = "") -> None:
        self.folder = run_dir / STAGES / folder_name(verb, part)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self.ended = threading.Event()
        self._first: tuple[float, int] | None = None
        self._written_s = 0.0
        self._before = read_stats(self.folder)
        self.stats = _begin(verb, part, self._before)
        self._log: TextIO = (self.folder / LOG_FILE).open("a", encoding="utf-8")
        self._write()

    def progress(self, done: int, total: int, unit: str, numbers: dict[str, float]) -> None:
        """Say how far the command is."""
        now = time.monotonic()
        with self._lock:
            stats = self.stats
            began_s, done_before = self._first = self._first or (now, done)
            if now > began_s:
                stats.rate_per_s = (done - done_before) / (now - began_s)
            stats.done, stats.total, stats.unit = done, total, unit
            stats.numbers |= numbers
        self._write_now_and_then()

    def unit_failed(self, name: str, why: str) -> None:
        """Record a unit that stays pending."""
        with self._lock:
            self.stats.num_failed_units += 1
            if len(self.stats.failed_units) < MAX_FAILED_UNITS:
                self.stats.failed_units[name] = why

    def said(self, line: str) -> None:
        """Log what the command said."""
        with self._lock:
            lines = [one for one in line.split("\n") if one.strip()]
            for one in lines:
                self.log(f"{clock(time.time())}  {one}")
            if lines:
                self.stats.line = lines[-1].strip()

    def progressed(self, line: str, share_done: float, is_due: bool) -> None:
        """Take a progress line; it is logged now and then."""
        with self._lock:
            self.stats.line, self.stats.share = line, share_done
            if is_due:
                self.said(line)
        self._write_now_and_then()

    def log(self, line: str) -> None:
        """Add a line to the log as it is."""
        with suppress(OSError, ValueError):  # ValueError: a thread that speaks after the end
            self._log.write(line + "\n")
            self._log.flush()

    def end(self, state: State, exit_code: int, message: str = "") -> None:
        """Say how the command ended.

        A refusal (exit code 2) has touched nothing: what the record says of an attempt that is done, or at work
        elsewhere, stays. The log has it.
        """
        with self._lock:
            self.ended.set()
            self.stats.state, self.stats.exit_code, self.stats.message = state, exit_code, message
            self.log(f"{clock(time.time())}  === {state}, exit code {exit_code}")
            if exit_code == EXIT_USAGE and self._before and self._before.state in ("done", "running"):
                self.stats = self._before
            else:
                self.stats.updated_unix_s = time.time()
            self._write()
            with suppress(OSError):
                self._log.close()

    def beat(self) -> None:
        """Give a sign of life until the end, however long the command says nothing."""
        while not self.ended.wait(HEARTBEAT_EVERY_S):
            with self._lock:
                if not self.ended.is_set():
                    self._beat()

    def _write_now_and_then(self) -> None:
        with self._lock:
            if not self.ended.is_set() and time.monotonic() - self._written_s >= WRITE_EVERY_S:
                self._beat()

    def _beat(self) -> None:
        self.stats.updated_unix_s = time.time()
        self._write()

    def _write(self) -> None:
        self._written_s = time.monotonic()
        temporary = self.folder / f".{STATS_FILE}.{os.getpid()}"
        with suppress(OSError):
            temporary.write_text(json.dumps(asdict(self.stats), indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.folder / STATS_FILE)


def folder_name(verb: str, part: str) -> str:
    """Of a stage: `ingest`, `ingest-3-16`, `ingest-plan`."""
    return "-".join([verb, *part.split("/")]).rstrip("-")


def read_stats(folder: Path) -> Stats | None:
    """The record in a stage's folder; None where there is none that this version can read."""
    try:
        return Stats(**json.loads((folder / STATS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def pid_namespace() -> str:
    """Of this process; empty where the system has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


_current: list[Stage] = []


def current_stage() -> Stage | None:
    """The command that this process runs; None in a worker or a test."""
    return _current[-1] if _current else None


@contextmanager
def stage(run_dir: Path, verb: str, part: str = "") -> Iterator[Stage]:
    """Record a command for the length of the block. The caller ends it; a block that raises has failed.

    Raises:
        OSError: The record cannot be begun.
    """
    one = Stage(run_dir, verb, part)
    stats = one.stats
    who = f"process {stats.pid} on {stats.host}"
    one.log(f"{clock(stats.started_unix_s)}  === {stats.command} · attempt {stats.attempt} · {who}")
    threading.Thread(target=one.beat, name="heartbeat", daemon=True).start()
    _current.append(one)
    try:
        with listening(one):
            yield one
    except KeyboardInterrupt:
        one.end("stopped", EXIT_FAILED_UNITS, "interrupted by the keyboard")
        raise
    except BaseException as error:
        exit_code = getattr(error, "exit_code", None)  # as the command line does, see `jobs.cli`
        one.said(f"error: {error}" if exit_code is not None else traceback.format_exc())
        one.end("failed", 1 if exit_code is None else exit_code, str(error) or repr(error))
        raise
    finally:
        one.ended.set()
        _current.pop()


def recorded(work: Callable[[], int], run_dir: Path, verb: str, part: str = "", recipe: Recipe | None = None) -> int:
    """Run a verb inside its stage. Returns its exit code.

    Of a group of processes the first one records. Where the run folder cannot be written the verb runs all the same,
    for the record serves only those who watch; a verb that needs the folder says so itself.

    Args:
        work: The verb.
        run_dir: Of the run; made if need be.
        verb: Its name.
        part: In a job array.
        recipe: To be kept beside the record, for there may be no other in the run folder yet.
    """
    if os.environ.get("RANK", "0") != "0":
        return work()
    with ExitStack() as stack:
        try:
            one = stack.enter_context(stage(_prepare(run_dir, recipe), verb, part))
        except OSError as error:
            sys.stderr.write(f"note: genlip status will not see this, {run_dir}: {error.strerror or error}\n")
            return work()
        exit_code = work()
        states: dict[int, State] = {0: "done", EXIT_PREEMPTED: "stopped"}
        one.end(states.get(exit_code, "failed"), exit_code)
        return exit_code


def _prepare(run_dir: Path, recipe: Recipe | None) -> Path:
    """The run folder, where it can be written."""
    if re.match(r"\w+:/", str(run_dir)):
        raise OSError("not a folder of this machine")
    (run_dir / STAGES).mkdir(parents=True, exist_ok=True)
    if recipe:
        save_recipe(recipe, run_dir / STAGES / LAST_RECIPE)
    return run_dir


def _begin(verb: str, part: str, before: Stats | None) -> Stats:
    """The record of a new attempt, which knows of the one before what is true until it is counted again."""
    now = time.time()
    submitted = os.environ.get(SUBMITTED_BY)
    stats = Stats(
        verb=verb,
        part=part,
        command=submitted or shlex.join(["genlip", *sys.argv[1:]]),
        cwd="" if submitted else str(Path.cwd()),
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_namespace=pid_namespace(),
        started_unix_s=now,
        updated_unix_s=now,
    )
    if before:
        stats.attempt = before.attempt + 1
        stats.done, stats.total, stats.unit = before.done, before.total, before.unit
        stats.numbers = dict(before.numbers)
    return stats
