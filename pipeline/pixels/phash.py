"""A perceptual hash: 64 bits that stay nearly the same when a picture is scaled or encoded again."""

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE_PX = 32
_NUM_FREQUENCIES = 8


def perceptual_hash(rgb: NDArray[np.uint8]) -> int:
    """pHash: signs of the 8 × 8 lowest frequencies of the 32 × 32 grey image against their median, without the mean's.

    Args:
        rgb: [height, width, 3].

    Returns:
        64 bits, lowest frequency first.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Rounded, so that the transform's own noise does not decide the bits of an image without detail.
    frequencies = np.rint(cv2.dct(small)[:_NUM_FREQUENCIES, :_NUM_FREQUENCIES]).ravel()
    median = np.sort(frequencies[1:])[_NUM_FREQUENCIES**2 // 2 - 1]
    bits = frequencies > median
    return int.from_bytes(np.packbits(bits).tobytes())


def hash_distance(a: str, b: str) -> int:
    """Bits that differ between two hashes of 16 hexadecimal digits, 0 to 64; up to about 10 is the same picture."""
    return (int(a, 16) ^ int(b, 16)).bit_count()
