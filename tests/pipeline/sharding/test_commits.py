"""Commit records of shards: what is written of each is what the index and the list of refusals say."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset_files import index_file, refused_file
from pipeline.sharding.commits import committed_shards, write_commit, write_index
from pipeline.shards import INDEX_SCHEMA
from tests.stores import make_store, shard_rows


def _entry(number: int, num_samples: int) -> dict[str, Any]:
    row = {"path": f"{number}.tar", "num_samples": num_samples, "num_bytes": 512 * number, "sha256": f"of {number}"}
    lists = {name: list(range(num_samples)) for name in ("offsets", "sizes", "widths", "heights")}
    return row | {"keys": [f"{number}-{row}" for row in range(num_samples)]} | lists


def _refused(number: int) -> dict[str, Any]:
    return {"key": f"{number}", "shard": f"{number}.tar", "raw": "raw/u0.tar", "offset": number, "reason": "broken"}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=7), st.integers(1, 4))
def test_the_index_joins_the_rows_of_all_shards_in_their_order(shards: list[tuple[int, int]], group: int) -> None:
    store = make_store([])
    entries = [_entry(number, num_samples) for number, (num_samples, _) in enumerate(shards)]
    refused = [[_refused(number)] * num_refused for number, (_, num_refused) in enumerate(shards)]
    for number in reversed(range(len(shards))):
        write_commit(store, "d", number, entries[number], refused[number])
    assert list(committed_shards(store, "d")) == list(range(len(shards)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sharding.commits._GROUP_SHARDS", group)
        write_index(store, "d", len(shards))
    index = store.read_table(index_file("d"))
    assert index.schema.equals(INDEX_SCHEMA, check_metadata=True)
    assert index.to_pylist() == [{name: entry[name] for name in INDEX_SCHEMA.names} for entry in entries]
    assert store.read_table(refused_file("d")).to_pylist() == [row for rows in refused for row in rows]
    assert shard_rows(store, "d") == entries
    assert list(committed_shards(store, "d")) == list(range(len(shards)))
