"""What the commands of a run have left in RUN/stages, and whether those that call themselves running still are."""

import os
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.console import clock, duration
from jobs.stages import STAGES, Stats, pid_namespace, read_stats

SILENT_AFTER_S = 120.0
"""Signs of life come every ten seconds; a network file system may show an old one for a minute."""

Shown = Literal["not begun", "running", "silent", "failed", "stopped", "partial", "done"]
"""`silent`: the record says running, but nothing is. `partial`: something is there, and nothing is at work on it."""

PROBLEMS: tuple[Shown, ...] = ("failed", "silent")
"""What somebody must look at."""


@dataclass(frozen=True)
class Record:
    """The newest attempt of a command."""

    folder: Path
    stats: Stats
    state: Shown

    @property
    def why(self) -> str:
        """In words for a person, where it is a problem."""
        stats = self.stats
        if self.state == "silent":
            gone = " is gone" if _is_gone(stats) else ""
            return f"no sign of life since {clock(stats.updated_unix_s)}: process {stats.pid} on {stats.host}{gone}"
        if self.state not in ("failed", "stopped"):
            return ""
        ending = f"exit code {stats.exit_code} after {duration(self.took_s)}"
        return f"{ending}: {stats.message}" if stats.message else ending

    @property
    def command(self) -> str:
        """That goes on, from the folder that this process is in."""
        stats = self.stats
        elsewhere = stats.cwd and Path(stats.cwd) != Path.cwd()
        return f"cd {shlex.quote(stats.cwd)} && {stats.command}" if elsewhere else stats.command

    @property
    def took_s(self) -> float:
        """So far, as far as it is known to have lived."""
        return self.stats.updated_unix_s - self.stats.started_unix_s


def read_records(run_dir: Path) -> list[Record]:
    """All that there are, the one that began last at the end."""
    found = [(folder, read_stats(folder)) for folder in sorted((run_dir / STAGES).glob("*/"))]
    records = [Record(folder, stats, _state(stats)) for folder, stats in found if stats]
    return sorted(records, key=lambda record: record.stats.started_unix_s)


def _state(stats: Stats) -> Shown:
    if stats.state != "running":
        return stats.state
    return "silent" if time.time() - stats.updated_unix_s > SILENT_AFTER_S or _is_gone(stats) else "running"


def _is_gone(stats: Stats) -> bool:
    """Whether its process is known to have ended: only where this process would see it."""
    if (stats.host, stats.pid_namespace) != (socket.gethostname(), pid_namespace()):
        return False
    try:
        os.kill(stats.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # of another user, and alive
    return False
