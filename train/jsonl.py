"""Files of one JSON object per line, as the log and the ledgers of a run are: appended to, and kept whole by a kill."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAIL_BYTES = 1 << 16
"""Longer than any entry."""


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry. After a line that a kill cut short it begins a new one."""
    with path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            cut_short = stream.read(1) != b"\n"
        else:
            cut_short = False
        stream.write(b"\n" * cut_short + json.dumps(entry).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All entries, in order; lines that a kill cut short are left out, and an absent file has none."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole entry, without reading those before it; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
        *lines, _ = stream.read().split(b"\n")
    for line in reversed(lines):
        try:
            entry: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        return entry
    return None
