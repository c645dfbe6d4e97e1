"""Makes parts of an image, such as faces, unrecognisable."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.pixels.decode import Pixels

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the upright image's width and height."""

_NUM_CELLS = 4
"""What is left of a box on each side: too little to recognise a face by, and unlike a blur it cannot be undone."""


def blur_boxes(pixels: Pixels, boxes: Sequence[Box]) -> Pixels:
    """A copy in which every box is a smooth patch of its own average colours; nothing outside of them changes."""
    if not boxes:
        return pixels
    blurred = pixels.copy()
    height, width = pixels.shape[:2]
    for box in boxes:
        left, top, right, bottom = (min(max(share, 0.0), 1.0) for share in box)
        columns = slice(math.floor(left * width), math.ceil(right * width))
        rows = slice(math.floor(top * height), math.ceil(bottom * height))
        patch = blurred[rows, columns]
        if patch.size == 0:
            continue
        size = (patch.shape[1], patch.shape[0])
        cells = cv2.resize(patch, [min(_NUM_CELLS, side) for side in size], interpolation=cv2.INTER_AREA)
        blurred[rows, columns] = np.asarray(cv2.resize(cells, size, interpolation=cv2.INTER_LINEAR))
    return blurred
