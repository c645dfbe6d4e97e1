"""Makes the corpus that ships with the repository: ``python -m jobs.demo.make_fixtures`` (needs the npm registry)."""

import logging
import shutil
import zlib
from collections import defaultdict
from pathlib import Path

from PIL import Image

from jobs.demo.corpus import FIXTURES, write_corpus
from jobs.demo.images import Picture, encode_webp, load_picture
from jobs.demo.registry import default_cache, get_package
from jobs.demo.sources import fluent
from jobs.demo.sources.record import Record

# Classes that differ to the eye and have at least 20 images.
CLASSES = (
    "bird",
    "building",
    "clock",
    "clothing",
    "electronics",
    "face",
    "flag",
    "mammal",
    "road vehicle",
    "weather or sky",
)
NUM_PER_CLASS = 24
SIDE_PX = 72
LICENCE_FILE = "LICENSE-fluent-emoji.txt"
LICENCE_TEXT = """\
The images in this folder are Microsoft Fluent emoji (3D), made smaller; their captions are built from emojibase.

Fluent Emoji: Copyright (c) Microsoft Corporation. MIT License.
emojibase: Copyright (c) 2017-2019 Miles Johnson. MIT License.

The MIT License, which holds for both:

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def make_fixtures(folder: Path, cache: Path) -> None:
    """Writes the fixtures corpus into `folder`, replacing what is there."""
    packages = [get_package(spec, cache) for spec in fluent.SOURCE.packages]
    records = _chosen(list(fluent.SOURCE.records([package.folder for package in packages])))
    if folder.exists():
        shutil.rmtree(folder)
    write_corpus(records, packages, "fixtures", folder, load=_load_small)
    (folder / LICENCE_FILE).write_text(LICENCE_TEXT, encoding="utf-8")


def _chosen(records: list[Record]) -> list[Record]:
    """Takes the same arbitrary records of each class whenever it runs."""
    by_class: defaultdict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: zlib.crc32(record.path.name.encode())):
        by_class[record.class_name].append(record)
    return [record for class_name in CLASSES for record in by_class[class_name][:NUM_PER_CLASS]]


def _load_small(path: Path) -> Picture:
    load_picture(path)  # for its checks
    with Image.open(path) as image:
        small = image.convert("RGBA")
    small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    return encode_webp(small, quality=80)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_fixtures(FIXTURES, default_cache())
    logging.info("wrote %s", FIXTURES)
