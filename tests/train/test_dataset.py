"""A dataset as training sees it: totals from its index, samples shard by shard; and the run's own line files."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset_files import index_file
from pipeline.errors import UserError
from pipeline.shards import INDEX_SCHEMA
from pipeline.store import Store
from tests.stores import shard_rows
from train.data.dataset import first_samples, open_dataset
from train.jsonl import append_line, read_lines


@pytest.fixture
def store(small_store: Path, tmp_path: Path) -> Store:
    """A copy that a test may add to."""
    return Store(str(shutil.copytree(small_store / "store", tmp_path / "store")))


@pytest.mark.parametrize("limit", [0, 1, 60, 90, 10**6])
def test_the_first_samples_come_in_the_order_of_the_index(store: Store, limit: int) -> None:
    keys = [key for shard in shard_rows(store, "demo") for key in shard["keys"]]
    found = list(first_samples(open_dataset(store, "demo"), limit))
    assert [sample.key for sample in found] == keys[:limit]
    assert all(sample.image and sample.caption for sample in found)


def test_a_dataset_is_known_by_the_content_of_its_shards_and_their_order(store: Store) -> None:
    table = store.read_table(index_file("demo"))
    original = open_dataset(store, "demo")
    assert original.num_samples == sum(len(shard["keys"]) for shard in shard_rows(store, "demo"))
    store.write_table(index_file("copy"), table)
    assert open_dataset(store, "copy").fingerprint == original.fingerprint
    changed_sha256 = table.set_column(3, "sha256", pa.array([f"{n}" for n in range(len(table))]))
    for other in (table.slice(1), table[::-1], changed_sha256):
        store.write_table(index_file("copy"), other)
        assert open_dataset(store, "copy").fingerprint != original.fingerprint


def test_what_is_not_there_is_said_with_the_command_that_makes_it(store: Store) -> None:
    with pytest.raises(UserError, match=r"no such shards(.|\n)*genlip curate RECIPE"):
        open_dataset(store, "elsewhere")
    store.write_table(index_file("empty"), INDEX_SCHEMA.empty_table())
    with pytest.raises(UserError, match=r"empty(.|\n)*genlip curate RECIPE"):
        open_dataset(store, "empty")


@given(st.lists(st.dictionaries(st.text(), st.one_of(st.integers(), st.text())), min_size=1), st.data())
def test_a_line_that_was_cut_short_takes_no_other_with_it(
    tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    assert read_lines(path) == []
    for entry in entries:
        append_line(path, entry)
    assert read_lines(path) == entries
    size = len(json.dumps(entries[-1]))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 1 - data.draw(st.integers(1, size))])
    append_line(path, {"after": 1})
    assert read_lines(path) == [*entries[:-1], {"after": 1}]
