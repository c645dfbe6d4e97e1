"""Folders of images with one folder per class, as ImageNet is laid out: ROOT/{train,val}/CLASS/* or ROOT/CLASS/*."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipeline.errors import UserError
from train.evaluation.adapters.source import MAX_SCANNED, Left, Source, mixed, read_image, split_by_content
from train.evaluation.samples import Labelled

HELDOUT_NAMES, TRAINING_NAME = ("val", "validation", "test"), "train"
MASKS_NAME = "masks"
CLASS_NAME_FILES = ("class_names.json", "class_names.txt")
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
MAX_SHOWN = 5

Files = dict[str, list[Path]]
"""Image files by the name of their class folder."""


def class_folders_source(root: Path) -> Source:
    """Samples of classes, without captions; masks are ROOT/masks/PATH OF THE IMAGE.png.

    Folders train and val (or validation, or test) split the data; without val, the first files are split by content.
    Classes are numbered by the names of their folders.

    Raises:
        UserError: A class without images or a name, two classes with one name, or no images at all.
    """
    heldout = next((root / name for name in HELDOUT_NAMES if (root / name).is_dir()), None)
    train = root / TRAINING_NAME
    if heldout is None:
        files = _list_images(train if train.is_dir() else root)
        names = _class_names(root, list(files))
        read = islice(_read(root, files, names), MAX_SCANNED)
        return split_by_content(read, tuple(names.values()))
    measured, trained = _list_images(heldout), _list_images(train) if train.is_dir() else {}
    names = _class_names(root, sorted({*measured, *trained}))
    return Source(_read(root, measured, names), _read(root, trained, names), tuple(names.values()))


def _list_images(folder: Path) -> Files:
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] not in "._"]
    files = {
        path.name: [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
        for path in classes
        if path.name != MASKS_NAME
    }
    if not any(files.values()):
        raise UserError(
            "there are no images",
            where=str(folder),
            why="expected a folder for each class, with image files in it",
            next_step="name the folder that has the class folders, or their train and val folders",
        )
    if empty := [name for name, found in files.items() if not found]:
        raise UserError(
            f"no images for {_listed(empty)}",
            where=str(folder),
            next_step="add images, or remove the empty folders",
        )
    return files


def _read(root: Path, files: Files, names: dict[str, str]) -> Iterator[Labelled | Left]:
    class_of = {str(file.relative_to(root)): names[folder] for folder, found in files.items() for file in found}
    for key in mixed(class_of):
        image, mask_file = read_image(root / key), root / MASKS_NAME / Path(key).with_suffix(".png")
        if isinstance(image, Left):
            yield image
        else:
            mask = mask_file.read_bytes() if mask_file.is_file() else None
            yield Labelled(key, image, class_name=class_of[key], mask=mask)


def _class_names(root: Path, folders: list[str]) -> dict[str, str]:
    """The readable name of each folder's class, by `class_names.json` or `.txt`; else the folder's, with spaces for
    underscores."""
    file = next((root / name for name in CLASS_NAME_FILES if (root / name).is_file()), None)
    given = _read_names(file) if file else {folder: folder.replace("_", " ") for folder in folders}
    names = {folder: given.get(folder, "").strip() for folder in folders}
    where = str(file or root)
    if nameless := [folder for folder, name in names.items() if not name]:
        raise UserError(
            f"no class name for {_listed(nameless)}", where=where, next_step="add a line for each: FOLDER NAME"
        )
    counts = Counter(names.values())
    if twice := [f"{folder} ({name})" for folder, name in names.items() if counts[name] > 1]:
        raise UserError(
            f"classes have the same name: {_listed(twice)}",
            where=where,
            next_step="give each a name of its own in class_names.txt, or join their folders",
        )
    return names


def _read_names(file: Path) -> dict[str, str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".txt":
        lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        return {line[0]: line[1] if len(line) > 1 else "" for line in lines}
    try:
        names = json.loads(text)
    except ValueError as error:
        raise UserError("not JSON", where=str(file), why=str(error)) from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError("class names must be a JSON object", where=str(file), next_step='write {"FOLDER": "name", ...}')
    return names


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more
