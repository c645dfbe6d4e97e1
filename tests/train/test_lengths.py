"""Caption lengths that nobody has counted: the plan is that of a counted dataset, whoever counts, and wherever to."""

import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from range_server import serve_ranges
from train_runs import small_recipe
from two_captions import NUM_SHARDS, SHARD_SAMPLES, stored, write_dataset

from jobs.recipe import Recipe
from jobs.runs import open_run
from model import SentencePieceTokenizer, Tokenizer
from pipeline.dataset_files import shard_tar
from pipeline.errors import UserError
from pipeline.store import Store
from train.data.captions import CAPTION, caption_of
from train.data.dataset import open_dataset
from train.data.lengths import CaptionLengths
from train.plan import plan_lines
from train.recipe import TOKENIZER_FOLDER
from train.setup import RunSetup, set_up

CAPTIONS = (CAPTION, "recaption")
MANY_SHARDS = 40
COUNT_ALL = """
import sys
from pathlib import Path
from model import load_tokenizer
from pipeline.store import Store
from train.data.dataset import open_dataset
from train.data.lengths import CaptionLengths
dataset = open_dataset(Store(sys.argv[1]), "demo")
run_dir = Path(sys.argv[2])
lengths = CaptionLengths(dataset, load_tokenizer(run_dir / "tokenizer"), ("caption", "recaption"), run_dir)
print("ready", flush=True)
sys.stdin.readline()
lengths.prepare(range(dataset.num_shards))
print(lengths.num_counted)
"""


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train([f"a long tale of marmalade, thing number {n}" for n in range(200)], 400)


@pytest.fixture
def recipe(tokenizer: Tokenizer, tmp_path: Path) -> Recipe:
    """A run that reads two captions, of a dataset in which none is counted."""
    recipe = small_recipe(tmp_path, tmp_path, "train.captions={caption: 0.3, recaption: 0.7}")
    write_dataset(Store(recipe.store), recipe.shards.name)
    folder = open_run(recipe) / TOKENIZER_FOLDER
    folder.mkdir()
    tokenizer.save(folder)
    return recipe


def plan(setup: RunSetup) -> list[Any]:
    """The rows of two passes, and what their samples cost."""
    segments = [setup.stream.segment(number) for number in (0, 1)]
    return [(one.rows, one.costs.tokens_N.tolist()) for one in segments]


def expected_lengths(tokenizer: Tokenizer, num_shards: int = NUM_SHARDS) -> NDArray[np.int64]:
    """Of the samples of `write_dataset`, [C, N]."""
    samples = [stored(number) for number in range(num_shards * SHARD_SAMPLES)]
    texts = [[caption_of(sample, name) or sample.caption for sample in samples] for name in CAPTIONS]
    return np.array([[len(tokenizer.encode(text)) for text in row] for row in texts])


def found_lengths(lengths: CaptionLengths, num_shards: int = NUM_SHARDS) -> NDArray[np.int32]:
    return np.concatenate([lengths.shard(number) for number in range(num_shards)], axis=1)


def lengths_files(folder: Path) -> dict[str, bytes]:
    """What is visible of the lengths below a folder."""
    paths = (path for path in folder.rglob("lengths-*/*") if not path.name.startswith("."))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_is_counted_on_the_way_gives_the_same_rows_and_is_kept(recipe: Recipe, tokenizer: Tokenizer) -> None:
    first = set_up(recipe.run_dir)
    rows = plan(first)
    assert np.array_equal(found_lengths(first.sources[0].lengths), expected_lengths(tokenizer))
    assert first.sources[0].lengths.num_counted == NUM_SHARDS
    assert "the captions of 2 shards, which nobody had" in "\n".join(plan_lines(first, 1))
    kept = lengths_files(Path(recipe.store))
    assert len(kept) == NUM_SHARDS * len(CAPTIONS)
    again = set_up(recipe.run_dir)
    assert plan(again) == rows
    assert again.sources[0].lengths.num_counted == 0
    assert "nobody had" not in "\n".join(plan_lines(again, 1))
    assert lengths_files(Path(recipe.store)) == kept


@pytest.mark.parametrize("kind", ["zip", "http"])
def test_lengths_of_a_store_that_is_read_only_are_kept_in_the_run(
    recipe: Recipe, tokenizer: Tokenizer, tmp_path: Path, kind: str
) -> None:
    folder = Path(recipe.store)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with zipfile.ZipFile(tmp_path / "store.zip", "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    with serve_ranges({f"/{name}": body for name, body in files.items()}) as (_, url):
        store = Store(url if kind == "http" else f"zip://::{tmp_path}/store.zip")
        dataset = open_dataset(store, recipe.shards.name)
        for num_counted in (NUM_SHARDS, 0):
            lengths = CaptionLengths(dataset, tokenizer, CAPTIONS, recipe.run_dir)
            lengths.prepare(range(NUM_SHARDS))
            assert np.array_equal(found_lengths(lengths), expected_lengths(tokenizer))
            assert lengths.num_counted == num_counted
    assert len(lengths_files(recipe.run_dir)) == NUM_SHARDS * len(CAPTIONS)
    assert lengths_files(folder) == {}


def test_a_damaged_sample_keeps_its_place(recipe: Recipe, tokenizer: Tokenizer) -> None:
    store, name = Store(recipe.store), recipe.shards.name
    shard = open_dataset(store, name).shard(0)
    tar = bytearray(store.read(shard.path))
    tar[shard.offset_n[7] : shard.offset_n[7] + shard.size_n[7]] = b"x" * int(shard.size_n[7])
    store.write(shard.path, bytes(tar[: int(shard.offset_n[-1]) + 700]))  # and the last one is cut short
    lengths = CaptionLengths(open_dataset(store, name), tokenizer, CAPTIONS, recipe.run_dir)
    expected = expected_lengths(tokenizer)
    expected[:, [7, SHARD_SAMPLES - 1]] = 0
    assert np.array_equal(found_lengths(lengths), expected)


def test_a_shard_that_is_gone_is_named(recipe: Recipe) -> None:
    Store(recipe.store).remove(shard_tar(recipe.shards.name, 1))
    with pytest.raises(UserError, match=r"cannot be read\n.*shard-000001\.tar"):
        set_up(recipe.run_dir)


@pytest.mark.slow
def test_two_processes_share_the_work_and_a_kill_leaves_nothing_half(
    recipe: Recipe, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = Store(recipe.store)
    write_dataset(store, recipe.shards.name, MANY_SHARDS)
    command = [sys.executable, "-c", COUNT_ALL, recipe.store, str(recipe.run_dir)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.communicate()[1]  # type: ignore[union-attr]
        for process in processes:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        wait_for(lambda: len(lengths_files(Path(recipe.store))) >= 4)
        processes[0].kill()
        output, errors = processes[1].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1].returncode == 0, errors
    assert 0 < int(output) <= MANY_SHARDS
    counted = lengths_files(Path(recipe.store))
    alone = Store(str(tmp_path / "alone"))
    write_dataset(alone, recipe.shards.name, MANY_SHARDS)
    lengths = CaptionLengths(open_dataset(alone, recipe.shards.name), tokenizer, CAPTIONS, recipe.run_dir)
    assert np.array_equal(found_lengths(lengths, MANY_SHARDS), expected_lengths(tokenizer, MANY_SHARDS))
    assert lengths.num_counted == MANY_SHARDS
    assert counted == lengths_files(tmp_path / "alone")
