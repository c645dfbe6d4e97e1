"""What a run was allowed to change when it was resumed (`genlip train --allow KEY`), written down in its folder.

RUN/allowed.jsonl   {"unix_s", "where", "differences"}; several processes may each write down what they have met
"""

import time
from collections.abc import Sequence
from pathlib import Path

from train.jsonl import append_line

ALLOWED_FILE = "allowed.jsonl"


def record_allowed(run_dir: Path, where: str, differences: Sequence[str]) -> None:
    """Add the differences to the record, if there are any.

    Args:
        run_dir: Of the run.
        where: What was made by another recipe.
        differences: In words, key first.
    """
    if differences:
        entry = {"unix_s": round(time.time(), 3), "where": where, "differences": list(differences)}
        append_line(run_dir / ALLOWED_FILE, entry)
