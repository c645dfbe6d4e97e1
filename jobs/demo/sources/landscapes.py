"""Landscape photographs of the game Endless Sky, from Debian; the file name says what a photograph shows."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.demo.sources.record import Record, Source

PACKAGE = "debian:endless-sky-data"

# First word of the file name -> (class, what the caption says). Files named after a photographer have no text.
SCENES = {
    "badlands": ("canyon or badlands", "badlands of bare rock"),
    "beach": ("coast or sea", "a beach"),
    "canyon": ("canyon or badlands", "a deep canyon"),
    "city": ("city", "a city and its skyline"),
    "desert": ("desert", "a desert"),
    "dune": ("desert", "dunes of sand"),
    "earthrise": ("space", "the Earth above the horizon of the Moon"),
    "fields": ("field", "open fields"),
    "fog": ("weather or sky", "a landscape under fog"),
    "forest": ("forest", "a forest"),
    "hills": ("valley or hills", "rolling hills"),
    "lava": ("lava or geyser", "a volcanic landscape"),
    "mountain": ("mountain", "mountains"),
    "nasa": ("space", "a rocket launch site or a planet, taken by NASA"),
    "sea": ("coast or sea", "the sea"),
    "sky": ("weather or sky", "clouds in a wide sky"),
    "snow": ("snow or ice", "a landscape under snow"),
    "space": ("space", "the inside of a spacecraft or of a hall where one is built"),
    "station": ("space", "the inside of a space station or of a rocket factory"),
    "valley": ("valley or hills", "a valley"),
    "water": ("lake or river", "a landscape with water"),
}


def records(folders: Sequence[Path]) -> Iterator[Record]:
    """Yields one record per photograph whose name says what it shows."""
    (folder,) = folders
    root = folder / "usr" / "share" / "games" / "endless-sky"
    licences = _licences(folder / "usr" / "share" / "doc" / "endless-sky-data" / "copyright")
    for path in sorted((root / "images" / "land").glob("*.jpg")):
        word = re.split(r"[^a-z]", path.stem)[0]
        if word not in SCENES:
            continue
        class_name, phrase = SCENES[word]
        file = path.relative_to(root).as_posix()
        yield Record(
            path=path,
            caption=f"A photo of {phrase}.",
            class_name=class_name,
            source="landscapes",
            licence=next(licence for pattern, licence in reversed(licences) if fnmatch.fnmatchcase(file, pattern)),
            origin=f"{PACKAGE}:{file}",
            subject=word,
        )


def _licences(path: Path) -> list[tuple[str, str]]:
    """Reads (file pattern, licence) pairs from a machine-readable Debian copyright file; later pairs win."""
    pairs: list[tuple[str, str]] = []
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^(Files|License):((?:.*)(?:\n .*)*)", paragraph, re.MULTILINE))
        if fields.keys() == {"Files", "License"}:
            licence = fields["License"].strip().partition("\n")[0]
            pairs += [(pattern, licence) for pattern in fields["Files"].split()]
    return pairs


SOURCE = Source((PACKAGE,), records)
