"""Small charts as SVG text: curves over samples seen, stacked shares, bars. Colours are classes of the page's style."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from jobs.curation.charts import compact

WIDTH, HEIGHT = 480, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 8, 22
NUM_COLOURS = 6
_HEADROOM = 0.04
BLUE, GREY, GREEN, ORANGE, RED = "var(--c0)", "var(--quiet)", "var(--c2)", "var(--c1)", "var(--c4)"

Values = NDArray[np.float64]
Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A curve, or a dot if it has one point. P points."""

    name: str
    """In the legend; empty for a line that stands alone."""
    x_P: Values
    y_P: Values
    kind: str = "c0"
    """Its classes: c0 … c5 the colour, faint, dot."""
    band_P: tuple[Values, Values] | None = None
    """Least and largest value that each point stands for."""


@dataclass(frozen=True)
class Marks:
    """What happened on the way, in samples seen."""

    resumed: Sequence[float] = ()
    saved: Sequence[float] = ()


class _Frame:
    """Scales and axes of a chart."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], is_log: bool, write: Format) -> None:
        self._is_log, self._write = is_log, write
        self._x_low, self._x_high = x_range
        y_low, y_high = y_range
        if y_high <= y_low:  # a flat line in the middle
            y_low, y_high = y_low - (abs(y_low) or 1) / 2, y_high + (abs(y_high) or 1) / 2
        if is_log and y_low <= 0:
            y_low = y_high / 10
        self._y_low, self._y_high = y_low, y_high if is_log else y_high + _HEADROOM * (y_high - y_low)

    def x(self, samples: Values) -> Values:
        span = (self._x_high - self._x_low) or 1
        return LEFT + (samples - self._x_low) / span * (WIDTH - LEFT - RIGHT)

    def y(self, values: Values) -> Values:
        low, high = self._y_low, self._y_high
        if self._is_log:
            values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
        return HEIGHT - BOTTOM - (values - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def points(self, x_P: Values, y_P: Values) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(self.x(x_P), self.y(y_P), strict=True))

    def axes(self) -> str:
        ticks = log_ticks(self._y_low, self._y_high) if self._is_log else ticks_in(self._y_low, self._y_high)
        parts = []
        for value, at in zip(ticks, self.y(np.array(ticks, float)), strict=True):
            parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{self._write(value)}</text>')
        across = ticks_in(self._x_low, self._x_high)
        for value, at in zip(across, self.x(np.array(across, float)), strict=True):
            anchor = "end" if at > WIDTH - 3 * RIGHT else "middle"
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{compact(value)}</text>')
        return "".join(parts)

    def marks(self, marks: Marks) -> str:
        """A dashed line where the run was resumed, a notch where it was saved; one for each pixel at most."""
        floor = HEIGHT - BOTTOM
        resumed = sorted(set(self.x(np.array(marks.resumed, float)).round().tolist()))
        saved = sorted(set(self.x(np.array(marks.saved, float)).round().tolist()))
        lines = [f'<line class="resumed" x1="{at:.0f}" x2="{at:.0f}" y1="{TOP}" y2="{floor}"/>' for at in resumed]
        lines += [f'<line class="saved" x1="{at:.0f}" x2="{at:.0f}" y1="{floor}" y2="{floor - 5}"/>' for at in saved]
        return "".join(lines)


def line_chart(
    title: str,
    lines: Sequence[Line],
    marks: Marks,
    *,
    write: Format = compact,
    is_log: bool = False,
    from_zero: bool = False,
    against: str = "samples seen",
) -> str:
    """Curves.

    Args:
        title: What is drawn, with its unit.
        lines: At least one with a point; drawn in this order.
        marks: What happened on the way.
        write: How a value is written at the axis.
        is_log: A logarithmic axis; values must be positive.
        from_zero: The axis begins at 0.
        against: What the horizontal axis counts.
    """
    x = np.concatenate([line.x_P for line in lines])
    y = np.concatenate([values for line in lines for values in (line.y_P, *(line.band_P or ()))])
    low = 0.0 if from_zero else float(y.min())
    frame = _Frame((float(x.min()), float(x.max())), (low, float(y.max())), is_log, write)
    body = frame.axes() + frame.marks(marks) + "".join(_drawn(frame, line) for line in lines)
    return _figure(title, body, [(line.name, line.kind) for line in lines if line.name], against)


def stacked_chart(title: str, x_P: Values, shares: Sequence[tuple[str, Values]], marks: Marks) -> str:
    """Shares of a whole, one upon the other.

    Args:
        title: What is shared.
        x_P: Samples seen.
        shares: Name and share [P] of each part, the lowest first.
        marks: What happened on the way.
    """
    top_P = np.sum([share_P for _, share_P in shares], axis=0)
    whole = (float(x_P.min()), float(x_P.max())), (0.0, max(1.0, float(top_P.max())))
    frame = _Frame(*whole, is_log=False, write=lambda value: f"{value:.0%}")
    floor_P, parts, legend = np.zeros(len(x_P)), [], []
    for number, (name, share_P) in enumerate(shares):
        kind = f"c{number % NUM_COLOURS}"
        parts.append(f'<polygon class="area {kind}" points="{_outline(frame, x_P, floor_P, floor_P + share_P)}"/>')
        floor_P = floor_P + share_P
        legend.append((name, kind))
    return _figure(title, "".join(parts) + frame.axes() + frame.marks(marks), legend)


def bars(rows: Sequence[tuple[str, int, str]]) -> str:
    """Horizontal bars, each (label, count, colour); the first is the whole. Labels indented by spaces are parts."""
    largest = max((count for _, count, _ in rows), default=1) or 1
    total = (rows[0][1] if rows else 1) or 1
    lines = []
    for label, count, colour in rows:
        width = 100 * count / largest
        kind = ' class="part"' if label.startswith(" ") else ""
        lines.append(
            f"<tr><td{kind}>{escape(label.strip())}</td>"
            f'<td class="number">{count:,}</td><td class="number">{count / total:.1%}</td>'
            f'<td class="bar"><span style="width:{width:.2f}%;background:{colour}"></span></td></tr>'
        )
    return f'<table class="bars">{"".join(lines)}</table>'


def ticks_in(low: float, high: float) -> list[float]:
    """Some three to seven round numbers inside a range."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= raw * 0.999)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside a range, with their doubles and fives where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = -(-len(powers) // 7)
    factors = (1, 2, 5) if len(powers) < 4 else (1,)
    found = [factor * 10.0**power for power in powers[::stride] for factor in factors]
    return [value for value in found if low <= value <= high] or [low, high]


def _drawn(frame: _Frame, line: Line) -> str:
    if len(line.x_P) == 1 or "dot" in line.kind:
        places = zip(frame.x(line.x_P), frame.y(line.y_P), strict=True)
        return "".join(f'<circle class="area {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places)
    band = ""
    if line.band_P:
        band = f'<polygon class="band {line.kind}" points="{_outline(frame, line.x_P, *line.band_P)}"/>'
    return f'{band}<polyline class="line {line.kind}" points="{frame.points(line.x_P, line.y_P)}"/>'


def _outline(frame: _Frame, x_P: Values, low_P: Values, high_P: Values) -> str:
    """Along the upper edge and back along the lower."""
    if len(x_P) == 1:  # a single step takes the whole width
        x_P = np.array([x_P[0], x_P[0] + 1])
        low_P, high_P = np.repeat(low_P, 2), np.repeat(high_P, 2)
    return f"{frame.points(x_P, high_P)} {frame.points(x_P[::-1], low_P[::-1])}"


def _figure(title: str, body: str, legend: Sequence[tuple[str, str]], against: str = "samples seen") -> str:
    entries = "".join(f'<span><i class="{kind}"></i>{escape(name)}</span>' for name, kind in legend)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(title)} against {against}">{body}</svg>'
        f"{f'<div class=legend>{entries}</div>' if legend else ''}</figure>"
    )
