"""How close stored images are to those of the slow way: full decode, Pillow's Lanczos filter, the same JPEG quality."""

import hashlib
import io
import json
import statistics
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.bench.harness import BenchError
from tests.bench.ingest_settings import JPEG_QUALITY

NUM_COMPARED = 100


def stored_images(out: Path) -> list[tuple[str, bytes]]:
    """The sha256 of the original and the JPEG bytes of every sample in the tars below a folder."""
    found: list[tuple[str, bytes]] = []
    for path in sorted(out.rglob("*.tar")):
        with tarfile.open(path) as tar:
            parts: dict[str, dict[str, bytes]] = {}
            for member in tar:
                stem, _, extension = member.name.rpartition(".")
                parts.setdefault(stem, {})[extension] = _read(tar, member)
        found += [(json.loads(part["json"])["sha256"], part["jpg"]) for part in parts.values()]
    return found


def median_psnr_db(out: Path, originals: Path) -> float:
    """Over images whose original is a JPEG file and larger than what is stored.

    Args:
        out: where a side wrote its tars.
        originals: the corpus's images.
    """
    by_sha256 = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in sorted(originals.glob("*.jpg"))}
    values: list[float] = []
    for sha256, body in sorted(stored_images(out)):
        if sha256 in by_sha256 and len(values) < NUM_COMPARED:
            original, stored = Image.open(by_sha256[sha256]), Image.open(io.BytesIO(body))
            if stored.size != original.size:
                values.append(_psnr_db(_pixels(stored), _slow_way(original, stored.size)))
    if not values:
        raise BenchError(f"none of the images in {out} is a scaled JPEG file of {originals}")
    return statistics.median(values)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()


def _slow_way(original: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    scaled = original.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    scaled.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return _pixels(Image.open(buffer))


def _pixels(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image.convert("RGB"), np.float32)


def _psnr_db(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one - other) ** 2), 1e-9)))
