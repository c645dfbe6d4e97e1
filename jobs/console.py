"""What the user sees: lines, numbers and a progress line that suits a terminal as well as a log file."""

import shutil
import sys
import time
from collections.abc import Sequence

LOG_EVERY_S = 10.0
BAR_CHARS = 20


def say(line: str = "") -> None:
    """Write a line to the standard output, at once."""
    sys.stdout.write(line + "\n")
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
        if self._on_terminal:
            num_full = int(share_done * BAR_CHARS)
            bar = f"[{'#' * num_full}{'.' * (BAR_CHARS - num_full)}] "
            line = (bar + line)[: shutil.get_terminal_size().columns - 1]  # a wrapped line cannot be rewritten
            sys.stdout.write("\r" + line.ljust(self._width) + ("\n" if final else ""))
            sys.stdout.flush()
            self._width = len(line)
        elif final or now - self._last_s >= LOG_EVERY_S:
            say(line)
            self._last_s = now

    def note(self, line: str) -> None:
        """Say something in between, above the line in place."""
        say("\r" + line.ljust(self._width) if self._on_terminal else line)


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
