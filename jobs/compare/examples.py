"""Held-out images with what each objective says of them."""

from collections.abc import Mapping
from html import escape
from typing import Any

from jobs.compare.results import Comparison
from jobs.compare.summary import TITLES
from jobs.curation.thumbnails import data_url
from jobs.recipe import Recipe
from pipeline.store import Store
from train.evaluation.data import read_eval_data, read_run_data

NUM_EXAMPLES = 8
_CAPTIONS = "captioning/samples"
_ANSWERS = ("zero_shot/captions_examples", "zero_shot/names_examples")


def example_keys(comparison: Comparison) -> list[str]:
    """Images that an objective has captioned or classified, the first of them."""
    keys: dict[str, None] = {}
    for details in comparison.details.values():
        for name in (_CAPTIONS, *_ANSWERS):
            keys.update(dict.fromkeys(entry["key"] for entry in details.get(name, ())))
    return list(keys)[:NUM_EXAMPLES]


def read_pictures(recipe: Recipe, keys: list[str]) -> dict[str, bytes]:
    """The held-out images of these keys, as they are stored."""
    limit = recipe.eval.max_images
    if recipe.eval.data:
        data = read_eval_data(recipe.eval.data, limit)
    else:
        data = read_run_data(Store(recipe.store), recipe.shards.name, limit)
    return {one.key: one.image for one in data.heldout if one.key in keys}


def examples_section(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """A card for each image; of the runs with the first seed that was measured."""
    cards = "".join(_card(comparison, key, pictures.get(key)) for key in example_keys(comparison))
    return f'<div class="cards">{cards}</div>' if cards else "<p>no task left examples</p>"


def _card(comparison: Comparison, key: str, picture: bytes | None) -> str:
    lines = []
    true_captions: list[str] = []
    true_class = ""
    for name, details in comparison.details.items():
        said = []
        if caption := _entry(details, _CAPTIONS, key):
            true_captions = caption["true"]
            said.append(f"“{caption['generated']}”")
        for task in _ANSWERS:
            if answer := _entry(details, task, key):
                true_class = answer["class"]
                said.append(answer["answers"][0]["class"] + (" ✓" if _is_right(answer) else " ✗"))
                break
        if said:
            lines.append(f"<dt>{escape(TITLES[name])}</dt><dd>{escape(' · '.join(said))}</dd>")
    truth = " · ".join(filter(None, [*(f"“{text}”" for text in true_captions[:1]), true_class]))
    image = f'<img alt="held-out image {escape(key)}" src="{data_url(picture)}">' if picture else ""
    return f"<div class=card>{image}<dl><dt>truth</dt><dd>{escape(truth)}</dd>{''.join(lines)}</dl></div>"


def _entry(details: Mapping[str, Any], name: str, key: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = next((entry for entry in details.get(name, ()) if entry["key"] == key), None)
    return found


def _is_right(answer: Mapping[str, Any]) -> bool:
    return bool(answer["answers"][0]["class"] == answer["class"])
