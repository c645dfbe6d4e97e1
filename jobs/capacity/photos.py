"""Makes photograph-like JPEG files with captions, the same ones on every machine: what the benchmarks measure with."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from jobs.demo.corpus import FIXTURES, read_corpus

ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9)
NUM_BACKGROUNDS = 4
JPEG_QUALITY = 85
MAX_SENTENCES = 11
"""Captions have 1 to this many sentences of the shipped captions, some fifty words on average."""


def make_photos(folder: Path, num_images: int, side_px: tuple[int, int]) -> list[str]:
    """Writes FOLDER/images/NUMBER.jpg, as the demo's image server wants them.

    Args:
        folder: is made if need be.
        num_images: how many.
        side_px: smallest and largest longer side, in pixels.

    Returns:
        The captions, in the order of the numbers.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(FIXTURES)
    icons = [Image.open(FIXTURES / file).convert("RGBA") for file in corpus["file"].to_pylist()]
    sentences = corpus["caption"].to_pylist()
    rng = np.random.Generator(np.random.Philox(key=0))
    backgrounds = [_background(side_px[1], rng) for _ in range(NUM_BACKGROUNDS)]
    for number in range(num_images):
        photo = _photo(icons[number % len(icons)], backgrounds, side_px, rng)
        photo.save(folder / "images" / f"{number:06d}.jpg", quality=JPEG_QUALITY)
    return [" ".join(rng.choice(sentences, rng.integers(1, MAX_SENTENCES + 1))) for _ in range(num_images)]


def make_corpus(folder: Path, num_images: int = 100, side_px: tuple[int, int] = (500, 1500)) -> Path:
    """A corpus folder of photos in sizes of the web, 0.9 megapixels and 230 kB on average. Returns the folder."""
    captions = make_photos(folder, num_images, side_px)
    files = [f"images/{number:06d}.jpg" for number in range(num_images)]
    pq.write_table(pa.table({"file": files, "caption": captions}), folder / "metadata.parquet")
    return folder


def _background(side_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise with the spectrum of photographs, whose amplitude falls with the frequency: [side_px, side_px, 3]."""
    pixels = np.full((side_px, side_px, 3), 128.0, np.float32)
    for num_cells in _powers_of_two(2, side_px):
        cells = rng.normal(size=(num_cells, num_cells, 3)).astype(np.float32)
        # Each octave has the same amplitude, which is a power spectrum of 1/f². The eye's colours vary less than grey.
        cells = 0.4 * cells + 0.6 * cells.mean(axis=2, keepdims=True) * np.sqrt(3)
        pixels += 11.0 * cv2.resize(cells, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return pixels.clip(0, 255).astype(np.uint8)


def _powers_of_two(first: int, end: int) -> Iterator[int]:
    while first < end:
        yield first
        first *= 2


def _photo(
    icon: Image.Image, backgrounds: list[NDArray[np.uint8]], side_px: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """An icon, scaled up, on a window of a background."""
    long_px = int(rng.integers(side_px[0], side_px[1] + 1))
    short_px = round(long_px / rng.choice(ASPECTS))
    width, height = (long_px, short_px) if rng.random() < 0.5 else (short_px, long_px)
    background = backgrounds[rng.integers(len(backgrounds))]
    top, left = (int(rng.integers(side_px[1] - side + 1)) for side in (height, width))
    photo = Image.fromarray(background[top : top + height, left : left + width])
    scaled = icon.resize((short_px // 2, short_px // 2), Image.Resampling.BICUBIC)
    photo.paste(scaled, ((width - scaled.width) // 2, (height - scaled.height) // 2), scaled)
    return photo
