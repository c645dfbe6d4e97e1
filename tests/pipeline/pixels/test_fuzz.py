"""Twenty thousand damaged images through the decoder process: an image or a reason each time, and the parent lives."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageCms
from pixel_files import FORMATS, HEIC, encode, noise, oriented, photo

from pipeline.outcomes import REASONS
from pipeline.pixels.decoder import Decoder
from pipeline.pixels.images import ImageError
from pipeline.pixels.plugins import PLUGINS
from pipeline.pixels.spec import ImageSpec

NUM_IMAGES = 20_000
SPEC = ImageSpec(size_px=32, max_pixels=4_000_000, decode_memory_mb=300, decode_timeout_s=10)
INTERESTING = (
    b"\0",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
)
HEADER_BYTES = 64


def _seeds() -> list[bytes]:
    """Each type, and the variants of it that other code reads."""
    image = photo(48, 40)
    frames = [noise(32, 32, seed) for seed in range(3)]
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # the time at which it was made
    seeds = [encode(image, name) for name in FORMATS]
    seeds += [oriented(image, name, 6) for name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")]
    seeds += [
        encode(frames[0], name, save_all=True, append_images=frames[1:]) for name in ("GIF", "PNG", "WEBP", "TIFF")
    ]
    seeds += [encode(image, name, icc_profile=bytes(profile)) for name in ("JPEG", "PNG", "WEBP")]
    seeds += [encode(image.convert("RGBA"), name) for name in ("PNG", "WEBP", "AVIF")]
    seeds += [encode(image.convert(mode), "PNG") for mode in ("1", "L", "P", "LA")]
    seeds += [encode(image.convert("CMYK"), "JPEG"), encode(image, "JPEG", progressive=True)]
    seeds += [encode(image, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    seeds += [encode(image, "WEBP", lossless=True), encode(Image.fromarray(np.full((9, 9), 999, np.uint16)), "PNG")]
    return seeds + [HEIC] * ("heic" in PLUGINS)


def _mutate(seeds: list[bytes], rng: random.Random) -> bytes:
    body = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(("bit", "bit", "header", "header", "value", "cut", "splice", "repeat", "remove"))
        end = min(HEADER_BYTES, len(body)) if kind == "header" else len(body)
        at = rng.randrange(max(1, end))
        if kind == "bit" and body:
            body[at % len(body)] ^= 1 << rng.randrange(8)
        elif kind in ("header", "value"):
            value = rng.choice(INTERESTING)
            body[at : at + len(value)] = value
        elif kind == "cut":
            del body[max(8, at) :]
        elif kind == "splice":
            other = rng.choice(seeds)
            body[at:] = other[rng.randrange(len(other)) :]
        elif kind == "repeat":
            body[at:at] = body[at : at + rng.randint(1, 300)]
        else:
            del body[at : at + rng.randint(1, 30)]
    return bytes(body)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_images_give_an_image_or_a_reason() -> None:
    rng = random.Random(0)
    seeds = _seeds()
    outcomes: Counter[str] = Counter()
    with Decoder(SPEC) as decoder:
        assert all(decoder.transcode(seed).width for seed in seeds)
        for _ in range(NUM_IMAGES):
            body = _mutate(seeds, rng)
            try:
                stored = decoder.transcode(body)
            except ImageError as error:
                outcomes[str(error)] += 1
            else:
                outcomes["success"] += 1
                assert 1 <= max(stored.width, stored.height) <= 32
                assert stored.body
    print(dict(outcomes))  # noqa: T201 - how many crashed is worth knowing; -s shows it
    assert outcomes.total() == NUM_IMAGES
    assert set(outcomes) - {"success", "image_too_narrow"} <= set(REASONS)
    # Neither all refused at the door nor all unharmed, or nothing would have been tried.
    assert outcomes["success"] > NUM_IMAGES / 10
    assert outcomes["undecodable"] > NUM_IMAGES / 50
