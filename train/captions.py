"""Several captions per image: which one training reads in an epoch. A pure function of (seed, epoch, key).

A stored sample has `caption` in KEY.txt; further ones, by name, stand in KEY.json under `captions`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.shards import Sample

if TYPE_CHECKING:
    from model import Tokenizer

CAPTION = "caption"
"""The one that every sample has, and that stands in where a sample lacks another."""


def caption_of(sample: Sample, name: str) -> str | None:
    """A sample's caption of that name; None where it has none."""
    if name == CAPTION:
        return sample.caption
    found = sample.meta.get("captions", {}).get(name)
    return str(found) if found else None


def num_tokens(tokenizer: "Tokenizer", caption: str) -> int:
    """Length of a caption without prompt and ending."""
    return len(tokenizer.encode(caption))


class CaptionChoice:
    """The declared probabilities at work on a dataset: one caption for each of N samples in each epoch."""

    def __init__(self, shares: Mapping[str, float], seed: int, keys: Sequence[str]) -> None:
        """Args:
        shares: Probability of each caption, by name; their order does not matter.
        seed: Of the choice.
        keys: Of the samples.
        """
        self.names = tuple(sorted(shares))
        self._edges = np.cumsum([shares[name] for name in self.names])[:-1]
        self._seed = seed
        self._num_samples = len(keys)
        self._digest_N = np.array([_digest(key) for key in keys], np.uint64) if len(self.names) > 1 else None
        self.at = lru_cache(maxsize=2)(self._at)

    @property
    def is_fixed(self) -> bool:
        """Whether all epochs read the same captions."""
        return self._digest_N is None

    def apply(self, sample: Sample, number: int, epoch: int) -> Sample:
        """The sample with the caption that this epoch reads.

        Args:
            sample: As stored.
            number: Its place in the dataset.
            epoch: From 0.
        """
        name = self.names[self.at(epoch)[number]]
        chosen = caption_of(sample, name)
        return sample if chosen is None else replace(sample, caption=chosen)

    def _at(self, epoch: int) -> NDArray[np.uint8]:
        """Index into `names` for each sample, [N]."""
        if self._digest_N is None:
            return np.zeros(self._num_samples, np.uint8)
        mixed_N = _mix(self._digest_N ^ np.uint64(_digest(f"{self._seed}/{epoch}")))
        uniform_N = (mixed_N >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.searchsorted(self._edges, uniform_N, side="right").astype(np.uint8)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _mix(x_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014, https://doi.org/10.1145/2714064.2660195)."""
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))
