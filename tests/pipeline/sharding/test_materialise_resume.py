"""A dataset is completed to the same bytes after a kill, in any order of the work; other values are refused."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.curate.rows import open_rows
from pipeline.each import Each, in_turn
from pipeline.errors import UserError
from pipeline.recipe import ShardSpec
from pipeline.sharding.dataset import materialise
from pipeline.sharding.write import ShardJob
from pipeline.store import Store
from tests.pipeline.sharding.selections import dataset_files, key_of, keys, make, numbered_store, write_selection
from tests.stores import Stored, commit_unit

Item = TypeVar("Item")
Result = TypeVar("Result")

UNITS = [range(20 * unit, 20 * unit + 20) for unit in range(5)]
CHILD = """
import os, sys
import pipeline.curate.rows, pipeline.sharding.order
pipeline.curate.rows.UNITS_PER_PART = 1
pipeline.sharding.order.PART_ROWS = 16
from pipeline.store import Store
from tests.pipeline.sharding.selections import make
make(Store(sys.argv[1]))
os._exit(0)  # as the command ends: native threads now and then abort a process that is torn down in the usual way
"""


def _fate(key: str) -> str:
    return "heldout" if int(key, 16) % 5 == 0 else "train"


def _selected(root: str = "") -> Store:
    store = numbered_store(UNITS, root)
    write_selection(store, "d", _fate)
    return store


def _backwards(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """As elsewhere: function and items are pickled, and the last item is done first."""
    for item in reversed(list(items)):
        there, argument = pickle.loads(pickle.dumps((function, item)))
        yield item, there(argument)


def _make_with(each: Each, store: Store) -> None:
    materialise(open_rows(store, []), "d", ShardSpec(name="d", shard_samples=7), 1, each)


def test_the_order_in_which_parts_and_shards_are_made_changes_no_byte() -> None:
    stores = [_selected(), _selected()]
    _make_with(in_turn, stores[0])
    _make_with(_backwards, stores[1])
    assert len(dataset_files(stores[0])) > 30
    assert dataset_files(stores[0]) == dataset_files(stores[1])


def test_a_finished_dataset_is_left_as_it_is(tmp_path: Path) -> None:
    store = _selected(str(tmp_path))
    first = make(store)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert make(store) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == times


@pytest.mark.parametrize(
    "lost", ["shards/d/shard-000002.parquet", "shards/d-heldout/shard-000000.parquet", "shards/d/index.parquet"]
)
@pytest.mark.parametrize("more", [[], ["shards/d/shard-000002.tar", "shards/d-heldout/shard-000000.tar"]])
def test_only_what_is_missing_is_made_again(tmp_path: Path, lost: str, more: list[str]) -> None:
    store = _selected(str(tmp_path))
    make(store)
    before = dataset_files(store)
    untouched = tmp_path / "shards/d/shard-000001.tar"
    written_at = untouched.stat().st_mtime_ns
    (tmp_path / lost).unlink()
    for name in more:
        if name.rsplit(".", 1)[0] == lost.rsplit(".", 1)[0]:
            (tmp_path / name).unlink()
    make(store)
    assert dataset_files(store) == before
    assert untouched.stat().st_mtime_ns == written_at


def test_a_dataset_of_which_a_shard_was_deleted_does_not_exist_until_it_is_whole_again() -> None:
    store = _selected()
    make(store)
    before = dataset_files(store)
    store.remove("shards/d/shard-000002.parquet")

    def each(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        for item in items:
            if isinstance(item, ShardJob):
                raise KeyboardInterrupt
            yield item, function(item)

    with pytest.raises(KeyboardInterrupt):
        _make_with(each, store)
    assert not store.exists("shards/d/index.parquet")
    make(store)
    assert dataset_files(store) == before


def test_kills_at_any_moment_lose_nothing_and_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.curate.rows.UNITS_PER_PART", 1)  # as in the child
    wanted = _selected()
    make(wanted)
    store = _selected(str(tmp_path))
    rng = random.Random(5)
    num_kills = 0
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
        while not (tmp_path / "shards").exists() and process.poll() is None:
            time.sleep(0.001)
        already = _num_files(tmp_path)
        more = rng.randrange(0, 12)
        while _num_files(tmp_path) < already + more and process.poll() is None:
            time.sleep(0.0005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            num_kills += 1
        process.wait()
        if not store.exists("shards/d/index.parquet"):
            assert keys(store, "d") == []
    assert num_kills >= 3
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True)
    assert dataset_files(store) == dataset_files(wanted)
    assert not store.exists("shards/d/.plan")


def _num_files(folder: Path) -> int:
    return sum(1 for path in (folder / "shards").rglob("*") if not path.is_dir())


# ---------------------------------------------------------------- other values


@pytest.mark.parametrize(
    ("spec", "seed", "named"),
    [
        (ShardSpec(name="d", shard_samples=8), 1, "shard_samples was 7, is 8"),
        (ShardSpec(name="d", shard_samples=7, holdout=0.9), 1, "holdout was 0.0, is 0.9"),
        (ShardSpec(name="d", shard_samples=7), 2, "seed was 1, is 2"),
    ],
)
def test_changed_values_are_refused_and_nothing_is_touched(spec: ShardSpec, seed: int, named: str) -> None:
    store = _selected()
    make(store)
    before = dataset_files(store)
    with pytest.raises(UserError) as caught:
        materialise(open_rows(store, []), "d", spec, seed, in_turn)
    assert named in caught.value.message
    assert "--set shards.name=NAME" in caught.value.message
    assert store.path("shards/d-heldout") in caught.value.message
    assert dataset_files(store) == before


def test_another_selection_is_refused_even_where_only_the_held_out_shards_are_left() -> None:
    store = _selected()
    make(store)
    write_selection(store, "d")
    with pytest.raises(UserError, match="selection was"):
        make(store)
    store.remove("shards/d")
    with pytest.raises(UserError, match="selection was"):
        make(store)
    store.remove("shards/d-heldout")
    assert make(store).num_samples == 100


def test_another_name_makes_another_dataset_beside() -> None:
    store = _selected()
    make(store)
    before = dataset_files(store)
    write_selection(store, "e")
    make(store, "e")
    assert len(keys(store, "e")) == 100
    assert dataset_files(store) == before


# ---------------------------------------------------------------- nothing to make shards of


def test_without_a_selection_the_command_that_makes_it_is_named() -> None:
    with pytest.raises(UserError, match="genlip select RECIPE"):
        make(numbered_store(UNITS))


def test_a_selection_that_keeps_nothing_says_so() -> None:
    store = numbered_store(UNITS)
    write_selection(store, "d", lambda key: "too_short")
    with pytest.raises(UserError, match="no sample is left to train on") as caught:
        make(store)
    assert "'too_short': 100" in caught.value.message


def test_a_store_with_a_new_unit_asks_for_a_new_selection() -> None:
    store = _selected()
    commit_unit(store, 5, [Stored(key_of(900))])
    with pytest.raises(UserError, match="units have changed") as caught:
        make(store)
    assert "genlip select RECIPE" in caught.value.message
    assert store.names("shards/d", ".tar") == []


def test_a_unit_that_was_made_anew_asks_for_a_new_selection() -> None:
    store = _selected()
    commit_unit(store, 2, [Stored(key_of(900 + row)) for row in range(20)])
    with pytest.raises(UserError, match="units have changed"):
        make(store)
