"""Tux Paint stamps (photo cut-outs and drawings, each with an English sentence), from Debian."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.demo.sources.record import Record, Source, squash

PACKAGE = "debian:tuxpaint-stamps-default"

# Folder -> class. The longest folder that a stamp lies in counts.
CLASS_OF_FOLDER = {
    "animals/amphibians": "reptile or amphibian",
    "animals/birds": "bird",
    "animals/dinosaur": "dinosaur",
    "animals/fish": "fish",
    "animals/insects": "insect",
    "animals/lizards": "reptile or amphibian",
    "animals/mammals": "mammal",
    "animals/marsupials": "mammal",
    "animals/shellfish": "sea creature",
    "clothes": "clothing",
    "clothes/hats": "hat",
    "food": "meal",
    "food/dessert": "dessert",
    "food/fruit": "fruit",
    "food/nuts": "nut or seed",
    "food/spices": "spice",
    "food/vegetables": "vegetable",
    "hobbies": "toy or game",
    "hobbies/music": "musical instrument",
    "household": "household item",
    "household/arttools": "office supply",
    "household/dishes": "kitchenware",
    "household/electronics": "electronics",
    "household/tools": "tool",
    "medical": "science or medicine",
    "military/ammunition": "weapon",
    "military/vehicles": "road vehicle",
    "naturalforces": "weather or sky",
    "people": "person",
    "people/body_parts": "body part",
    "plants": "plant",
    "plants/flowers": "flower",
    "plants/mushrooms": "mushroom",
    "plants/trees": "tree",
    "seasonal": "holiday",
    "space": "space",
    "sports": "sport",
    "symbols": "symbol",
    "symbols/alphabets": "letter or digit",
    "symbols/alphabets/asl": "body part",
    "symbols/chess": "toy or game",
    "symbols/faces": "face",
    "symbols/math": "letter or digit",
    "symbols/money": "money",
    "town": "building",
    "town/flags": "flag",
    "town/roadsigns": "sign",
    "vehicles": "road vehicle",
    "vehicles/cycle": "cycle",
    "vehicles/flight": "aircraft",
    "vehicles/locomotive": "train",
    "vehicles/ship": "boat",
}


def records(folders: Sequence[Path]) -> Iterator[Record]:
    """Yields one record per stamp that has a text."""
    (folder,) = folders
    root = folder / "usr" / "share" / "tuxpaint" / "stamps"
    for path in sorted(root.rglob("*")):
        text_path = path.with_suffix(".txt")
        if path.suffix not in {".png", ".svg"} or not text_path.is_file():
            continue
        caption = squash(text_path.read_text(encoding="utf-8", errors="replace").partition("\n")[0])
        class_name = _class_name(path.relative_to(root).parent)
        if not caption or class_name is None:
            continue
        yield Record(
            path=path,
            caption=caption,  # the first line is English, the others are its translations
            class_name=class_name,
            source="tuxpaint",
            licence="GPL-2.0-or-later",
            origin=f"{PACKAGE}:stamps/{path.relative_to(root).as_posix()}",
            subject=caption.rstrip(".! ").lower(),
        )


def _class_name(folder: Path) -> str | None:
    ancestors = [folder, *folder.parents]
    return next((CLASS_OF_FOLDER[a.as_posix()] for a in ancestors if a.as_posix() in CLASS_OF_FOLDER), None)


SOURCE = Source((PACKAGE,), records)
