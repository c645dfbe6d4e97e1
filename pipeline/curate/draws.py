"""Numbers that a text and a seed decide: identities of groups and the draws of a selection. Vectorised."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Words = NDArray[np.uint64]
_MAX_VECTOR_BYTES = 64
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(word_N: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): each bit of the input moves half of the output's."""
    return finalise(word_N + _GAMMA)


def finalise(word_N: Words) -> Words:
    """The same without the increment, which leaves 0 at 0."""
    mixed = (word_N ^ (word_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_texts(texts: pa.Array | pa.ChunkedArray, seed: int) -> Words:
    """A 64-bit hash of each text; of a null as of the empty text. [N].

    Not against an adversary: up to 64 bytes by SplitMix64 over the words, longer ones by BLAKE2b.
    """
    column = pc.fill_null(texts, "").cast(pa.large_binary())
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    num_texts = len(column)
    hash_N = np.zeros(num_texts, np.uint64)
    if not num_texts:
        return hash_N
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + num_texts + 1]
    byte_B = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    start_N, length_N = bounds[:-1], np.diff(bounds)
    words_N = -(-length_N // 8)
    long_N = length_N > _MAX_VECTOR_BYTES
    for num_words in np.unique(words_N[~long_N]).tolist():
        chosen = np.flatnonzero((words_N == num_words) & ~long_N)
        padded = _padded(byte_B, start_N[chosen], length_N[chosen], 8 * num_words)
        hashed = mix(length_N[chosen].astype(np.uint64) ^ mix(np.full(len(chosen), seed % 2**64, np.uint64)))
        for word in padded.view("<u8").T:
            hashed = mix(hashed ^ word)
        hash_N[chosen] = hashed
    key = (seed % 2**64).to_bytes(8, "little")
    for index in np.flatnonzero(long_N).tolist():
        digest = hashlib.blake2b(column[index].as_py(), digest_size=8, key=key).digest()
        hash_N[index] = int.from_bytes(digest, "little")
    return hash_N


def _padded(
    byte_B: NDArray[np.uint8], start_N: NDArray[np.int64], length_N: NDArray[np.int64], width: int
) -> NDArray[np.uint8]:
    """The texts with zeros behind them: [N, width]."""
    length = int(length_N[0])
    if (length_N == length).all() and (np.diff(start_N) == length).all():  # keys and digests, one behind the other
        padded = np.zeros((len(start_N), width), np.uint8)
        padded[:, :length] = byte_B[start_N[0] : start_N[-1] + length].reshape(-1, length) if length else 0
        return padded
    gathered: NDArray[np.uint8] = byte_B[np.minimum(start_N[:, None] + np.arange(width), len(byte_B) - 1)]
    gathered[np.arange(width) >= length_N[:, None]] = 0
    return gathered
