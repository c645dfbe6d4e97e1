"""The status as a person reads it: one line for each stage, what is wrong below it, at most so many columns."""

import os
import shutil
import sys
import time
from collections.abc import Iterator

from jobs.console import BAR_CHARS, bar, duration
from jobs.status.files import Training
from jobs.status.records import Shown
from jobs.status.rows import Row
from jobs.status.run import RunStatus

COLUMNS = 100
"""Where the output is no terminal."""
MAX_SHOWN = 5
"""Parts, and units."""
MAX_MESSAGE_LINES = 6
_INDENT = " " * 4
_DATE_CHARS = len("2026-11-29 ")
_COLOURS: dict[Shown, int] = {"running": 36, "silent": 31, "failed": 31, "stopped": 33, "partial": 33, "done": 32}


def lines(status: RunStatus) -> Iterator[str]:
    """Line by line; only commands may be longer than the terminal is wide."""
    columns = shutil.get_terminal_size((COLUMNS, 0)).columns
    yield _cut(f"{status.run} · {status.run_dir} · store {status.store}", columns)
    if status.note:
        yield _cut(status.note, columns)
    yield ""
    name_chars = max(len(row.name) for row in status.stages)
    for row in status.stages:
        yield _coloured(_cut(_row(row, name_chars), columns), row.state)
        for line in _below(row, status):
            yield _INDENT + (line if line.startswith("  retry: ") else _cut(line, columns - len(_INDENT)))
    if status.log:
        yield ""
        yield f"the end of {status.log.path}"
        yield from (_cut(f"{_INDENT}{line[_DATE_CHARS:]}", columns) for line in status.log.lines)
    yield ""
    yield f"next: {status.next}" if status.next else _last_words(status)


def _row(row: Row, name_chars: int) -> str:
    share = f"{bar(row.share)} {int(row.share * 100):>3}%" if row.share is not None else " " * (BAR_CHARS + 7)
    facts = " · ".join(filter(None, [_counts(row), *_pace(row), _times(row)]))
    return f"{row.name:<{name_chars}}  {row.state:<{len('not begun')}}  {share}  {facts}".rstrip()


def _counts(row: Row) -> str:
    return f"{row.done:,} of {row.total:,} {row.unit}" if row.total else ""


def _pace(row: Row) -> list[str]:
    if row.state != "running":
        return []
    rate = f"{row.rate_per_s:,.1f}/s" if row.rate_per_s else ""
    return [rate if row.eta_s is None else f"eta {duration(row.eta_s)}, {rate}"]


def _times(row: Row) -> str:
    if row.covered_by:
        return f"by genlip {row.covered_by}"
    if row.took_s is None or row.started_unix_s is None:
        return ""
    times = []
    if row.state == "running":
        times += [f"for {duration(time.time() - row.started_unix_s)}"] if row.eta_s is None else []
    else:
        times += [f"took {duration(row.took_s)}"] if row.state == "done" else []
        times += [_ago(row.ended_unix_s)] if row.ended_unix_s else []
    times += [f"attempt {row.attempt}"] if row.attempt > 1 else []
    return ", ".join(times)


def _below(row: Row, status: RunStatus) -> Iterator[str]:
    """What there is to say of a stage beside its line."""
    if row.parts and row.state != "done":
        yield from _parts(row)
    if row.verb == "train" and row.state != "not begun" and status.training:
        yield _training(status.training)
    elif row.state == "running" and row.line:
        yield row.line
    for trouble in row.troubles[:MAX_SHOWN]:
        first, *more = trouble.why.splitlines()
        yield f"part {trouble.part}: {first}" if trouble.part else first
        yield from more[: MAX_MESSAGE_LINES - 1]
        if trouble.part:
            yield f"  retry: {trouble.command}"
    if len(row.troubles) > MAX_SHOWN:
        yield f"and {len(row.troubles) - MAX_SHOWN} parts more, in: genlip status --json"
    yield from _failed_units(row)


def _parts(row: Row) -> Iterator[str]:
    counts = ", ".join(f"{count} {state}" for state, count in reversed(row.parts.items()))
    yield f"{row.num_parts} parts: {counts}"
    if row.parts_not_begun and len(row.parts_not_begun) <= MAX_SHOWN:
        yield f"not begun: {', '.join(row.parts_not_begun)}"


def _failed_units(row: Row) -> Iterator[str]:
    if not row.failed_units:
        return
    yield f"{row.num_failed_units:,} units stay pending:"
    for name, why in list(row.failed_units.items())[:MAX_SHOWN]:
        yield f"  {name}  {why}"
    if row.num_failed_units > MAX_SHOWN:
        yield f"  and {row.num_failed_units - MAX_SHOWN:,} more"
    if row.troubles and not row.num_parts:
        yield f"  retry: {row.troubles[0].command}"


def _training(training: Training) -> str:
    saved = _ago(training.checkpoint_unix_s) if training.checkpoint_unix_s else "none yet"
    refused = f" · {training.num_refused_steps:,} steps refused" if training.num_refused_steps else ""
    return (
        f"step {training.step:,} · loss {training.loss:.4f} · {training.samples_per_s:,.1f} samples/s"
        f" · data-wait {training.data_wait:.1%} · checkpoint {saved}{refused}"
    )


def _last_words(status: RunStatus) -> str:
    is_running = any(row.state == "running" for row in status.stages)
    return f"follow it: genlip logs {status.run_dir} --follow" if is_running else "nothing is left to do"


def _ago(unix_s: float) -> str:
    seconds = max(0.0, time.time() - unix_s)
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds // length_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _cut(line: str, columns: int) -> str:
    return line if len(line) <= columns else line[: columns - 1] + "…"


def _coloured(line: str, state: Shown) -> str:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ or state not in _COLOURS:
        return line
    return line.replace(f" {state} ", f" \033[{_COLOURS[state]}m{state}\033[0m ", 1)
