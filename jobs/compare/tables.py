"""The report's tables: every metric of every objective beside chance, and what each objective cost."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from jobs.compare.results import Comparison, Row
from jobs.compare.summary import TITLES, write_interval, write_signed, write_value
from jobs.console import duration

TASK_TITLES = {
    "language": "Language",
    "zero_shot": "Zero-shot classification",
    "retrieval": "Retrieval",
    "captioning": "Captioning",
    "probe": "Probes on frozen features",
    "knn": "Nearest neighbours on frozen features",
    "segmentation": "Segmentation on frozen features",
    "readout": "What patches say",
    "attention": "Where attention goes",
}


def metric_tables(comparison: Comparison) -> str:
    """A table for each task."""
    return "".join(
        f"<h3>{escape(TASK_TITLES.get(task, task))}</h3>{_task_table(list(rows), comparison.objectives)}"
        for task, rows in groupby(comparison.rows, key=lambda row: row.task)
    )


def _task_table(rows: Sequence[Row], objectives: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(TITLES[name])}</th>" for name in objectives)
    reasons = {f"{TITLES[name]}: {reason}" for row in rows for name, reason in row.reasons.items()}
    note = f'<p class="note">— {escape("; ".join(sorted(reasons)))}</p>' if reasons else ""
    lines = "".join(_metric_line(row, objectives) for row in rows)
    return f'<div class="wide"><table><tr><th>metric</th><th>chance</th>{head}</tr>{lines}</table></div>{note}'


def _metric_line(row: Row, objectives: Sequence[str]) -> str:
    name = row.name.partition("/")[2].replace("_", " ")
    unit = "" if row.unit in ("share", "") else f", {row.unit}"
    arrow = {"higher": " ↑", "lower": " ↓"}.get(row.better, "")
    chance = "" if row.chance is None else write_value(row.chance, row.unit)
    cells = "".join(_cell(row, objective) for objective in objectives)
    return f'<tr><td>{escape(name + unit)}{arrow}</td><td class="number quiet">{chance}</td>{cells}</tr>'


def _cell(row: Row, objective: str) -> str:
    value = row.values.get(objective)
    if value is None:
        return f'<td class="number quiet" title="{escape(row.reasons.get(objective, ""))}">—</td>'
    best = ' class="best"' if row.is_best(objective) else ""
    spread = "" if value.seed_std is None else f"seeds ± {_plain(value.seed_std, row.unit)}"
    details = [write_interval(value.low, value.high, row.unit), spread]
    below = "".join(f"<small>{part}</small>" for part in details if part)
    return f'<td class="number"><b{best}>{write_value(value.mean, row.unit)}</b>{below}</td>'


def _plain(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "share" else write_value(value, unit)


def difference_table(comparison: Comparison) -> str:
    """The first objective less each other one, for metrics that single images have."""
    first, others = comparison.objectives[0], comparison.objectives[1:]
    rows = [
        row for row in comparison.rows if row.better and any(one.low is not None for one in row.differences.values())
    ]
    if not rows:
        return ""
    head = "".join(f"<th>{TITLES[first]} − {TITLES[name]}</th>" for name in others)
    lines = []
    for row in rows:
        cells = "".join(_difference_cell(row, name) for name in others)
        chance = "" if row.chance is None else write_value(row.chance, row.unit)
        arrow = "↑" if row.better == "higher" else "↓"
        lines.append(f'<tr><td>{escape(row.name)} {arrow}</td><td class="number quiet">{chance}</td>{cells}</tr>')
    return f'<div class="wide"><table><tr><th>metric</th><th>chance</th>{head}</tr>{"".join(lines)}</table></div>'


def _difference_cell(row: Row, other: str) -> str:
    difference = row.differences.get(other)
    if difference is None:
        return '<td class="number quiet">—</td>'
    kind = "clear" if difference.excludes_zero else "quiet"
    interval = write_interval(difference.low, difference.high, row.unit)
    return f'<td class="number {kind}">{write_signed(difference.mean, row.unit)}<small>{interval}</small></td>'


def cost_table(comparison: Comparison) -> str:
    """Parameters, FLOPs, samples and time."""
    systems = comparison.systems
    num_seeds = {name: len(system.samples_seen) for name, system in systems.items()}
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("parameters", lambda name: f"{systems[name].parameters:,}"),
        ("of the backbone", lambda name: f"{systems[name].backbone_parameters:,}"),
        ("GFLOP a sample", lambda name: f"{systems[name].flops_per_sample / 1e9:.3f}"),
        (
            "samples seen, each seed",
            lambda name: ", ".join(f"{seen:,}" for seen in systems[name].samples_seen.values()),
        ),
        (
            "FLOP, all seeds",
            lambda name: f"{systems[name].flops_per_sample * sum(systems[name].samples_seen.values()):.3g}",
        ),
        ("training, mean", lambda name: duration(sum(systems[name].train_s.values()) / num_seeds[name])),
        ("measuring, mean", lambda name: duration(sum(systems[name].eval_s.values()) / num_seeds[name])),
    ]
    head = "".join(f"<th>{title}</th>" for title, _ in columns)
    lines = "".join(
        f"<tr><td>{TITLES[name]}</td>{''.join(f'<td class=number>{write(name)}</td>' for _, write in columns)}</tr>"
        for name in systems
    )
    return f'<div class="wide"><table><tr><th>objective</th>{head}</tr>{lines}</table></div>'
