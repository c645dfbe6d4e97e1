"""`genlip plan --scale`: the plan as lines, stage by stage, with a table at the end."""

from collections.abc import Sequence

from jobs.capacity.inputs import Inputs, read_inputs
from jobs.capacity.sheet import Sheet, Show
from jobs.capacity.stages import plan_curate, plan_ingest, plan_shards
from jobs.capacity.terms import Term, digits, show_bytes, show_count
from jobs.capacity.training import plan_train
from jobs.console import table
from jobs.recipe import Recipe

_COLUMNS: dict[str, tuple[str, Show]] = {
    "hours": ("hours", digits),
    "node_hours": ("node-hours", show_count),
    "bytes": ("storage", show_bytes),
    "put": ("PUT", show_count),
    "get": ("GET", show_count),
}


def scale_lines(recipe: Recipe, scale: str) -> list[str]:
    """The plan at a scale.

    Args:
        recipe: of the run.
        scale: rows of the input, and samples that training sees: `8B`.

    Raises:
        UserError: The scale is no number, or the store cannot be read.
    """
    return plan_page(read_inputs(recipe, scale))


def plan_page(inputs: Inputs) -> list[str]:
    """The same of inputs that are gathered."""
    sheets = [make(inputs) for make in (plan_ingest, plan_curate, plan_shards, plan_train)]
    lines = [f"{inputs.rows.text} of the input, and as many samples seen in training", *inputs.notes]
    for sheet in sheets:
        lines += ["", f"{sheet.name}: {sheet.machines.title}"]
        width = max(len(line.label) for line in sheet.lines)
        results = max(len(line.result) for line in sheet.lines)
        lines += [f"  {one.label:<{width}}  {one.result:>{results}}  {one.formula}".rstrip() for one in sheet.lines]
    lines += ["", *table(_table(sheets, inputs)).splitlines()]
    if warnings := [f"WARNING {text}" for sheet in sheets for text in sheet.warnings]:
        lines += ["", *warnings]
    if missing := {what: step for sheet in sheets for what, step in sheet.unknown.items() if step}:
        width = max(len(what) for what in missing)
        lines += ["", "not known", *(f"  {what:<{width}}  next: {step}" for what, step in missing.items())]
    return lines


def _table(sheets: Sequence[Sheet], inputs: Inputs) -> list[list[str]]:
    """Stages by totals, and their sums; of a sum that lacks something it is said that it is more."""
    columns = {**_COLUMNS, "money": (inputs.recipe.capacity.currency, show_count)}
    rows = [["stage", "limit", "nodes", *(title for title, _ in columns.values())]]
    for sheet in sheets:
        cells = [
            _cell(sheet.totals.get(name), show, name == "money" and sheet.lacks_costs)
            for name, (_, show) in columns.items()
        ]
        rows.append([sheet.name, sheet.limit or "–", _cell(sheet.machines.nodes, show_count), *cells])
    sums = []
    for name, (_, show) in columns.items():
        terms = [sheet.totals[name] for sheet in sheets if name in sheet.totals]
        total = Term(sum(term.value for term in terms if not term.missing), "")
        lacks = any(term.missing for term in terms) or (name == "money" and any(sheet.lacks_costs for sheet in sheets))
        sums.append(_cell(total, show, lacks))
    return [*rows, ["all", "", "", *sums]]


def _cell(term: Term | None, show: Show, is_more: bool = False) -> str:
    if term is None:
        return "–"
    return "?" if term.missing else f"{'> ' if is_more else ''}{show(term.value)}"
