"""What every side of the model benchmark gets: one architecture, one set of weights, one set of samples.

Shape legend: P patches of an image, C channels, p side of a patch in pixels.
"""

from dataclasses import dataclass

import numpy as np

from model import EncodedSample, GenLIPConfig

IMAGE_PX = 224
SHORTEST_CAPTION, MEDIAN_CAPTION, LONGEST_CAPTION = 20, 66, 120
"""Tokens of a caption with its ending. The median is that of the official stage-1 data."""

SEED = 0


@dataclass(frozen=True)
class StepSetup:
    """One measurement of one side, in a process of its own."""

    side: str
    """Module `tests.bench.model_SIDE`."""
    preset: str
    vocab_size: int
    num_rows: int
    row_tokens: int
    num_steps: int
    """Timed, after one to warm up."""
    folder: str = ""
    """Of the peer's code."""
    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "auto"
    """Back end of ours, `GenLIP.attention`."""
    gradient_checkpointing: bool = False

    @property
    def config(self) -> GenLIPConfig:
        """The preset, with weights and branches so large that a wrong mask or position shows in the loss.

        Without DropPath, so that all sides compute the same.
        """
        large = {"initializer_range": 0.1, "ls_init_value": 1.0, "drop_path_rate": 0.0}
        return GenLIPConfig.preset(self.preset, vocab_size=self.vocab_size, **large)


def make_rows(setup: StepSetup) -> list[list[EncodedSample]]:
    """Random square images with random captions of realistic lengths, packed by the official rule.

    A row takes what still fits and skips the rest. All text is trained on, as open_clip has no prompt without loss.
    """
    rng = np.random.Generator(np.random.Philox(key=SEED))
    config = setup.config
    num_patches = (IMAGE_PX // config.patch_size) ** 2
    rows: list[list[EncodedSample]] = []
    for _ in range(setup.num_rows):
        row: list[EncodedSample] = []
        free_tokens = setup.row_tokens
        for num_tokens in (num_patches + length for length in draw_lengths(rng, setup.row_tokens)):
            if num_tokens <= free_tokens:
                row.append(make_sample(config, num_tokens - num_patches, rng))
                free_tokens -= num_tokens
        rows.append(row)
    return rows


def make_sample(config: GenLIPConfig, num_caption_tokens: int, rng: np.random.Generator) -> EncodedSample:
    """A random image of 224 x 224 pixels with random token ids."""
    p = config.patch_size
    side = IMAGE_PX // p
    patches = rng.integers(0, 256, (side * side, config.num_channels, p, p), dtype=np.uint8)
    ids = rng.integers(1, config.vocab_size, num_caption_tokens).tolist()
    return EncodedSample(patches, (side, side), prompt_ids=(), caption_ids=ids)


def draw_lengths(rng: np.random.Generator, num: int) -> list[int]:
    """Tokens of captions: log-normal, cut at both ends."""
    lengths = rng.lognormal(np.log(MEDIAN_CAPTION), 0.5, num).round()
    drawn: list[int] = lengths.clip(SHORTEST_CAPTION, LONGEST_CAPTION).astype(int).tolist()
    return drawn
