"""Pictures of the curation report: what each rule left out, pairs of duplicates, hits among evaluation images."""

import json
import re
from html import escape
from typing import Any

from jobs.curation.funnel import Step, steps
from jobs.curation.thumbnails import MAX_PICTURES, evaluation_picture, sample_picture
from pipeline.curate.samples import MAX_SAMPLES, Sample
from pipeline.curate.spec import EVALUATION_IMAGE, NEAR_HELDOUT
from pipeline.curate.summary import DUPLICATES, KEPT, Summary
from pipeline.store import Store

_PICTURES_IN_PAIRS = 4 * MAX_SAMPLES
"""Two for each duplicate pair, and two for each hit."""
_MAX_GALLERIES = MAX_PICTURES - _PICTURES_IN_PAIRS


def rejects(store: Store, summary: Summary) -> str:
    """Samples of each reason, and of those kept, with captions and the values that decided."""
    apart = (*DUPLICATES, EVALUATION_IMAGE)
    shown = [step for step in steps(summary) if step.num_out and step.fate not in apart][:_MAX_GALLERIES]
    shown += [Step(fate, "", summary.fates[fate], 0) for fate in KEPT if fate in summary.fates]
    each = max(1, min(MAX_SAMPLES, _MAX_GALLERIES // max(len(shown), 1)))
    galleries = [_gallery(store, step, summary.samples.get(step.fate, [])[:each]) for step in shown]
    return f"<h2>Examples</h2>{''.join(galleries)}"


def duplicates(store: Store, summary: Summary) -> str:
    """Pairs side by side: the one left out, and the one that stayed or is held out."""
    if not summary.pairs:
        return ""
    boxes = []
    for pair in summary.pairs:
        loser, winner = pair["loser"], pair["winner"]
        bits = _distance(loser["phash"], winner["phash"])
        title = pair["kind"] if bits is None else f"{pair['kind']}, {bits} of 64 bits differ"
        left = _side(sample_picture(store, loser), "left out", loser["caption"])
        role = "held out" if pair["kind"] == NEAR_HELDOUT else "stayed"
        right = _side(sample_picture(store, winner), role, winner["caption"])
        boxes.append(_pair(title, left, right))
    return f'<h2>Duplicates</h2><div class="pair-grid">{"".join(boxes)}</div>'


def evaluation_hits(store: Store, summary: Summary) -> str:
    """Stored samples beside the evaluation images that they repeat."""
    hits = summary.samples.get(EVALUATION_IMAGE, [])
    if not hits:
        return ""
    sets = _evaluation_sets(store, summary)
    boxes = []
    for sample in hits:
        values = sample["values"]
        set_name, image, bits = (values.get(name) for name in ("eval_set", "eval_image", "eval_bits"))
        title = f"{set_name}: same file" if bits == -1 else f"{set_name}: {bits} of 64 bits differ"
        known = sets.get(str(set_name))
        picture = evaluation_picture(known, str(image)) if known else '<span class="gone">set not known</span>'
        left = _side(sample_picture(store, sample), "stored", sample["caption"])
        boxes.append(_pair(title, left, _side(picture, "evaluation", str(image))))
    total = summary.fates[EVALUATION_IMAGE]
    return (
        f'<h2>Evaluation images</h2><p class="note">{total:,} stored pictures are in an evaluation set and are left'
        f' out; {len(hits)} of them:</p><div class="pair-grid">{"".join(boxes)}</div>'
    )


def _gallery(store: Store, step: Step, samples: list[Sample]) -> str:
    is_hidden = "nsfw" in f"{step.fate} {step.meaning}".lower()
    entries = []
    for sample in samples:
        values = [
            f"{name} = {_shown(value)}"
            for name, value in sample["values"].items()
            if re.search(rf"\b{re.escape(name)}\b", step.meaning)
        ]
        why = f'<span class="meaning">{escape("; ".join(values))}</span>' if values else ""
        host = f' title="{escape(sample["url"] or "")}"'
        entries.append(
            f'<li{host}><div class="frame-box">{sample_picture(store, sample, is_hidden)}</div>'
            f'<div class="clip">{_caption(sample["caption"])}</div>{why}</li>'
        )
    meaning = f"{said(step)} · " if step.meaning else ""
    hidden = " · click a picture to see it" if is_hidden else ""
    return (
        f'<h3>{escape(step.fate)}</h3><p class="note">{meaning}{step.num_out:,} pairs{hidden}</p>'
        f'<ul class="gallery">{"".join(entries)}</ul>'
    )


def said(step: Step) -> str:
    """A step's meaning; conditions look like code."""
    return f"<code>{escape(step.meaning)}</code>" if step.is_rule else escape(step.meaning)


def _pair(title: str, left: str, right: str) -> str:
    return (
        f'<figure class="pair"><figcaption>{escape(title)}</figcaption><div class="sides">{left}{right}</div></figure>'
    )


def _side(picture: str, role: str, text: str | None) -> str:
    return (
        f'<div><div class="frame-box">{picture}</div><span class="meaning">{role}</span>'
        f'<div class="clip">{_caption(text)}</div></div>'
    )


def _caption(text: str | None) -> str:
    return escape(text) if text else "<i>no caption</i>"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _distance(some: str | None, other: str | None) -> int | None:
    """Bits in which two perceptual hashes differ."""
    return (int(some, 16) ^ int(other, 16)).bit_count() if some and other else None


def _evaluation_sets(store: Store, summary: Summary) -> dict[str, str]:
    """URL by name of the sets, as the annotator that found the hits knew them."""
    folder = summary.selection["folders"].get("eval_set")
    name = f"annotations/{folder}/annotator.json"
    if folder is None or not store.exists(name):
        return {}
    sets: dict[str, str] = store.read_json(name)["parameters"]["sets"]
    return sets
