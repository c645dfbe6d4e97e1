"""Caps on frequent words of captions, as MetaCLIP has them (Xu et al. 2023, algorithm 1): entries, counts and draws.

An entry is a word or phrase, matched as whole words whatever their case. Each sample draws once for each of its entries
and stays where a draw is below min(1, cap ÷ count). As there, a caption without any entry is left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.curate.draws import hash_texts, mix
from pipeline.errors import UserError
from pipeline.store import open_fs

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Entries:
    """The words and phrases, each as the tuple of its words."""

    numbers: Mapping[tuple[str, ...], int]
    max_words: int

    def __len__(self) -> int:
        return len(self.numbers)

    def match(self, captions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and entry of each different match: [M], [M]."""
        rows: list[int] = []
        entries: list[int] = []
        for row, caption in enumerate(captions):
            words = _WORD.findall(caption.lower())
            grams = {
                tuple(words[start : start + length])
                for length in range(1, self.max_words + 1)
                for start in range(len(words) - length + 1)
            }
            found = sorted(self.numbers[gram] for gram in grams if gram in self.numbers)
            rows += [row] * len(found)
            entries += found
        return np.array(rows, np.int64), np.array(entries, np.int64)


def read_entries(url: str) -> Entries:
    """The entries of a text file.

    Raises:
        UserError: There is no such file, or nothing in it.
    """
    fs, path = open_fs(url)
    try:
        text = fs.cat_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        next_step = "write words and phrases into it, one a line, as UTF-8"
        raise UserError("the entries cannot be read", where=url, why=str(error), next_step=next_step) from error
    entries = dict.fromkeys(tuple(_WORD.findall(line.lower())) for line in text.splitlines())
    entries.pop((), None)
    if not entries:
        raise UserError("the file has no entry", where=url, next_step="write words and phrases into it, one a line")
    return Entries({entry: number for number, entry in enumerate(entries)}, max(map(len, entries)))


def keep_balanced(
    matches: tuple[NDArray[np.int64], NDArray[np.int64]],
    draw_N: NDArray[np.uint64],
    count_E: NDArray[np.int64],
    entries: Entries,
    cap: int,
) -> NDArray[np.bool_]:
    """Which of N samples stay.

    Args:
        matches: row and entry of each match.
        draw_N: a number for each sample, uniform in 64 bits.
        count_E: samples with each entry.
        entries: the entries; a draw depends on an entry's words alone, whatever its place in the file.
        cap: samples of an entry that are wanted.
    """
    row_M, entry_M = matches
    names = pa.array([" ".join(entry) for entry in entries.numbers], pa.string())
    draw_M = mix(draw_N[row_M] ^ hash_texts(names, 0)[entry_M])
    share_E = np.minimum(1.0, cap / np.maximum(count_E, 1))
    kept_N = np.zeros(len(draw_N), np.bool_)
    kept_N[row_M[draw_M / 2.0**64 < share_E[entry_M]]] = True
    kept_N[row_M[share_E[entry_M] == 1.0]] = True
    return kept_N
