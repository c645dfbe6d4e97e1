"""`genlip caption`: what the model says of images, on the screen, in captions.json and on a contact sheet."""

import json
from pathlib import Path

from PIL import Image

from jobs.console import say
from jobs.evaluation import load_latest, read_heldout
from jobs.pictures import Entry, contact_sheet
from model import LoadedModel, load_rgb
from pipeline.errors import UserError
from train.evaluation.captioning import write_captions, writes_captions

CAPTIONS_FILE = "captions.json"
COLUMNS = 6
TRUE_COLOUR, GENERATED_COLOUR = "#777777", "#0b5394"


def caption_images(run_dir: Path, files: list[Path], num_heldout: int, sheet: Path) -> int:
    """Caption the files, or held-out images where none is named. Returns the exit code.

    Raises:
        UserError: The run's objective is one without text.
    """
    loaded, state = load_latest(run_dir)
    if not writes_captions(loaded):
        raise UserError(
            f"a model of the objective {loaded.model.objective} writes no captions",
            where=str(run_dir),
            next_step="name a run of the objective genlip or cappa",
        )
    if files:
        pictures = [load_rgb(file) for file in files]
        names, truths = [str(file) for file in files], [""] * len(files)
    else:
        heldout = read_heldout(run_dir, num_heldout)
        pictures = [load_rgb(one.image) for one in heldout]
        names, truths = [one.key for one in heldout], [one.caption for one in heldout]
    captions = caption_pictures(loaded, pictures)
    for name, truth, caption in zip(names, truths, captions, strict=True):
        say(f"{name}: {' '.join(caption.split())}" + (f"   (true: {truth})" if truth else ""))
    entries = [_entry(*one) for one in zip(pictures, truths, captions, strict=True)]
    contact_sheet(entries, min(COLUMNS, len(entries)), sheet)
    if not files:
        keys = ("key", "true", "generated")
        lines = [dict(zip(keys, one, strict=True)) for one in zip(names, truths, captions, strict=True)]
        record = {"checkpoint": state["checkpoint"], "sheet": sheet.name, "captions": lines}
        (run_dir / CAPTIONS_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"contact sheet: {sheet}")
    return 0


def caption_pictures(loaded: LoadedModel, pictures: list[Image.Image]) -> list[str]:
    """Greedy captions of RGB pictures."""
    images = [loaded.processor.patches(picture) for picture in pictures]
    return [loaded.tokenizer.decode(ids) for ids in write_captions(loaded, images)]


def _entry(picture: Image.Image, truth: str, caption: str) -> Entry:
    texts = [(f"model: {caption}", GENERATED_COLOUR)]
    return Entry(picture, [(f"true: {truth}", TRUE_COLOUR), *texts] if truth else texts)
