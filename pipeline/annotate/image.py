"""`image_stats`: sharpness, entropy, colour, light and shape of images, by formulas without a model."""

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator

MEASURED_PX = 256
"""Longer side at which images are measured; larger ones are scaled down to it, smaller ones stay as they are."""
_BORDER_LEVELS = 4
"""Rows and columns at an edge whose grey values differ by no more than this are a uniform border."""

_NAMES = ("sharpness", "entropy", "colourfulness", "brightness", "contrast", "aspect", "uniform_border")


@annotator("image_stats")
class ImageStats(Annotator):
    """Statistics of the pixels, at a longer side of at most 256 px, so that they hardly depend on the resolution."""

    def columns(self) -> dict[str, pa.DataType]:
        """All are float32.

        `sharpness`: variance of the Laplacian of the grey values (Pech-Pacheco et al. 2000, "Diatom autofocusing in
        brightfield microscopy"); low is blurred or flat. `entropy`: of the histogram of grey values (Shannon 1948),
        0 to 8 bits. `colourfulness`: the M of Hasler & Süsstrunk 2003, "Measuring colourfulness in natural images";
        0 is grey, above 80 very colourful. `brightness` and `contrast`: mean and standard deviation of the grey
        values, 0 to 1. `aspect`: the longer side divided by the shorter, at least 1. `uniform_border`: share of the
        area in rows and columns at the edges that have one grey value (letterboxes, frames); 1 where all is flat.
        """
        return {name: pa.float32() for name in _NAMES}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        values_NC = np.array([_measure(image) for image in batch.images], np.float32).reshape(-1, len(_NAMES))
        return dict(zip(_NAMES, values_NC.T, strict=True))


def scaled_down(rgb: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    """The image with a longer side of at most so many pixels, [height, width, 3]; averaged, never enlarged."""
    height, width = rgb.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _measure(rgb: NDArray[np.uint8]) -> tuple[float, ...]:
    height, width = rgb.shape[:2]
    small = scaled_down(rgb, MEASURED_PX)
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(grey))
    _, laplacian_deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return (
        float(laplacian_deviation[0, 0]) ** 2,
        _entropy(grey),
        _colourfulness(small),
        mean / 255,
        deviation / 255,
        max(height, width) / min(height, width),
        _uniform_border(grey),
    )


def _entropy(grey: NDArray[np.uint8]) -> float:
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).astype(np.float64)
    shares = counts[counts > 0] / grey.size
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def _colourfulness(rgb: NDArray[np.uint8]) -> float:
    """Hasler & Süsstrunk's M: sigma + 0.3 mu, both of the opponent colours R - G and (R + G) / 2 - B."""
    opponents = cv2.transform(rgb.astype(np.float32), np.array([[1, -1, 0], [0.5, 0.5, -1]], np.float32))
    means, deviations = cv2.meanStdDev(opponents)
    return float(np.linalg.norm(deviations) + 0.3 * np.linalg.norm(means))


def _uniform_border(grey: NDArray[np.uint8]) -> float:
    height, width = grey.shape
    # Rows first, then the columns of what they leave, so that a letterbox does not hide a frame.
    top, bottom = _inner(grey.max(axis=1), grey.min(axis=1))
    inner = grey[top:bottom]
    if not inner.size:
        return 1.0
    left, right = _inner(inner.max(axis=0), inner.min(axis=0))
    return float(1 - (bottom - top) * (right - left) / (height * width))


def _inner(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> tuple[int, int]:
    """First and end of the lines between those at either edge that have the edge's one colour."""
    highest, lowest = high.astype(np.int16), low.astype(np.int16)
    # Against the outermost line and not each line by itself, so that a gradient is no border.
    first, last = (
        np.flatnonzero(np.maximum(highest - lowest[edge], highest[edge] - lowest) > _BORDER_LEVELS) for edge in (0, -1)
    )
    return (int(first[0]), max(int(first[0]), int(last[-1]) + 1)) if first.size and last.size else (0, 0)
