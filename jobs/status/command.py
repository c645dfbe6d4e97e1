"""`genlip status`: how far a run is, what failed, and the command that goes on."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from jobs.console import say
from jobs.status.find import find_run
from jobs.status.run import RunStatus, Watched
from jobs.status.text import lines

WATCH_EVERY_S = 2.0
EXIT_PROBLEM = 1
_CLEAR = "\033[H\033[J"


def show_status(run: Path, as_json: bool, watch: bool) -> int:
    """Show the status of a run. Returns the exit code: 1 where a stage has failed or is silent, else 0.

    Args:
        run: A run folder or a recipe.
        as_json: The fields of `jobs.status.run.RunStatus`, as one object; with `watch` one line each time.
        watch: Again every two seconds until Ctrl-C: in place on a terminal, else below.

    Raises:
        UserError: There is no such run.
    """
    watched = Watched(find_run(run))
    status = watched.look()
    _show(status, as_json, watch)
    try:
        while watch:
            time.sleep(WATCH_EVERY_S)
            status = watched.look()
            _show(status, as_json, watch)
    except KeyboardInterrupt:
        pass
    return 0 if status.is_well else EXIT_PROBLEM


def _show(status: RunStatus, as_json: bool, watch: bool) -> None:
    if as_json:
        say(json.dumps(asdict(status), indent=None if watch else 1))
        return
    text = "\n".join(lines(status))
    if not watch:
        say(text)
    elif sys.stdout.isatty():
        say(_CLEAR + text)
    else:
        say(text + "\n")
