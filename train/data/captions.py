"""Several captions per image: which one training reads in a pass. A pure function of (seed, pass, key).

A stored sample has `caption` in KEY.txt; further ones, by name, stand in KEY.json under `captions`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.shards import Sample
from train.data.order import mix

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
    """The declared probabilities at work: one caption for each sample in each pass, whatever else is in the dataset."""

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        """Args:
        shares: Probability of each caption, by name; their order does not matter.
        seed: Of the choice.
        """
        self.names = tuple(sorted(shares))
        self._edges = np.cumsum([shares[name] for name in self.names])[:-1]
        self._seed = seed

    @property
    def is_fixed(self) -> bool:
        """Whether all passes read the same captions."""
        return len(self.names) == 1

    def at(self, number: int, digest_N: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Which of `names` a pass reads, [N].

        Args:
            number: Of the pass, from 0.
            digest_N: Of the samples' keys, by `key_digests`.
        """
        mixed_N = mix(digest_N ^ np.uint64(_digest(f"{self._seed}/{number}")))
        uniform_N = (mixed_N >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.searchsorted(self._edges, uniform_N, side="right").astype(np.uint8)

    def apply(self, sample: Sample, number: int) -> Sample:
        """The sample, as stored, with the caption that a pass reads."""
        name = self.names[0] if self.is_fixed else self.names[self.at(number, key_digests([sample.key]))[0]]
        chosen = caption_of(sample, name)
        return sample if chosen is None else replace(sample, caption=chosen)


def key_digests(keys: Iterable[str]) -> NDArray[np.uint64]:
    """A number for each key, [N]."""
    return np.array([_digest(key) for key in keys], np.uint64)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
