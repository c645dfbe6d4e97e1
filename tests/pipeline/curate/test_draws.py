"""Hashes of texts: of each text alone, whatever stands beside it."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.curate.draws import hash_texts


@given(st.lists(st.text(max_size=80) | st.none(), max_size=12), st.integers(0, 2**64 - 1))
def test_a_hash_is_of_its_text_alone(texts: list[str | None], seed: int) -> None:
    together = hash_texts(pa.chunked_array([texts[:5], texts[5:]], pa.string()), seed).tolist()
    assert together == [hash_texts(pa.array([text], pa.string()), seed)[0] for text in texts]
    assert together[3:] == hash_texts(pa.array(texts, pa.string()).slice(3), seed).tolist()
    assert len(set(together)) == len({text or "" for text in texts})


def test_hashes_are_spread_evenly_and_seeds_differ() -> None:
    keys = pa.array([f"{number:020d}" for number in range(100_000)])
    hash_N = hash_texts(keys, 1)
    assert abs(float((hash_N / 2.0**64).mean()) - 0.5) < 0.005
    assert abs(float((hash_N % np.uint64(2)).mean()) - 0.5) < 0.01
    assert not (hash_N == hash_texts(keys, 2)).any()
