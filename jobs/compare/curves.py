"""What was measured during training, against samples seen and against FLOPs: means over seeds, with their extremes."""

from collections.abc import Sequence

import numpy as np

from jobs.compare.results import Comparison, Curve
from jobs.compare.summary import TITLES
from jobs.reporting.charts import Line, Marks, line_chart
from train.network import LOSS_UNITS

LOSS, KNN = "language/loss", "knn/top1"


def curve_charts(comparison: Comparison) -> str:
    """All charts; words where nothing was measured during training."""
    if not any(comparison.curves.values()):
        return "<p>nothing was measured during training (eval.every is 0)</p>"
    charts = [_together(comparison, KNN, f"k-NN top-1 against {x}", x) for x in ("samples seen", "FLOPs")]
    for number, name in enumerate(comparison.objectives):
        line = _line(comparison.curves.get(name, ()), LOSS, "samples seen", "", number)
        if line:
            title = f"held-out loss of {TITLES[name]}, {LOSS_UNITS[name]}, against samples seen"
            charts.append(line_chart(title, [line], Marks()))
    return f'<div class="charts">{"".join(charts)}</div>'


def _together(comparison: Comparison, metric: str, title: str, x: str) -> str:
    found = [
        _line(comparison.curves.get(name, ()), metric, x, TITLES[name], number)
        for number, name in enumerate(comparison.objectives)
    ]
    lines = [line for line in found if line]
    return line_chart(title, lines, Marks(), write=lambda value: f"{value:.0%}", against=x) if lines else ""


def _line(curves: Sequence[Curve], metric: str, x: str, name: str, colour: int) -> Line | None:
    """The mean over seeds of each measurement in turn, as many as all seeds have."""
    having = [curve for curve in curves if metric in curve.values_P]
    num_points = min((len(curve.samples_P) for curve in having), default=0)
    if not num_points:
        return None
    x_SP = np.array([(curve.samples_P if x == "samples seen" else curve.flops_P)[:num_points] for curve in having])
    y_SP = np.array([curve.values_P[metric][:num_points] for curve in having], float)
    band = (y_SP.min(0), y_SP.max(0)) if len(having) > 1 else None
    return Line(name, x_SP.mean(0), y_SP.mean(0), f"c{colour}", band)
