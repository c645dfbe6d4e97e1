"""Difference hashes: exact on a ramp, stable when encoded again; crop hashes find crops where the plain hash fails."""

import math
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.annotate.hashes import ImageHashes
from pipeline.pixels.phash import hash_distance
from tests.pipeline.annotate.batches import Pixels, batch_of, emoji, flat
from tests.stores import jpeg


def hashed(images: list[Pixels]) -> Any:
    return ImageHashes(crop_resistant=True).annotate(batch_of(images))


def nearest(some: list[str], others: list[str]) -> int:
    return min(hash_distance(a, b) for a in some for b in others)


def crop(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    height, width = (int(side * math.sqrt(1 - share)) for side in image.shape[:2])
    top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def test_a_ramp_sets_every_bit_and_its_mirror_none() -> None:
    ramp = np.repeat(np.tile(np.arange(0, 252, 2, dtype=np.uint8), (64, 1))[..., None], 3, axis=2)
    assert hashed([ramp, np.ascontiguousarray(ramp[:, ::-1])])["dhash"] == ["f" * 16, "0" * 16]


def test_the_option_decides_on_the_column() -> None:
    assert list(ImageHashes().columns()) == ["dhash"]
    assert set(ImageHashes().annotate(batch_of([flat(9, 9)]))) == {"dhash"}
    assert set(hashed([flat(9, 9)])) == set(ImageHashes(crop_resistant=True).columns()) == {"dhash", "crop_hash"}


def test_scaling_and_encoding_again_keep_the_hash() -> None:
    images = emoji(40)
    again = [
        cv2.imdecode(np.frombuffer(jpeg(cv2.resize(i, (180, 180)), 60), np.uint8), cv2.IMREAD_COLOR_RGB) for i in images
    ]
    pairs = zip(hashed(images)["dhash"], hashed(again)["dhash"], strict=True)
    assert np.mean([hash_distance(a, b) <= 8 for a, b in pairs]) > 0.9


@pytest.mark.parametrize(("share", "min_recall"), [(0.1, 0.8), (0.25, 0.5)])
def test_crop_hashes_find_crops_that_the_plain_hash_misses(share: float, min_recall: float) -> None:
    rng = np.random.default_rng(0)
    images = emoji(80)
    whole, cropped = hashed(images), hashed([crop(image, share, rng) for image in images])
    by_segments = [nearest(*pair) <= 4 for pair in zip(whole["crop_hash"], cropped["crop_hash"], strict=True)]
    by_image = [hash_distance(*pair) <= 4 for pair in zip(whole["dhash"], cropped["dhash"], strict=True)]
    assert np.mean(by_segments) > min_recall
    assert np.mean(by_segments) > np.mean(by_image) + 0.3


def test_different_images_rarely_agree() -> None:
    hashes = hashed(emoji(60))["crop_hash"]
    agree = [nearest(a, b) <= 4 for i, a in enumerate(hashes) for b in hashes[:i]]
    assert np.mean(agree) < 0.03


def test_flat_and_tiny_images_have_a_hash() -> None:
    found = hashed([flat(1, 1), flat(1, 500), flat(300, 200)])
    assert found["dhash"] == ["0" * 16] * 3
    assert all(len(some) >= 1 for some in found["crop_hash"])
