"""What the user sees: lines, numbers and a progress line that suits a terminal as well as a log file."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

LOG_EVERY_S = 10.0
BAR_CHARS = 20


class Listener(Protocol):
    """Hears what the user sees, to keep a log of it."""

    def said(self, line: str) -> None:
        """A line, which may have several."""

    def progressed(self, line: str, share_done: float, is_due: bool) -> None:
        """A progress line; `is_due` once in ten seconds, and at the end."""


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let it hear what is said during the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def say(line: str = "") -> None:
    """Write a line to the standard output, at once."""
    _write(line + "\n")
    for listener in _listeners:
        listener.said(line)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class Progress:
    """A bar and a line rewritten in place on a terminal; one line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self._on_terminal = sys.stdout.isatty()
        self._last_s = self.start
        self._width = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.start

    def show(self, line: str, share_done: float, final: bool = False) -> None:
        now = time.monotonic()
        is_due = final or now - self._last_s >= LOG_EVERY_S
        if is_due:
            self._last_s = now
        if self._on_terminal:
            text = f"{bar(share_done)} {line}"[: shutil.get_terminal_size().columns - 1]  # a wrapped line stays
            _write("\r" + text.ljust(self._width) + ("\n" if final else ""))
            self._width = len(text)
        elif is_due:
            _write(line + "\n")
        for listener in _listeners:
            listener.progressed(line, share_done, is_due)

    def note(self, line: str) -> None:
        """Say something in between, above the line in place."""
        if self._on_terminal:
            _write("\r" + " " * self._width + "\r")
        say(line)


def bar(share: float) -> str:
    """[########............]"""
    num_full = int(min(max(share, 0.0), 1.0) * BAR_CHARS)
    return f"[{'#' * num_full}{'.' * (BAR_CHARS - num_full)}]"


def clock(unix_s: float) -> str:
    """2026-11-29 13:22:10, of this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces; the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
