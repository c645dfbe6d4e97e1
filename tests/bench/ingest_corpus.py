"""The images that the ingest benchmark serves: crops of real photographs that Debian packages ship, in web sizes.

They are made once, the same ones on every machine with the same packages, and kept in a folder.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.capacity.photos import make_photos
from jobs.demo.registry import RegistryUnavailable, default_cache, get_package

PACKAGES = (
    "debian:endless-sky-data",
    "debian:lomiri-wallpapers-16.04",
    "debian:lomiri-wallpapers-20.04",
    "debian:mate-backgrounds",
    "debian:plasma-workspace-wallpapers",
    "debian:ukui-wallpapers",
)
NUM_IMAGES = 2_400
# What the web holds, roughly: shares of formats, and pixels with a median of 0.67 and a mean of 1 megapixel.
FORMATS = {"jpg": 0.84, "png": 0.10, "webp": 0.06}
PROGRESSIVE_SHARE = 0.20
MEDIAN_PIXELS, SIGMA = 670_000, 0.9
MIN_PIXELS, MAX_PIXELS = 70_000, 6_000_000
MIN_SOURCE_PIXELS = 200_000
"""Smaller pictures of a package are icons."""
ASPECTS = (0.67, 0.75, 1.0, 1.0, 1.33, 1.33, 1.5, 1.78)
JPEG_QUALITIES = (75, 80, 85, 90, 95)
WEBP_QUALITY = 82
SYNTHETIC_SIDE_PX = (600, 1200)


@dataclass(frozen=True)
class Corpus:
    """Images on disk."""

    folder: Path
    """Of the images."""
    files: list[str]
    """Their names, relative to the folder."""


@dataclass(frozen=True)
class _Crop:
    """One image to be made."""

    name: str
    source: int
    pixels: float
    """Area wanted; the source may have less."""
    aspect: float
    zoom: float
    """0 shows as little of the source as its pixels allow, 1 the whole."""
    left: float
    top: float
    quality: int
    progressive: bool


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/genlip-bench`, or `~/.cache/genlip-bench`."""
    return default_cache().with_name("genlip-bench")


def get_corpus(folder: Path) -> Corpus:
    """The corpus in a folder, made there on first use; says on stderr where it had to be synthetic."""
    index = folder / "corpus.json"
    if not index.is_file():
        _make(folder, index)
    facts = json.loads(index.read_text())
    if facts["is_synthetic"]:
        print(f"ingest: the images in {folder} are SYNTHETIC photos, not real ones; see the README", file=sys.stderr)
    return Corpus(folder / "images", facts["files"])


def _make(folder: Path, index: Path) -> None:
    print(f"ingest: making {NUM_IMAGES} images in {folder}, once; this takes some minutes", file=sys.stderr, flush=True)
    shutil.rmtree(folder / "images", ignore_errors=True)  # of a making that was cut short
    (folder / "images").mkdir(parents=True)
    try:
        sources = _photographs()
    except RegistryUnavailable as error:
        print(f"ingest: no real photographs ({error})", file=sys.stderr)
        sources = []
    if sources:
        crops = _choose([_num_pixels(source) for source in sources])
        for number, source in enumerate(sources):
            _write_crops(source, [crop for crop in crops if crop.source == number], folder / "images")
    else:
        make_photos(folder, NUM_IMAGES, SYNTHETIC_SIDE_PX)
    files = sorted(path.name for path in (folder / "images").iterdir())
    part = index.with_suffix(".part")
    part.write_text(json.dumps({"is_synthetic": not sources, "files": files}))
    part.replace(index)  # last: a corpus without an index is made again


def _photographs() -> list[Path]:
    """Pictures of the packages that are large enough, in a fixed order; drawings are among them, as on the web."""
    found: list[Path] = []
    for package in PACKAGES:
        folder = get_package(package, default_cache()).folder
        for path in sorted(path for path in folder.rglob("*") if path.suffix in {".jpg", ".png"}):
            if path.is_file() and not path.is_symlink() and _num_pixels(path) >= MIN_SOURCE_PIXELS:
                found.append(path)
    return found


def _num_pixels(path: Path) -> int:
    with Image.open(path) as image:
        return image.width * image.height


def _choose(source_pixels: Sequence[int]) -> list[_Crop]:
    """The whole corpus by chance from a fixed seed, before any source is opened."""
    rng = np.random.Generator(np.random.Philox(key=0))
    extensions = rng.choice(list(FORMATS), NUM_IMAGES, p=list(FORMATS.values()))
    areas = np.clip(MEDIAN_PIXELS * np.exp(SIGMA * rng.normal(size=NUM_IMAGES)), MIN_PIXELS, MAX_PIXELS)
    return [
        _Crop(
            name=f"{number:06d}.{extension}",
            source=int(rng.choice(np.flatnonzero(np.array(source_pixels) >= area))),
            pixels=float(area),
            aspect=float(rng.choice(ASPECTS)),
            zoom=float(rng.random()),
            left=float(rng.random()),
            top=float(rng.random()),
            quality=int(rng.choice(JPEG_QUALITIES)),
            progressive=bool(rng.random() < PROGRESSIVE_SHARE),
        )
        for number, (extension, area) in enumerate(zip(extensions, areas, strict=True))
    ]


def _write_crops(source: Path, crops: Sequence[_Crop], folder: Path) -> None:
    if not crops:
        return
    with Image.open(source) as image:
        pixels = np.asarray(image.convert("RGB"))
    for crop in crops:
        _save(_cut(pixels, crop), crop, folder / crop.name)


def _cut(pixels: NDArray[np.uint8], crop: _Crop) -> NDArray[np.uint8]:
    """A window of the source, scaled down to the wanted area; never up, which would make it smoother than photos."""
    height, width = pixels.shape[:2]
    largest_height = min(height, width / crop.aspect)
    wanted_height = min(largest_height, (crop.pixels / crop.aspect) ** 0.5)
    window_height = wanted_height + crop.zoom * (largest_height - wanted_height)
    window = round(window_height), round(window_height * crop.aspect)
    top, left = round(crop.top * (height - window[0])), round(crop.left * (width - window[1]))
    cut = pixels[top : top + window[0], left : left + window[1]]
    return cv2.resize(cut, (round(wanted_height * crop.aspect), round(wanted_height)), interpolation=cv2.INTER_AREA)


def _save(pixels: NDArray[np.uint8], crop: _Crop, path: Path) -> None:
    image = Image.fromarray(pixels)
    if path.suffix == ".jpg":
        image.save(path, quality=crop.quality, progressive=crop.progressive)
    elif path.suffix == ".webp":
        image.save(path, quality=WEBP_QUALITY)
    else:
        if crop.quality % 10:  # half of the qualities: half of the PNG files have an alpha channel, as logos do
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).ellipse((0, 0, *image.size), fill=255)
            image.putalpha(mask)
        image.save(path)
