"""Charts of the curation report as SVG and HTML text. Colours are classes, so that a theme can change them."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 480, 170
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 20, 22
_HEAT_PX, _HEAT_MARGIN = 300, 44


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def compact(value: float) -> str:
    """1234567 → 1.23M, for axes."""
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"


def histogram(title: str, drawn: dict[str, Any], thresholds: Sequence[tuple[str, float]] = (), note: str = "") -> str:
    """All samples behind the kept ones, with the thresholds as lines.

    Args:
        title: what is counted.
        drawn: `Histogram.drawn`.
        thresholds: (rule, value).
        note: a line below.
    """
    edges = drawn["edges"]
    if not edges:
        return f'<figure><figcaption>{escape(title)}</figcaption><p class="note">no sample has a value</p></figure>'
    tallest = max([*drawn["all"], 1])

    def across(value: float) -> float:
        low, high, at = float(edges[0]), float(edges[-1]), value
        if drawn["scale"] == "log":
            low, high, at = math.log(low), math.log(high), math.log(max(value, low))
        return LEFT + (at - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def outline(counts: Sequence[int]) -> str:
        floor = HEIGHT - BOTTOM
        steps = [f"M{across(edges[0]):.1f},{floor}"]
        for number, count in enumerate(counts):
            steps.append(f"V{floor - count / tallest * (floor - TOP):.1f}H{across(edges[number + 1]):.1f}")
        return "".join([*steps, f"V{floor}Z"])

    parts = [f'<path class="all" d="{outline(drawn["all"])}"/><path class="kept" d="{outline(drawn["kept"])}"/>']
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    for tick in _ticks(edges[0], edges[-1], drawn["scale"]):
        at = across(tick)
        anchor = "start" if at < LEFT + 12 else "end" if at > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{compact(tick)}</text>')
    for number, (rule, value) in enumerate(thresholds):
        at = across(value)
        anchor, shift = ("end", -4) if at > WIDTH * 0.6 else ("start", 4)
        label = f"{rule}: {value:.4g}"
        parts.append(f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="threshold-label" x="{at + shift:.1f}" y="{12 + 12 * (number % 3)}"'
            f' text-anchor="{anchor}">{escape(label)}</text>'
        )
    notes = _notes(drawn, note)
    below = f'<p class="note">{escape("; ".join(notes))}</p>' if notes else ""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(title)}: histogram of all and of kept samples">{"".join(parts)}</svg>{below}</figure>'
    )


def _notes(drawn: dict[str, Any], note: str) -> list[str]:
    """What the bars of a histogram do not show."""
    notes = [note] if note else []
    if drawn["num_null_all"]:
        notes.append(f"without a value: {drawn['num_null_all']:,}")
    if drawn["outside_all"]:
        notes.append(f"outside the axis: {drawn['outside_all']:,}")
    return notes


def two_bars(head: str, rows: Sequence[tuple[str, tuple[int, int]]], caption: str) -> str:
    """A table of values with their counts before and after, and bars of both."""
    largest = max([every for _, (every, _) in rows], default=1) or 1

    def bar(kind: str, count: int) -> str:
        return f'<span class="{kind}" style="width:{100 * count / largest:.2f}%"></span>' if count else ""

    lines = [
        f'<tr><th scope="row">{escape(value) or "<i>empty</i>"}</th><td class="number">{every:,}</td>'
        f'<td class="number">{kept:,}</td><td class="number">{share(kept, every)}</td>'
        f'<td class="bar">{bar("all", every)}{bar("kept", kept)}</td></tr>'
        for value, (every, kept) in rows
    ]
    return (
        f'<table class="bars"><caption>{escape(caption)}</caption><thead><tr><th scope="col">{escape(head)}</th>'
        '<th scope="col" class="number">stored</th><th scope="col" class="number">kept</th>'
        '<th scope="col" class="number">share</th><th scope="col" aria-label="bars"></th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def heat_map(title: str, cells: Sequence[tuple[int, int, int]], bins_per_octave: int, low: int, high: int) -> str:
    """Counts over width and height, both logarithmic; darker is more.

    Args:
        title: what is counted.
        cells: (bin of the width, bin of the height, count).
        bins_per_octave: bin b begins at 2^(b / bins_per_octave) pixels.
        low: first bin of both axes.
        high: one after the last.
    """
    step = _HEAT_PX / (high - low)
    most = max([count for _, _, count in cells], default=1)
    parts = [f'<rect class="frame" x="{_HEAT_MARGIN}" y="4" width="{_HEAT_PX}" height="{_HEAT_PX}"/>']
    for width, height, count in cells:
        strength = 0.12 + 0.88 * math.log1p(count) / math.log1p(most)
        x, y = _HEAT_MARGIN + (width - low) * step, 4 + (high - 1 - height) * step
        w_px, h_px = (2 ** (side / bins_per_octave) for side in (width, height))
        parts.append(
            f'<rect class="kept" x="{x:.1f}" y="{y:.1f}" width="{step:.1f}" height="{step:.1f}"'
            f' fill-opacity="{strength:.2f}"><title>{w_px:,.0f} × {h_px:,.0f} px: {count:,}</title></rect>'
        )
    octaves = [b for b in range(low, high + 1) if b % bins_per_octave == 0]
    stride = -(-len(octaves) // 7) or 1
    for place in octaves[::stride]:
        along, label = (place - low) * step, f"{2 ** (place // bins_per_octave):,}"
        parts.append(
            f'<text x="{_HEAT_MARGIN + along:.1f}" y="{_HEAT_PX + 20}" text-anchor="middle">{label}</text>'
            f'<text x="{_HEAT_MARGIN - 6}" y="{8 + _HEAT_PX - along:.1f}" text-anchor="end">{label}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_HEAT_MARGIN}" y1="{4 + _HEAT_PX}" x2="{_HEAT_MARGIN + _HEAT_PX}" y2="4"'
        ' stroke-dasharray="3 4"/>'
    )
    middle = _HEAT_MARGIN + _HEAT_PX / 2
    parts.append(f'<text x="{middle}" y="{_HEAT_PX + 36}" text-anchor="middle">width, px</text>')
    size = f"0 0 {_HEAT_PX + _HEAT_MARGIN + 16} {_HEAT_PX + 42}"
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class="heat" viewBox="{size}" role="img" aria-label='
        f'"{escape(title)}: heat map of width and height in pixels">{"".join(parts)}</svg></figure>'
    )


def _ticks(low: float, high: float, scale: str) -> list[float]:
    """Some three to seven round numbers inside a range."""
    if scale == "log":
        decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        stride = -(-len(decades) // 6) or 1
        return [10.0**power for power in decades][::stride]
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= raw * 0.999)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
