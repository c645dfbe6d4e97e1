"""The curation report: one HTML file that shows what a selection kept, what it left out and why."""

from html import escape
from pathlib import Path

import yaml

from jobs.console import say
from jobs.curation.charts import heat_map, histogram, share, two_bars
from jobs.curation.funnel import Step, steps
from jobs.curation.galleries import duplicates, evaluation_hits, rejects, said
from jobs.curation.packing import packing_efficiency
from jobs.curation.style import STYLE, THEME_SCRIPT
from pipeline.curate.rows import Rows
from pipeline.curate.spec import HELDOUT, TRAIN
from pipeline.curate.summary import (
    SIZE_BINS_PER_OCTAVE,
    Summary,
    read_summary,
    summarise,
    thresholds_by_column,
)
from pipeline.each import in_turn
from pipeline.store import Store

ROW_TOKENS = 16_384
"""Capacity of a packed row where training's recipe says nothing else."""
_MAX_VALUES = 20
_LANGUAGE = "lang"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_curation_report(store: Store, rows: Rows, name: str, path: Path, row_tokens: int = ROW_TOKENS) -> Path:
    """Write the report of a selection; below 10 MB whatever its size.

    Args:
        store: with the selection.
        rows: its samples, to add them up if `summarise` has not been called for the selection as it is.
        name: of the selection.
        path: of the HTML file.
        row_tokens: capacity of training's packed rows.
    """
    summary = read_summary(store, name) or summarise(rows, name, in_turn)
    sections = [
        _head(store, summary, row_tokens),
        _funnel(summary),
        _distributions(summary),
        _languages(summary),
        _resolution(summary),
        _domains(summary),
        _tokens(summary, row_tokens),
        rejects(store, summary),
        duplicates(store, summary),
        evaluation_hits(store, summary),
        _repeat(summary),
    ]
    title = f"Curation of {escape(name)}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{title}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style><script>{THEME_SCRIPT}</script></head>'
        f"<body>{''.join(sections)}</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    say(f"curation report: {path} ({path.stat().st_size / 1e6:.1f} MB, one file)")
    return path


def _head(store: Store, summary: Summary, row_tokens: int) -> str:
    stored, kept = summary.num_samples, summary.num_kept
    tiles = [
        (f"{stored:,}", "stored pairs"),
        (f"{kept:,}", "kept"),
        (share(kept, stored), "of the stored pairs"),
        (f"{summary.fates.get(TRAIN, 0):,}", "for training"),
    ]
    if HELDOUT in summary.fates:
        tiles.append((f"{summary.fates[HELDOUT]:,}", "held out"))
    tiles.append((f"{packing_efficiency(summary.tokens['lengths'], row_tokens):.1%}", "of packed rows filled"))
    boxes = "".join(f'<div class="tile"><b>{value}</b>{label}</div>' for value, label in tiles)
    return (
        f"<header><div><h1>Curation of {escape(summary.name)}</h1>"
        f'<p class="note">{escape(store.root)}</p></div>'
        '<button type="button" onclick="toggleTheme()">Light or dark</button></header>'
        f'<div class="tiles">{boxes}</div>'
    )


def _funnel(summary: Summary) -> str:
    total, kept = summary.num_samples, summary.num_kept
    lines = [_funnel_line("stored", Step("", "", 0, total), total)]
    lines += [_funnel_line(_named(step), step, total) for step in steps(summary)]
    lines.append(_funnel_line("kept", Step("", "", 0, kept), total, "total"))
    return (
        '<h2>From stored to kept</h2><table class="funnel"><caption>Each pair leaves at the first step that it fails;'
        ' the orange part of a bar is what leaves there</caption><thead><tr><th scope="col">step</th>'
        '<th scope="col" class="number">leave</th><th scope="col" class="number">share</th>'
        '<th scope="col" class="number">remain</th><th scope="col" aria-label="bars"></th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _named(step: Step) -> str:
    return f'{escape(step.fate)}<span class="meaning">{said(step)}</span>'


def _funnel_line(head: str, step: Step, total: int, kind: str = "") -> str:
    leaves = (f"{step.num_out:,}", share(step.num_out, total)) if step.fate else ("", "")
    spans = "".join(
        f'<span class="{of}" style="width:{100 * count / total:.2f}%"></span>'
        for of, count in (("kept", step.num_left), ("out", step.num_out))
        if count
    )
    return (
        f'<tr class="{kind}"><th scope="row">{head}</th><td class="number">{leaves[0]}</td>'
        f'<td class="number">{leaves[1]}</td><td class="number">{step.num_left:,}</td>'
        f'<td class="bar"><div>{spans}</div></td></tr>'
    )


def _legend(thresholds: bool) -> str:
    marks = [("var(--all)", "stored"), ("var(--kept)", "kept")] + [("var(--mark)", "threshold")] * thresholds
    entries = "".join(f'<span><i style="background:{colour}"></i>{label}</span>' for colour, label in marks)
    return f'<div class="legend">{entries}</div>'


def _distributions(summary: Summary) -> str:
    thresholds = thresholds_by_column(summary.selection, list(summary.numbers))
    own_section = summary.tokens["column"] or "tokens"
    columns = [column for column in summary.numbers if column != own_section]
    columns.sort(key=lambda column: column not in thresholds)  # what decided comes first
    charts = [histogram(column, summary.numbers[column], thresholds.get(column, [])) for column in columns]
    others = [
        f"<div>{two_bars(column, values[:_MAX_VALUES], _values_caption(column, len(values)))}</div>"
        for column, values in summary.categories.items()
        if column != _LANGUAGE
    ]
    return (
        f'<h2>Before and after</h2>{_legend(bool(thresholds))}<div class="grid">{"".join(charts)}</div>'
        f'<div class="grid">{"".join(others)}</div>'
    )


def _values_caption(column: str, num_values: int) -> str:
    if num_values <= _MAX_VALUES:
        return f"values of {column}"
    return f"the {_MAX_VALUES} most frequent of {num_values} values of {column}"


def _languages(summary: Summary) -> str:
    languages = summary.categories.get(_LANGUAGE)
    if not languages:
        return ""
    caption = f"{len(languages)} languages of captions, as the column {_LANGUAGE} names them"
    if len(languages) > _MAX_VALUES:
        caption += f"; the {_MAX_VALUES} most frequent"
    return f"<h2>Languages</h2>{two_bars('language', languages[:_MAX_VALUES], caption)}"


def _resolution(summary: Summary) -> str:
    cells = summary.resolution
    sides = [side for width, height, _, _ in cells for side in (width, height)]
    low, high = min(sides) - 1, max(sides) + 2
    maps = [
        heat_map(title, [(w, h, count) for w, h, count in some if count], SIZE_BINS_PER_OCTAVE, low, high)
        for title, some in (
            ("stored", [(w, h, every) for w, h, every, _ in cells]),
            ("kept", [(w, h, kept) for w, h, _, kept in cells]),
        )
    ]
    return (
        "<h2>Resolution</h2><p class='note'>Width and height of the pictures as they were downloaded, in bins of a"
        " quarter octave; stronger colour is more, on a logarithmic scale; the dashed line is square.</p>"
        f'<div class="grid">{"".join(maps)}</div>'
    )


def _domains(summary: Summary) -> str:
    if not summary.domains:
        return ""
    caption = f"the {len(summary.domains)} most frequent hosts of the pictures' addresses"
    if summary.domains_max_error:
        caption += f"; a count may be too low by {summary.domains_max_error:,} at most"
    return f"<h2>Domains</h2>{two_bars('host', summary.domains, caption)}"


def _tokens(summary: Summary, row_tokens: int) -> str:
    column, lengths = summary.tokens["column"], summary.tokens["lengths"]
    how = f"column {column}" if column else "estimated: a quarter of the characters"
    thresholds = thresholds_by_column(summary.selection, list(summary.numbers)).get(column or "tokens", [])
    num_long = sum(count for tokens, count in lengths if tokens > row_tokens)
    longer = f" {num_long:,} pairs are longer than a row." if num_long else ""
    mean = sum(tokens * count for tokens, count in lengths) / max(summary.num_kept, 1)
    return (
        f"<h2>Tokens</h2>{_legend(bool(thresholds))}"
        f'<div class="grid">{histogram("tokens of a caption", summary.numbers[column or "tokens"], thresholds, how)}'
        f"<div><p>With one token for each 16 × 16 px of the stored picture a kept pair has {mean:,.0f} tokens on"
        f" average. Packed into rows of {row_tokens:,} as training does it, rows are"
        f" <b>{packing_efficiency(lengths, row_tokens):.2%}</b> full.{longer}</p>"
        '<p class="note">By training\'s packer over at most 100,000 lengths of the distribution; native aspect ratio,'
        " no further resizing.</p></div></div>"
    )


def _repeat(summary: Summary) -> str:
    record = summary.selection
    spec = yaml.safe_dump({"curate": {"select": record["spec"]}}, sort_keys=False, allow_unicode=True)
    folders = "\n".join(f"{column}: {folder}" for column, folder in sorted(record["folders"].items()))
    commands = f"genlip curate RECIPE --set shards.name={summary.name}\ngenlip inspect STORE"
    facts = f"seed {record['seed']}, held-out share {record['holdout']}, units {record['units_fingerprint']}"
    if record.get("holdout_near_bits") is not None:
        facts += f", no training within {record['holdout_near_bits']} bits of held-out images"
    return (
        f"<h2>How to repeat it</h2><pre>{escape(commands)}</pre><p class='note'>{escape(facts)}</p>"
        f"<pre>{escape(spec)}</pre>"
        f"<details><summary>where each column was computed</summary><pre>{escape(folders)}</pre></details>"
    )
