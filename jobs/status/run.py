"""The whole status of a run: its stages, its training, its latest words and its next command."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.stages import LOG_FILE
from jobs.status.files import RunFiles, Training
from jobs.status.find import Found
from jobs.status.records import PROBLEMS, read_records
from jobs.status.rows import ORDER, Row, make_rows
from pipeline.errors import UserError

ALWAYS = ("ingest", "curate", "tokenizer", "train", "eval")
"""Stages that each run has; the others are shown where they have been run."""
LOG_LINES = 5
_TAIL_BYTES = 1 << 14


@dataclass(frozen=True)
class Log:
    """The end of a log."""

    path: str
    lines: list[str]


@dataclass(frozen=True)
class RunStatus:
    """What `genlip status --json` prints."""

    run: str
    run_dir: str
    store: str
    is_well: bool
    """Whether nothing has failed and nothing is silent."""
    next: str
    """The command to go on with; empty while one runs, and where all is done."""
    stages: list[Row]
    """In the order of a run."""
    training: Training | None
    log: Log | None
    """Of the stage that runs, or failed."""
    note: str = ""
    """What could not be looked at."""


class Watched:
    """A run that is looked at, once or again and again."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._files = RunFiles(found.recipe, found.run_dir)

    def look(self) -> RunStatus:
        """The status now."""
        found = self._found
        rows, training, note = make_rows(read_records(found.run_dir)), None, ""
        try:
            training = self._files.training()
            rows = [_trained(row, training) for row in self._with_files(rows)]
        except (OSError, UserError) as error:
            note = f"not all could be looked at: {error}"
        return RunStatus(
            run=found.recipe.name,
            run_dir=str(found.run_dir),
            store=found.recipe.store,
            is_well=not any(row.state in PROBLEMS for row in rows),
            next=self._next(rows),
            stages=rows,
            training=training,
            log=_log(rows),
            note=note,
        )

    def _with_files(self, recorded: Sequence[Row]) -> list[Row]:
        """The rows, with those that no record is of, and with counts where a record's are not to be had."""
        counts = {row.verb for row in recorded if row.total and row.state != "silent"}
        is_comparison = any(row.verb == "compare" for row in recorded)
        wanted = [verb for verb in ALWAYS if not (is_comparison and verb in ("train", "eval"))]
        known = {verb: self._files.row(verb) for verb in wanted if verb not in counts}
        rows = [_filled(row, known.get(row.verb)) for row in recorded]
        missing = [row for verb, row in known.items() if not any(one.name == verb for one in recorded)]
        if any(row.num_parts for row in recorded):  # they are the units' record
            missing = [row for row in missing if row.verb != "ingest"]
        return sorted([*rows, *missing], key=lambda row: ORDER.index(row.verb) if row.verb in ORDER else len(ORDER))

    def _next(self, rows: Sequence[Row]) -> str:
        """The command of the first stage that has ended badly, else of the first that is not done."""
        if any(row.state == "running" for row in rows):
            return ""
        # What is left of a job array, and the curation after it, is what the command without a part does.
        has_parts = any(row.num_parts for row in rows)
        for row in rows:
            if row.troubles:
                return self._command(row.verb) if row.num_parts else row.troubles[0].command
        has_shards = any(row.verb == "curate" and row.state == "done" for row in rows)
        trained_unix_s = max((row.ended_unix_s or 0.0 for row in rows if row.verb == "train"), default=0.0)
        for row in rows:
            is_outdated = row.verb == "eval" and row.ended_unix_s is not None and row.ended_unix_s < trained_unix_s
            is_needless = row.verb == "ingest" and row.source == "files" and has_shards  # e.g. of `genlip index`
            if is_outdated or (row.state != "done" and not is_needless):
                return self._command("ingest" if row.name == "curate" and has_parts else row.verb)
        return ""

    def _command(self, verb: str) -> str:
        return f"genlip {verb} {self._found.run_dir if verb in ('eval', 'caption') else self._found.recipe_path}"


def tail(path: Path, num_lines: int) -> list[str]:
    """The last lines of a log."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - max(_TAIL_BYTES, 400 * num_lines)))
            text = stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-num_lines:] if num_lines else []


def _filled(row: Row, files: Row | None) -> Row:
    """A record that counts nothing yet, or has not been kept up, with what the results count."""
    if files is None or not files.total or row.num_parts:
        return row
    return replace(row, done=files.done, total=files.total, unit=files.unit, share=files.share)


def _trained(row: Row, training: Training | None) -> Row:
    """The training log is ahead of the record, and the trainer's rate leaves out its start."""
    if row.verb != "train" or row.source != "record" or training is None:
        return row
    counts = {"done": training.samples, "total": training.length, "share": training.samples / training.length}
    row = replace(row, unit="samples", **counts)  # type: ignore[arg-type]
    return replace(row, eta_s=training.eta_s, rate_per_s=training.samples_per_s) if row.state == "running" else row


def _log(rows: Sequence[Row]) -> Log | None:
    """Of the stage that began last among those that run, else among those that failed."""
    for states in (("running",), (*PROBLEMS, "stopped")):
        candidates = [row for row in rows if row.state in states and row.folder and not row.covered_by]
        if candidates:
            path = Path(max(candidates, key=lambda row: row.started_unix_s or 0.0).folder) / LOG_FILE
            return Log(str(path), tail(path, LOG_LINES))
    return None
