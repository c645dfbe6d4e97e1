"""What an adapter gives: held-out and training samples in an order that nothing but the data decides."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from train.evaluation.samples import Labelled

MAX_SCANNED = 20_000
"""Samples that are looked at where the data has no split of its own."""
HELDOUT_SHARE = 0.2
"""Of the samples of data without a split of its own."""


@dataclass(frozen=True)
class Left:
    """A sample that is left out."""

    reason: str


@dataclass(frozen=True)
class Source:
    """Samples, read when they are iterated over, well mixed."""

    heldout: Iterable[Labelled | Left]
    training: Iterable[Labelled | Left]
    """Empty where the data has no such part."""
    class_names: tuple[str, ...] = ()


def mixed(names: Iterable[str]) -> list[str]:
    """The names in the order of their hashes: any first few are of all classes and sources, the same each time."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def split_by_content(samples: Iterable[Labelled | Left], class_names: tuple[str, ...] = ()) -> Source:
    """Hold out by a hash of the image's bytes, so that copies of an image are on one side."""
    heldout: list[Labelled | Left] = []
    training: list[Labelled | Left] = []
    for one in samples:
        is_heldout = isinstance(one, Left) or _unit_hash(one.image) < HELDOUT_SHARE
        (heldout if is_heldout else training).append(one)
    return Source(heldout, training, class_names)


def read_image(path: Path) -> bytes | Left:
    """The bytes of an image file, or why there are none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return Left("image file is missing")
    except OSError as error:
        return Left(f"image file cannot be read: {error.strerror}")


def _unit_hash(image: bytes) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(b"heldout " + image).digest()[:8]) / 2**64
