"""JSON files with several captions per image: COCO's own (captions_val2017.json) and the splits of Karpathy & Fei-Fei
2015 (dataset_coco.json, dataset_flickr30k.json)."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from train.evaluation.adapters.source import Left, Source, mixed, read_image
from train.evaluation.samples import Labelled

PATTERNS = ("dataset_*.json", "captions_val*.json", "annotations/captions_val*.json")
KARPATHY_TRAINING = ("train", "restval")
NUM_TRIED = 100
"""Images that are looked for in a folder before it is held for another's."""

Captions = dict[str, tuple[str, ...]]
"""By path of the image file, below the images' folder."""


def find_caption_file(folder: Path) -> Path | None:
    """The first caption file of a folder, by `PATTERNS`."""
    return next((file for pattern in PATTERNS for file in sorted(folder.glob(pattern))), None)


def caption_file_source(file: Path) -> Source:
    """Samples with all of their captions, without classes.

    Of Karpathy's splits `test` is measured (without it `val`), and `train` and `restval` are training. Of COCO the file
    is measured, and captions_train*.json beside a captions_val*.json is training where its images are there.

    Raises:
        UserError: The file is neither, or its images are not found near it.
    """
    content = _read_json(file)
    try:
        if "annotations" in content:
            return _coco(file, content)
        return _karpathy(file, content)
    except (KeyError, TypeError) as error:
        raise UserError(
            "the caption file lacks a field",
            where=str(file),
            why=f"expected images and annotations as COCO has them, or images with sentences and split: {error!r}",
        ) from error


def _coco(file: Path, content: Any) -> Source:
    measured = _coco_captions(content)
    heldout = _read(_find_images(file, measured), measured)
    training_file = file.with_name(file.name.replace("_val", "_train"))
    if training_file == file or not training_file.is_file():
        return Source(heldout, ())
    captions = _coco_captions(_read_json(training_file))
    folder = _near_folder(training_file, captions)
    return Source(heldout, _read(folder, captions) if folder else ())


def _coco_captions(content: Any) -> Captions:
    captions_of: dict[int, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        captions_of[annotation["image_id"]].append(annotation["caption"])
    return {image["file_name"]: _tidy(captions_of[image["id"]]) for image in content["images"]}


def _karpathy(file: Path, content: Any) -> Source:
    by_split: dict[str, Captions] = defaultdict(dict)
    for image in content["images"]:
        path = Path(image.get("filepath", ""), image["filename"]).as_posix()
        by_split[image["split"]][path] = _tidy(sentence["raw"] for sentence in image["sentences"])
    measured = by_split.get("test") or by_split.get("val")
    if not measured:
        raise UserError("the caption file has no split test or val", where=str(file))
    folder = _find_images(file, measured)
    training = {path: captions for split in KARPATHY_TRAINING for path, captions in by_split[split].items()}
    return Source(_read(folder, measured), _read(folder, training))


def _tidy(captions: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in (" ".join(caption.split()) for caption in captions) if text)


def _read(folder: Path, captions: Captions) -> Iterator[Labelled | Left]:
    for path in mixed(captions):
        image = read_image(folder / path) if captions[path] else Left("no caption")
        yield image if isinstance(image, Left) else Labelled(path, image, captions[path])


def _find_images(file: Path, captions: Captions) -> Path:
    folder = _near_folder(file, captions)
    if folder is None:
        raise UserError(
            "the images of the caption file are not there",
            where=str(file),
            why=f"looked for {next(iter(captions), 'images')} in the folders beside the file and one level above it",
            next_step="put the folder with the images beside the file",
        )
    return folder


def _near_folder(file: Path, captions: Captions) -> Path | None:
    """The folder that has the images: that of the file, one beside it, or the same one level up."""
    tried = list(captions)[:NUM_TRIED]
    for base in (file.parent, file.parent.parent):
        for folder in (base, *sorted(path for path in base.iterdir() if path.is_dir())):
            if any((folder / path).is_file() for path in tried):
                return folder
    return None


def _read_json(file: Path) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("not JSON", where=str(file), why=str(error)) from error
    if not isinstance(content, dict):
        raise UserError("not a caption file", where=str(file), why="expected a JSON object with images")
    return content
