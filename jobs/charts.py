"""Small charts as SVG text for the report: lines over samples seen, and bars. No script, no library."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
BLUE, GREY, GREEN, ORANGE, RED = "#1f6fb2", "#8a8f98", "#3b8f5a", "#d08a1d", "#b8433f"


def line_chart(xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> str:
    """One line with axes and labelled ticks."""
    if len(xs) < 2:
        return "<p>too few points for a curve</p>"
    y_ticks, x_ticks = _ticks(min(ys), max(ys)), _ticks(min(xs), max(xs))
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min([*ys, *y_ticks]), max([*ys, *y_ticks])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for y in y_ticks:
        _, at = place(x_low, y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e3e6ea"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        at, _ = place(x, y_low)
        anchor = "end" if at > WIDTH - 3 * RIGHT else "middle"
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{x:,.0f}</text>')
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, xs, ys))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x_label)}</text>')
    return (
        f'<figure><figcaption>{escape(y_label)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(y_label)} against {escape(x_label)}">{"".join(parts)}</svg></figure>'
    )


def bars(rows: Sequence[tuple[str, int, str]]) -> str:
    """Horizontal bars, each (label, count, colour); the first is the whole. Labels indented by spaces are parts."""
    largest = max((count for _, count, _ in rows), default=1) or 1
    total = rows[0][1] if rows else 1
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


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that cover a range."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    magnitude: float = 10.0 ** (len(f"{raw:.0f}") - 1) if raw >= 1 else 10.0 ** -(len(f"{1 / raw:.0f}"))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10, 20, 50, 100) if magnitude * factor >= raw)
    first = int(low // step)
    return [round(step * number, 10) for number in range(first, first + 12) if low <= step * number <= high]
