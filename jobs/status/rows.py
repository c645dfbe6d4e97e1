"""The records of a run as one row for each stage; those of a job array are summed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from jobs.stages import MAX_FAILED_UNITS, Stats
from jobs.status.records import Record, Shown

ORDER = ("ingest", "annotate", "select", "curate", "tokenizer", "train", "eval", "caption", "compare")
COVERED_BY = {"annotate": ("curate", "ingest"), "select": ("curate", "ingest"), "curate": ("ingest",)}
"""Which commands do a stage, too."""
_WORST_FIRST: tuple[Shown, ...] = ("silent", "failed", "running", "stopped", "not begun", "partial", "done")


@dataclass(frozen=True)
class Trouble:
    """A command that failed, or died, or was stopped."""

    part: str
    state: Shown
    why: str
    command: str
    """That goes on."""


@dataclass(frozen=True)
class Row:
    """How far a stage is. Its fields are what `genlip status --json` prints."""

    name: str
    """`ingest`, `ingest plan`, `ingest parts`."""
    verb: str
    state: Shown
    source: str = "record"
    """`files` where no command has left a record, and the stage's results tell it."""
    done: int = 0
    total: int = 0
    unit: str = ""
    """What these two count."""
    share: float | None = None
    """From 0 to 1; while it runs, of the loop that it is in."""
    rate_per_s: float | None = None
    eta_s: float | None = None
    line: str = ""
    """What it said last."""
    started_unix_s: float | None = None
    ended_unix_s: float | None = None
    """None while it runs; of a silent one its last sign of life."""
    took_s: float | None = None
    attempt: int = 1
    exit_code: int | None = None
    num_parts: int = 0
    parts: dict[Shown, int] = field(default_factory=dict)
    """Of a job array: parts by state."""
    parts_not_begun: list[str] = field(default_factory=list)
    covered_by: str = ""
    """The command that has done this stage since, or is at it."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Of one command, under the names that Prometheus sees."""
    troubles: list[Trouble] = field(default_factory=list)
    failed_units: dict[str, str] = field(default_factory=dict)
    """The first so many that stay pending, with the reason."""
    num_failed_units: int = 0
    folder: str = ""
    """With the log; of a job array, that of the part to look at first."""


def make_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each command, in the order of a run; job arrays of one size are one row."""
    groups: dict[tuple[int, str, int, str], list[Record]] = {}
    for record in records:
        verb, part = record.stats.verb, record.stats.part
        count = part.partition("/")[2]
        place = ORDER.index(verb) if verb in ORDER else len(ORDER)
        # The plan comes before the parts, and these before the command that does what is left.
        key = (place, verb, 2 if not part else 1 if count else 0, count or part)
        groups.setdefault(key, []).append(record)
    rows = [_parts(group) if key[2] == 1 else _single(group[0]) for key, group in sorted(groups.items())]
    return [_covered(row, rows) for row in rows]


def _single(record: Record) -> Row:
    stats = record.stats
    counted = stats.done / stats.total if stats.total else None
    share = stats.share if record.state == "running" and stats.share is not None else counted
    is_running = record.state == "running"
    return Row(
        name=f"{stats.verb} {stats.part}".strip(),
        verb=stats.verb,
        state=record.state,
        done=stats.done,
        total=stats.total,
        unit=stats.unit,
        share=1.0 if share is None and record.state == "done" else share,
        rate_per_s=stats.rate_per_s,
        eta_s=_eta_s(stats) if is_running else None,
        line=stats.line,
        started_unix_s=stats.started_unix_s,
        ended_unix_s=None if is_running else stats.updated_unix_s,
        took_s=record.took_s,
        attempt=stats.attempt,
        exit_code=stats.exit_code,
        numbers=stats.numbers,
        troubles=_troubles([record]),
        failed_units=stats.failed_units,
        num_failed_units=stats.num_failed_units,
        folder=str(record.folder),
    )


def _eta_s(stats: Stats) -> float | None:
    """As the command itself says it, else from its rate; None before this attempt has done anything."""
    if not stats.rate_per_s:
        return None
    return stats.numbers.get(f"genlip_{stats.verb}_eta_seconds", (stats.total - stats.done) / stats.rate_per_s)


def _parts(records: Sequence[Record]) -> Row:
    """The sum of a job array."""
    rows = [_single(record) for record in records]
    num_parts = int(records[0].stats.part.partition("/")[2])
    begun = {record.stats.part for record in records}
    missing = [part for part in (f"{index}/{num_parts}" for index in range(num_parts)) if part not in begun]
    states: list[Shown] = [row.state for row in rows] + ["not begun"] * len(missing)
    counts = {state: states.count(state) for state in _WORST_FIRST if state in states}
    state = next(iter(counts))
    if state == "not begun" and len(counts) > 1:
        state = "partial"
    done, total = sum(row.done for row in rows), sum(row.total for row in rows)
    total = round(total * num_parts / len(rows))  # parts are of equal size, give or take a unit
    rate_per_s = sum(row.rate_per_s or 0.0 for row in rows if row.state == "running")
    ended = [row.ended_unix_s for row in rows if row.ended_unix_s]
    began = min(record.stats.started_unix_s for record in records)
    last = max(record.stats.updated_unix_s for record in records)
    first = min(rows, key=lambda row: (_WORST_FIRST.index(row.state), -(row.started_unix_s or 0.0)))
    units = {name: why for row in rows for name, why in row.failed_units.items()}
    return Row(
        name=f"{first.verb} parts",
        verb=first.verb,
        state=state,
        done=done,
        total=total,
        unit=first.unit,
        share=done / total if total else None,
        rate_per_s=rate_per_s or None,
        eta_s=(total - done) / rate_per_s if state == "running" and rate_per_s else None,
        line=first.line,
        started_unix_s=began,
        ended_unix_s=max(ended) if len(ended) == len(rows) else None,
        took_s=last - began,
        attempt=max(row.attempt for row in rows),
        exit_code=max((row.exit_code or 0 for row in rows), default=None),
        num_parts=num_parts,
        parts=counts,
        parts_not_begun=missing,
        troubles=_troubles(sorted(records, key=lambda record: int(record.stats.part.partition("/")[0]))),
        failed_units=dict(list(units.items())[:MAX_FAILED_UNITS]),
        num_failed_units=sum(row.num_failed_units for row in rows),
        folder=first.folder,
    )


def _troubles(records: Iterable[Record]) -> list[Trouble]:
    return [
        Trouble(record.stats.part, record.state, record.why, record.command)
        for record in records
        if record.state in ("failed", "silent", "stopped")
    ]


def _covered(row: Row, rows: Sequence[Row]) -> Row:
    """A stage that did not end well is no matter any more where a later command does the same."""
    if row.state in ("done", "running") or row.started_unix_s is None:
        return row
    verbs = (*COVERED_BY.get(row.verb, ()), *((row.verb,) if row.name != row.verb else ()))
    for other in rows:
        is_later = other.started_unix_s is not None and other.started_unix_s > row.started_unix_s
        if other.name in verbs and is_later and other.state in ("done", "running"):
            return replace(row, state=other.state, covered_by=other.name, troubles=[], failed_units={})
    return row
