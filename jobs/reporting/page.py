"""`genlip report`: one HTML file that says what a run took in, learned and cost, and how to repeat each step."""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jobs.captions import CAPTIONS_FILE
from jobs.console import duration, say
from jobs.evaluation import EVAL_FILE, eval_rows, number
from jobs.recipe import Recipe
from jobs.reporting.charts import BLUE, GREEN, GREY, ORANGE, RED, bars
from jobs.reporting.history import HELDOUT_LOSS, Heldout, History, read_heldout, read_history
from jobs.reporting.style import STYLE
from jobs.reporting.training import training_section
from jobs.runs import read_run
from pipeline.curate.select import read_summary
from pipeline.funnel import read_funnel
from pipeline.store import Store
from train.network import LOSS_UNITS

REPORT_FILE = "report.html"
EVAL_LOSS = "language/nats_per_token"
"""Of `genlip eval`."""
TILES = {
    EVAL_LOSS: "held-out loss, nats per token",
    "zero_shot/captions_top1": "zero-shot top-1, class captions",
    "retrieval/image_to_text_r5": "image → text R@5",
    "knn/top1": "nearest neighbours top-1",
}
"""Results that stand at the top."""
STEPS_FILE = "steps.json"
"""Commands and their seconds, where something such as the demo has recorded them."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(run_dir: Path) -> int:
    """Write RUN/report.html from what the run folder and the store hold. Returns the exit code."""
    recipe = read_run(run_dir)
    history = read_history(run_dir)
    sections = [
        _headline(run_dir, recipe, history),
        _funnel(recipe),
        training_section(history, _heldout(run_dir), LOSS_UNITS[recipe.objective.kind]),
        _evaluation(run_dir),
        _captions(run_dir),
        _repeat(run_dir, recipe),
    ]
    title = f"genlip run {escape(recipe.name)}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy"'
        f' content="{POLICY}"><title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body>{''.join(sections)}</body></html>\n"
    )
    path = run_dir / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, one file)")
    return 0


def _headline(run_dir: Path, recipe: Recipe, history: History) -> str:
    tiles = []
    if len(history):
        seen, length = history["samples"][-1], recipe.train.length
        tiles.append((f"of {length:,} samples seen ({seen / length:.1%})", f"{seen:,.0f}"))
        tiles.append((f"last loss, {LOSS_UNITS[recipe.objective.kind]}", f"{history['loss'][-1]:.3f}"))
    result = _read_json(run_dir / EVAL_FILE)
    for name, title in TILES.items():
        if result and (metric := result["metrics"].get(name)):
            chance = "" if metric["chance"] is None else f" (chance {number(metric['chance'], metric['unit'])})"
            tiles.append((title + chance, number(metric["value"], metric["unit"])))
    boxes = "".join(f'<div class="tile"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in tiles)
    return f'<h1>{escape(recipe.name)}</h1><p class="note">{escape(str(run_dir))}</p><div class="tiles">{boxes}</div>'


def _funnel(recipe: Recipe) -> str:
    funnel = read_funnel(Store(recipe.store))
    rows = [("seen", funnel.seen, GREY), ("success", funnel.success, GREEN)]
    rows.append(("rejected", funnel.num_rejected, ORANGE))
    rows += [(f"    {reason}", count, ORANGE) for reason, count in funnel.rejected.items()]
    rows.append(("failed", funnel.num_failed, RED))
    rows += [(f"    {reason}", count, RED) for reason, count in funnel.failed.items()]
    sums = (
        f"{funnel.seen:,} seen = {funnel.success:,} success + {funnel.num_rejected:,} rejected"
        f" + {funnel.num_failed:,} failed"
    )
    return f'<h2>What came in</h2><p class="note">{sums}</p>{bars(rows)}{_selection(recipe)}'


def _selection(recipe: Recipe) -> str:
    store, name = Store(recipe.store), recipe.shards.name
    if not store.exists(f"selection/{name}/selection.json"):
        return ""
    summary = read_summary(store, name)
    counts = sorted(summary.counts.items(), key=lambda pair: -pair[1])
    rows = [("stored", summary.num_samples, GREY), *((fate, count, BLUE) for fate, count in counts)]
    return (
        f"<h3>What became of the stored samples</h3>{bars(rows)}"
        f'<p class="note">more in the store: reports/curation-{escape(name)}.html</p>'
    )


def _heldout(run_dir: Path) -> Heldout:
    """What was measured during training or, where nothing was, the loss of the checkpoint that was evaluated."""
    found = read_heldout(run_dir)
    result = _read_json(run_dir / EVAL_FILE)
    if found or not result or EVAL_LOSS not in result["metrics"]:
        return found
    loss = result["metrics"][EVAL_LOSS]["value"]
    return {HELDOUT_LOSS: (np.array([float(result["samples_seen"])]), np.array([loss]))}


def _evaluation(run_dir: Path) -> str:
    result = _read_json(run_dir / EVAL_FILE)
    if not result:
        return ""
    head, *rows = eval_rows(result)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for name, *numbers in rows:
        line = "".join(f'<td class="number">{escape(number)}</td>' for number in numbers)
        lines.append(f"<tr><td>{escape(name)}</td>{line}</tr>")
    return (
        f"<h2>What it learned</h2><p class='note'>{result['num_images']} held-out images, never trained on;"
        f" checkpoint {escape(result['checkpoint'])}</p><table><tr>{cells}</tr>{''.join(lines)}</table>"
        f"<ul class='note'>{''.join(f'<li>{escape(note)}</li>' for note in result['notes'])}</ul>"
    )


def _captions(run_dir: Path) -> str:
    record = _read_json(run_dir / CAPTIONS_FILE)
    if not record:
        return ""
    sheet = base64.b64encode((run_dir / record["sheet"]).read_bytes()).decode()
    return (
        "<h2>What it says</h2><p class='note'>held-out images; grey: the true caption, blue: the model's</p>"
        f'<img alt="held-out images with true and generated captions" src="data:image/png;base64,{sheet}">'
    )


def _repeat(run_dir: Path, recipe: Recipe) -> str:
    steps = _read_json(run_dir / STEPS_FILE)
    if steps:
        lines = "\n".join(f"{command:<60} # {duration(seconds)}" for command, seconds in steps)
    else:
        verbs = [f"genlip {verb} RECIPE" for verb in ("ingest", "tokenizer", "train")]
        lines = "\n".join([*verbs, *(f"genlip {verb} {run_dir}" for verb in ("eval", "caption", "report"))])
    content = json.dumps(recipe.model_dump(mode="json"), indent=1)
    environment = json.dumps(_read_json(run_dir / "environment.json"), indent=1)
    return (
        f"<h2>How to repeat it</h2><pre>{escape(lines)}</pre>"
        f"<details><summary>the resolved recipe</summary><pre>{escape(content)}</pre></details>"
        f"<details><summary>versions</summary><pre>{escape(environment)}</pre></details>"
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
