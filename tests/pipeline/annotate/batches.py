"""Batches made from pixels, as an annotator sees them; lossless, so that a test knows each value."""

from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from jobs.demo.corpus import FIXTURES
from pipeline.annotate.annotator import Batch

Pixels = NDArray[np.uint8]


def batch_of(images: Sequence[Pixels], captions: Sequence[str] = ()) -> Batch:
    """RGB images, [height, width, 3] each, as a batch of PNG files."""
    rows = {"key": [f"{i:020d}" for i in range(len(images))], "caption": list(captions or [""] * len(images))}
    bodies = [cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes() for image in images]
    return Batch(pa.table(rows, pa.schema({name: pa.string() for name in rows})), bodies, [{}] * len(images))


def emoji(num_images: int, side_px: int = 256) -> list[Pixels]:
    """The first fixture images on white."""
    images = []
    for path in sorted((FIXTURES / "images").iterdir())[:num_images]:
        drawn = Image.open(path).convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        white.alpha_composite(drawn)
        images.append(np.asarray(white.convert("RGB").resize((side_px, side_px))))
    return images


def flat(height: int, width: int, rgb: tuple[int, int, int] = (128, 128, 128)) -> Pixels:
    """An image of one colour."""
    return np.full((height, width, 3), rgb, np.uint8)
