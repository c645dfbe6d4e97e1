"""`genlip logs`: what a stage of a run has said, attempt after attempt."""

import time
from pathlib import Path

from jobs.console import say
from jobs.stages import LOG_FILE, STAGES
from jobs.status.find import find_run
from jobs.status.records import read_records
from jobs.status.run import tail
from pipeline.errors import UserError

POLL_S = 0.5


def show_log(run: Path, verb: str, follow: bool, num_lines: int) -> int:
    """Print the log of a stage. Returns the exit code.

    Args:
        run: A run folder or a recipe.
        verb: Of the stage, `ingest-3-16` or `ingest-3/16` in a job array; empty: the one that was begun last.
        follow: Go on with what is added, until Ctrl-C.
        num_lines: So many lines from the end; 0: all.

    Raises:
        UserError: There is no such run or log; those that there are, are named.
    """
    path = find_log(find_run(run).run_dir, verb)
    if num_lines:
        for line in tail(path, num_lines):
            say(line)
        offset = path.stat().st_size
    else:
        offset = _say_from(path, 0)
    try:
        while follow:
            time.sleep(POLL_S)
            offset = _say_from(path, offset)
    except KeyboardInterrupt:
        pass
    return 0


def find_log(run_dir: Path, verb: str) -> Path:
    """The log of a stage, by default of the newest."""
    names = [record.folder.name for record in read_records(run_dir)]  # in the order in which they were begun
    name = verb.replace("/", "-") or (names[-1] if names else "")
    if name in names:
        return run_dir / STAGES / name / LOG_FILE
    raise UserError(
        f"no log of {verb}" if verb else "nothing has been run yet",
        where=str(run_dir / STAGES),
        why=f"there are: {', '.join(sorted(names))}" if names else "",
        next_step=f"genlip status {run_dir}",
    )


def _say_from(path: Path, offset: int) -> int:
    """Print the whole lines after an offset. Returns where the next one begins."""
    with path.open("rb") as stream:
        stream.seek(offset)
        body = stream.read()
    whole = body[: body.rfind(b"\n") + 1]
    if whole:
        say(whole.decode("utf-8", "replace").removesuffix("\n"))
    return offset + len(whole)
