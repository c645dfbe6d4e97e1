"""The report of a comparison: one HTML file without scripts, and the same as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path

from jobs.compare.announcement import FACTS, own_sentences
from jobs.compare.curves import curve_charts
from jobs.compare.examples import examples_section
from jobs.compare.results import Comparison
from jobs.compare.summary import TITLES, headline_sentences, join, seeds, tally_sentences
from jobs.compare.tables import cost_table, difference_table, metric_tables
from jobs.console import say
from jobs.reporting.page import POLICY
from jobs.reporting.style import STYLE

HTML_FILE, JSON_FILE = "compare.html", "compare.json"
_STYLE = """
.wide{overflow-x:auto}.wide table{width:100%;min-width:700px;table-layout:fixed}.wide th:first-child{width:26%}
.wide td{overflow-wrap:anywhere}th+th{text-align:right}
td small{display:block;color:var(--quiet);font-size:.76rem}td b{font-weight:400}
b.best{font-weight:700;color:var(--c2)}.quiet{color:var(--quiet)}.clear{font-weight:600}
ul{max-width:52rem;padding-left:1.2rem}li{margin:.35rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:14px}
.card{background:var(--panel);border-radius:10px;padding:.8rem;display:flex;gap:.8rem;font-size:.85rem}
.card img{width:96px;height:96px;object-fit:contain;flex:none}dl{margin:0;min-width:0}dt{color:var(--quiet)}
dd{margin:0 0 .3rem;overflow-wrap:anywhere}
"""


def write_report(comparison: Comparison, folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write compare.html and compare.json.

    Args:
        comparison: All numbers.
        folder: Gets the files.
        pictures: Held-out images by their keys, for the examples.
    """
    sentences = {
        "summary": tally_sentences(comparison) + headline_sentences(comparison),
        "announcement": own_sentences(comparison),
    }
    content = json.dumps(asdict(comparison) | sentences, indent=1)
    (folder / JSON_FILE).write_text(content + "\n", encoding="utf-8")
    path = folder / HTML_FILE
    path.write_text(_page(comparison, folder, pictures), encoding="utf-8")
    say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, one file); numbers: {folder / JSON_FILE}")


def _page(comparison: Comparison, folder: Path, pictures: Mapping[str, bytes]) -> str:
    title = f"genlip comparison {escape(comparison.name)}"
    body = "".join(
        [
            _headline(comparison),
            _announcement(comparison),
            "<h2>Every metric</h2>",
            _how_to_read(),
            metric_tables(comparison),
            _differences(comparison),
            f"<h2>What each objective cost</h2>{cost_table(comparison)}",
            f"<h2>On the way</h2>{_band_note()}{curve_charts(comparison)}",
            f"<h2>What they say</h2>{examples_section(comparison, pictures)}",
            _notes(comparison),
            _repeat(comparison, folder),
        ]
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy"'
        f' content="{POLICY}"><title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}{_STYLE}</style>'
        f"</head><body>{body}</body></html>\n"
    )


def _headline(comparison: Comparison) -> str:
    names = join([TITLES[name] for name in comparison.objectives])
    missing = "".join(f"<li>{escape(one.title)}: <code>{escape(one.command)}</code></li>" for one in comparison.missing)
    missing = f"<h3>Missing runs, and what shows why</h3><ul>{missing}</ul>" if missing else ""
    return (
        f"<h1>{escape(comparison.name)}: {names}</h1>"
        f'<p class="note">{seeds(len(comparison.seeds))} each, {comparison.samples:,} samples seen, the same shards and'
        f" backbone; {comparison.num_images:,} held-out images; brackets are 95 % bootstrap intervals over images and"
        f" seeds</p>{missing}{_list(tally_sentences(comparison))}"
        f"<h3>Metric by metric</h3>{_list(headline_sentences(comparison))}"
    )


def _announcement(comparison: Comparison) -> str:
    facts = "".join(f"<p>{escape(fact)}</p>" for fact in FACTS)
    own = "".join(f"<p>{escape(sentence)}</p>" for sentence in own_sentences(comparison))
    return f"<h2>About the announcement</h2>{facts}<h3>By this comparison's own numbers</h3>{own}"


def _how_to_read() -> str:
    return (
        '<p class="note">Means over seeds; below them the 95 % bootstrap interval over images and seeds, where single'
        " images have the metric, and the standard deviation of the seeds. Green: the best mean, which need not be"
        " distinguishable from the next. Chance: what a model that knows nothing would get. The scores without another"
        " name are information gain, log P(T|I) − log P(T), of those that write (GenLIP, CapPa), and the cosine of"
        " those that contrast (CLIP, SigLIP).</p>"
    )


def _differences(comparison: Comparison) -> str:
    table = difference_table(comparison)
    if not table:
        return ""
    return (
        f"<h2>{TITLES[comparison.objectives[0]]} against each other objective</h2>"
        '<p class="note">Differences of the means on the same images, of shares in percentage points, with 95 %'
        " bootstrap intervals over images and seeds. Bold: the interval excludes 0; grey: the two cannot be told"
        f" apart.</p>{table}"
    )


def _band_note() -> str:
    return (
        '<p class="note">Means over seeds; bands: the least and the largest of the seeds. The losses of different'
        " objectives have different units and cannot be compared.</p>"
    )


def _notes(comparison: Comparison) -> str:
    notes = "".join(f"<h3>{TITLES[name]}</h3>{_list(found)}" for name, found in comparison.notes.items() if found)
    return f"<h2>What was left out, and why</h2>{notes}" if notes else ""


def _repeat(comparison: Comparison, folder: Path) -> str:
    verbs = "genlip compare RECIPE   # does what is missing: the tokenizer, the runs, their evaluations, this report"
    recipe = json.dumps(comparison.recipe, indent=1)
    versions = json.dumps(comparison.environment, indent=1)
    return (
        f"<h2>How to repeat it</h2><pre>{escape(verbs)}</pre>"
        f'<p class="note">in {escape(str(folder))}; each run has a folder of its own beside it</p>'
        f"<details><summary>the resolved recipe</summary><pre>{escape(recipe)}</pre></details>"
        f"<details><summary>versions</summary><pre>{escape(versions)}</pre></details>"
    )


def _list(sentences: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""
