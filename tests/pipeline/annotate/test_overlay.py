"""Text overlay: images with drawn text rank above the same without; what is masked is the text."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.annotate.overlay import TextOverlay, mask_text
from tests.pipeline.annotate.batches import Pixels, batch_of, emoji, flat

WORDS = ("SALE", "New offer", "free shipping", "best price", "summer", "look at", "this now", "stock", "photo sample")


def with_text(image: Pixels, seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    drawn = Image.fromarray(image)
    font = ImageFont.load_default(size=float(rng.integers(14, 36)))
    place = (int(rng.integers(image.shape[1] // 4)), int(rng.integers(0.85 * image.shape[0])))
    text = " ".join(rng.choice(WORDS, rng.integers(2, 5)))
    ImageDraw.Draw(drawn).text(place, text, font=font, fill=(int(rng.choice([0, 60])),) * 3)
    return np.asarray(drawn)


def area(images: list[Pixels]) -> Any:
    return np.array(TextOverlay().annotate(batch_of(images))["text_area"])


def test_drawn_text_is_told_from_none() -> None:
    images = emoji(60)
    without, with_ = area(images), area([with_text(image, i) for i, image in enumerate(images)])
    auc = np.mean(with_[:, None] > without) + 0.5 * np.mean(with_[:, None] == without)
    assert auc > 0.85
    assert np.mean(without > 0) < 0.1


def test_the_area_grows_with_the_lines_and_stays_a_share() -> None:
    def lines(number: int) -> Pixels:
        drawn = Image.fromarray(flat(300, 300, (250, 250, 250)))
        for i in range(number):
            ImageDraw.Draw(drawn).text(
                (10, 20 + 40 * i), "many words of text here", (0, 0, 0), ImageFont.load_default(20)
            )
        return np.asarray(drawn)

    areas = area([lines(number) for number in (0, 1, 3, 6)])
    assert areas[0] == 0
    assert all(np.diff(areas) > 0)
    assert areas[-1] < 1


def test_light_text_on_dark_counts_too() -> None:
    drawn = Image.fromarray(flat(200, 300, (10, 10, 10)))
    ImageDraw.Draw(drawn).text((20, 80), "light words on dark", (255, 255, 255), ImageFont.load_default(24))
    assert area([np.asarray(drawn)])[0] > 0.03


def test_masking_takes_the_text_and_leaves_the_rest() -> None:
    plain = flat(200, 300, (200, 180, 160))
    drawn = Image.fromarray(plain)
    ImageDraw.Draw(drawn).text((20, 80), "words to be hidden", (0, 0, 0), ImageFont.load_default(24))
    written = np.asarray(drawn)
    before = written.copy()
    masked = mask_text(written)
    assert np.array_equal(written, before), "the batch's images are shared"
    assert np.abs(masked.astype(int) - plain).mean() < 0.2 * np.abs(written.astype(int) - plain).mean()
    assert np.array_equal(masked[:60], plain[:60])
    assert mask_text(plain) is plain


def test_tiny_and_flat_images_have_no_text() -> None:
    assert area([flat(1, 1), flat(1, 900), flat(64, 64)]).tolist() == [0, 0, 0]
