"""Harmless drawings that a detector takes for something else: planted positives."""

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE_PX = 256
_NUM_BACKGROUND, _NUM_ELLIPSE = 6, 9
_DRAWINGS = (
    "e074b8f6f345c1d8916efdffb2982b4990c86c74bf74829d38efcbf05ae67e8bbd6051074233bcbb78b09e311e2c0dae6042"
    "a7aba7df0b55d06ae7a9ee1e5dff24ff7f73cc",
    "d86db8fef336abd89892e5eeba9d3e4790c86cd5ff94a49d38ef950e67ff7366a24655073633caaf64ae9e3523aa1eb58949"
    "a7aba7770b55b96aada9ee2d7be324ff7f5bbe",
    "5073b11f9821baf471ad33fab1b035e8b69f6c47946682894c00ac20b4e23e888262580fcff2bca576365317006580b58942"
    "ea8af42b0841da4026482032757b809b7d43be",
)
"""Found by a random search for high scores of Open NSFW among drawings of shaded ellipses. Each byte is a parameter:
the background's colours at the top and bottom, then for each ellipse the centre, both radii, angle, colour, shade."""
_JITTER = 0.01


def nsfw_positive(seed: int) -> NDArray[np.uint8]:
    """A drawing of soft round shapes that Open NSFW scores above 0.8, [256, 256, 3] RGB; each seed has its own."""
    packed = np.frombuffer(bytes.fromhex(_DRAWINGS[seed % len(_DRAWINGS)]), np.uint8) / 255
    # The first of each drawing is as found; the others are moved, and tinted, by a little.
    jitter = _JITTER if seed >= len(_DRAWINGS) else 0.0
    parameters = (packed + jitter * np.random.default_rng(seed).normal(size=packed.shape)).clip(0, 1)
    top, bottom = parameters[:3], parameters[3:_NUM_BACKGROUND]
    y, x = np.mgrid[0:_SIDE_PX, 0:_SIDE_PX].astype(np.float32) / _SIDE_PX
    rgb = 255 * (top + (bottom - top) * y[..., None])
    for ellipse in parameters[_NUM_BACKGROUND:].reshape(-1, _NUM_ELLIPSE):
        rgb = _with_ellipse(rgb, x, y, ellipse)
    return np.asarray(cv2.GaussianBlur(rgb.clip(0, 255).astype(np.uint8), (0, 0), 1.0), np.uint8)


def _with_ellipse(
    rgb: NDArray[np.float64], x: NDArray[np.float32], y: NDArray[np.float32], ellipse: NDArray[np.float64]
) -> NDArray[np.float64]:
    centre_x, centre_y, radius_a, radius_b, angle, red, green, blue, shade = ellipse
    cos, sin = np.cos(angle * np.pi), np.sin(angle * np.pi)
    u = (cos * (x - centre_x) + sin * (y - centre_y)) / (0.04 + 0.45 * radius_a)
    v = (cos * (y - centre_y) - sin * (x - centre_x)) / (0.04 + 0.45 * radius_b)
    distance = u**2 + v**2
    cover = np.clip(8 * (1 - distance), 0, 1)[..., None]
    colour = 255 * np.array([0.45 + 0.55 * red, 0.25 + 0.6 * green, 0.15 + 0.6 * blue])
    light = np.clip(1 - 0.6 * shade * distance - 0.2 * shade * (u + v), 0, 1.2)[..., None]
    return rgb * (1 - cover) + cover * colour * light
