"""The part of the report that shows how training went: curves against samples seen."""

from html import escape

import numpy as np

from jobs.console import duration
from jobs.curation.charts import compact
from jobs.reporting.charts import NUM_COLOURS, Format, Line, Marks, line_chart, stacked_chart
from jobs.reporting.history import HELDOUT_LOSS, NEIGHBOURS, Column, Curve, Heldout, History, Points, reduce

_MAX_SOURCES = 12
"""Drawn by name; a chart of more says nothing."""


def training_section(history: History, heldout: Heldout, unit: str = "nats per token") -> str:
    """All charts.

    Args:
        history: Of the run; may be empty, or of a run that goes on.
        heldout: From `read_heldout`.
        unit: Of the loss.
    """
    if not len(history):
        return "<h2>Training</h2><p>not trained yet</p>"
    marks = Marks(history.resumed_at(), history.saved_at())
    charts = [
        _loss(history, heldout.get(HELDOUT_LOSS), unit, marks),
        *_by_source(history, "source_losses", f"training loss by source, {unit}", marks),
        _neighbours(heldout.get(NEIGHBOURS), marks),
        _plain(history, "lr", "learning rate", marks, write=lambda value: f"{value:.3g}"),
        _gradient_norm(history, marks),
        _plain(history, "samples_per_s", "samples per second", marks),
        _speed(history, marks),
        _plain(history, "time_shares/data", "share of time waiting for data", marks, write=_percent),
        _breakdown(history, marks),
        _plain(history, "memory_gib", "largest memory so far, GiB", marks),
        *_by_source(history, "passes", "passes over each source", marks),
    ]
    return f'<h2>Training</h2><p class="note">{_facts(history)}</p><div class="charts">{"".join(charts)}</div>'


def _loss(history: History, heldout: Points | None, unit: str, marks: Marks) -> str:
    curve = _curve(history, "loss")
    if not len(curve.x):
        return ""
    lines = [
        Line("each line of the log", curve.x, curve.mean, "c0 faint", _band(curve)),
        Line("moving average", curve.x, curve.smoothed(), "c0"),
    ]
    if heldout:
        lines.append(Line("held-out", *heldout, "c1 dot" if len(heldout[0]) == 1 else "c1"))
    return line_chart(f"training loss, {unit}", lines, marks)


def _neighbours(top1: Points | None, marks: Marks) -> str:
    if top1 is None:
        return ""
    title = "held-out images of the class that their nearest training images have"
    return line_chart(title, [Line("", *top1, "c0")], marks, write=_percent, from_zero=True)


def _gradient_norm(history: History, marks: Marks) -> str:
    norm = history["grad_norm"]
    curve = reduce(history["samples"], np.where(norm > 0, norm, np.nan))
    if not len(curve.x):
        return ""
    title = "gradient norm before clipping, logarithmic"
    return line_chart(title, [Line("", curve.x, curve.mean, "c0", _band(curve))], marks, is_log=True)


def _speed(history: History, marks: Marks) -> str:
    if np.isfinite(history["mfu"]).any():
        return _plain(history, "mfu", "model FLOP utilisation", marks, write=_percent)
    return _plain(history, "flops_per_s", "model TFLOP/s, all processes", marks, write=lambda one: f"{one / 1e12:.3g}")


def _plain(history: History, name: str, title: str, marks: Marks, write: Format = compact) -> str:
    curve = _curve(history, name)
    if not len(curve.x):
        return ""
    line = Line("", curve.x, curve.mean, "c0", _band(curve))
    return line_chart(title, [line], marks, write=write, from_zero=True)


def _by_source(history: History, name: str, title: str, marks: Marks) -> list[str]:
    """A line for each source; none where there is one, which says no more than the whole."""
    sources = history.parts(name)
    lines = []
    for number, source in enumerate(sources[:_MAX_SOURCES]):
        curve = _curve(history, f"{name}/{source}")
        y_P = curve.smoothed() if name == "source_losses" else curve.mean
        lines.append(Line(source, curve.x, y_P, f"c{number % NUM_COLOURS}"))
    if len(sources) > _MAX_SOURCES:
        title += f"; the first {_MAX_SOURCES} of {len(sources)}"
    return [line_chart(title, lines, marks)] if len(lines) > 1 else []


def _breakdown(history: History, marks: Marks) -> str:
    parts = history.parts("time_shares")
    # A part that the lines of an earlier version lack was none of their time.
    shares_of = {part: np.nan_to_num(history[f"time_shares/{part}"]) for part in parts}
    curves = {part: reduce(history["samples"], share_N) for part, share_N in shares_of.items()}
    if not parts or not len(curves[parts[0]].x):
        return ""
    shares = [(f"{part} {curve.mean.mean():.1%}", curve.mean) for part, curve in curves.items()]
    return stacked_chart("where the time of the first process goes", curves[parts[0]].x, shares, marks)


def _facts(history: History) -> str:
    """Totals in a sentence."""
    uptimes_s, stall_s = history["uptime_s"][history.ends_life_N()], np.nansum(history["checkpoint_stall_s"])
    facts = [
        f"lines of the log: {len(history):,}, to step {history['step'][-1]:,.0f}",
        f"trained for {duration(float(np.nansum(uptimes_s)))}, resumed {len(uptimes_s) - 1:,} times",
        f"checkpoints: {len(history.saved_at()):,}, standing still for {stall_s:,.1f} s",
    ]
    return escape("; ".join(facts) + ". Dashed lines: resumed; notches at the bottom: checkpoints; pale: extremes.")


def _curve(history: History, name: str) -> Curve:
    return reduce(history["samples"], history[name])


def _band(curve: Curve) -> tuple[Column, Column] | None:
    return (curve.low, curve.high) if curve.is_reduced else None


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"
