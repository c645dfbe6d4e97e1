"""`image_hashes`: the difference hash of images and, by option, hashes of their windows that survive a crop."""

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator

_HASH_SIDE = 8
_SEGMENTED_PX = 256
_MIN_SEGMENT_SHARE = 0.02
"""Of the image's area: smaller segments give no hash."""


@annotator("image_hashes")
class ImageHashes(Annotator):
    """64-bit hashes in 16 hexadecimal digits, like the ledger's `phash`."""

    crop_resistant: bool = False
    """Add `crop_hash`."""

    def columns(self) -> dict[str, pa.DataType]:
        """`dhash`: the signs of the differences between neighbours in each row of the 9 × 8 grey image. `crop_hash`:
        the distinct hashes of the windows of `crop_hashes`; two images share a picture where any two of them agree."""
        windows = {"crop_hash": pa.list_(pa.string())} if self.crop_resistant else {}
        return {"dhash": pa.string(), **windows}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        greys = [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in batch.images]
        columns: dict[str, Column] = {"dhash": [difference_hash(grey) for grey in greys]}
        if self.crop_resistant:
            columns["crop_hash"] = [crop_hashes(grey) for grey in greys]
        return columns


def difference_hash(grey: NDArray[np.uint8]) -> str:
    """dHash: is each of the 9 × 8 averaged grey values darker than the one to its right?

    Args:
        grey: [height, width].

    Returns:
        16 hexadecimal digits, top row first.
    """
    small = cv2.resize(grey, (_HASH_SIDE + 1, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def crop_hashes(grey: NDArray[np.uint8]) -> list[str]:
    """Difference hashes of the image and of the boxes around its larger bright and dark segments, without repetition.

    After Steinebach et al. 2014, "Efficient cropping-resistant robust image hashing": a segment that lies within a
    crop has the same box, and so nearly the same hash, before and after.

    Measured within 4 bits: of crops that take 10 % (25 %) of the area, 68 % (44 %) are found again among synthetic
    photographs and 88 % (66 %) among emoji, where the hash of the whole finds 7 % (0 %) and 39 % (1 %). Of pairs of
    different images 0.3 % and 1.4 % agree, so that a match wants a second look before a sample is dropped.
    """
    height, width = grey.shape
    scale = _SEGMENTED_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    smooth = cv2.medianBlur(cv2.GaussianBlur(small, (0, 0), 2), 5)
    hashes = [difference_hash(small)]
    for mask in (smooth > 128, smooth <= 128):
        _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
        for left, top, box_width, box_height, area in boxes[1:]:
            if area >= _MIN_SEGMENT_SHARE * small.size:
                hashes.append(difference_hash(small[top : top + box_height, left : left + box_width]))
    return sorted(set(hashes))
