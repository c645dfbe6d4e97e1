"""The loader against a damaged store: what is bad is left out and written down, and nothing else moves."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.store import Store
from train.loader import Loader, StepBatch
from train.setup import RunSetup, set_up
from train.stream import Position


def loader_of(setup: RunSetup, folder: Path, max_bad_samples: int = 5, rank: int = 0, world_size: int = 1) -> Loader:
    train = setup.job.train.model_copy(update={"max_bad_samples": max_bad_samples, "threads": 2})
    setup = replace(setup, job=setup.job.model_copy(update={"train": train}))
    return Loader(setup, folder / "bad.jsonl", rank, world_size)


def one_epoch(loader: Loader) -> list[StepBatch]:
    return list(islice(loader.steps(Position()), loader.stream.num_steps(0)))


@pytest.fixture
def damaged(make_run: Callable[..., Path], tmp_path: Path) -> tuple[RunSetup, int]:
    """A run on a copy of the store in which the image of one sample is noise, and that sample's number."""
    setup = set_up(make_run())
    copy = tmp_path / "damaged"
    shutil.copytree(setup.samples.store.path(""), copy)
    samples = replace(setup.samples, store=Store(str(copy)))
    victim = 7
    path = copy / samples.shard_paths[samples.shard_N[victim]]
    tar = bytearray(path.read_bytes())
    image = int(samples.offset_N[victim]) + 512  # the first member follows its header
    tar[image : image + 200] = b"\0" * 200
    path.write_bytes(tar)
    return replace(setup, samples=samples), victim


def test_every_rank_reads_its_lanes_and_together_they_read_everything(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    setup = set_up(make_run())
    keys = [
        key
        for rank in (0, 1)
        for batch in one_epoch(loader_of(setup, tmp_path, rank=rank, world_size=2))
        for key in batch.keys
    ]
    assert sorted(keys) == sorted(setup.samples.keys)
    batches = one_epoch(loader_of(setup, tmp_path))
    assert sum(batch.num_samples for batch in batches) == len(setup.samples)
    assert sum(rows.num_samples for batch in batches for rows in batch.micro_batches) == len(setup.samples)


def test_the_planned_lengths_are_the_lengths_of_the_rows(make_run: Callable[..., Path], tmp_path: Path) -> None:
    setup = set_up(make_run())
    for batch in one_epoch(loader_of(setup, tmp_path)):
        filled = sum(int((rows.sample_ids_BS >= 0).sum()) for rows in batch.micro_batches)
        assert filled == batch.num_tokens


def test_a_bad_sample_leaves_its_place_empty(damaged: tuple[RunSetup, int], tmp_path: Path) -> None:
    setup, victim = damaged
    loader = loader_of(setup, tmp_path)
    batches = one_epoch(loader)
    found = sum(rows.num_samples for batch in batches for rows in batch.micro_batches)
    assert found == len(setup.samples) - 1
    assert loader.num_bad_samples == 1
    assert setup.samples.keys[victim] in (tmp_path / "bad.jsonl").read_text()


def test_too_many_bad_samples_stop_the_run(damaged: tuple[RunSetup, int], tmp_path: Path) -> None:
    setup, victim = damaged
    with pytest.raises(UserError, match=rf"could not be read(.|\n)*{setup.samples.keys[victim]}"):
        one_epoch(loader_of(setup, tmp_path, max_bad_samples=0))


def test_lengths_of_another_tokenizer_are_noticed(make_run: Callable[..., Path], tmp_path: Path) -> None:
    setup = set_up(make_run())
    wrong = np.where(np.arange(len(setup.samples)) == 3, setup.stream.tokens_N + 1, setup.stream.tokens_N)
    setup.stream.tokens_N = wrong.astype(np.int32)
    with pytest.raises(UserError, match="genlip tokenizer RECIPE"):
        one_epoch(loader_of(setup, tmp_path))
