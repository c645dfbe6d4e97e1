"""The loader on real stores, damaged ones too: what is bad is left out and written down, and nothing else moves."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
import webdataset as wds

import train
from jobs.runs import read_run
from model import GenLIP
from pipeline.errors import UserError
from pipeline.foreign_dataset import begin_index, finish_index, write_foreign_index
from pipeline.foreign_files import list_tars
from pipeline.store import Store
from train.audit import audit_run
from train.data.consumed import bad_samples, consumed_file
from train.data.dataset import first_samples, open_dataset
from train.data.loader import Loader, StepBatch
from train.data.stream import Position
from train.jsonl import read_lines
from train.recipe import TrainJob
from train.setup import RunSetup, set_up


@pytest.fixture
def copied(make_run: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A run on a copy of the store that a test may damage, and that copy."""
    original = make_run("name=original")
    copy = tmp_path / "copy"
    shutil.copytree(read_run(original).store, copy)
    return make_run("name=damaged", f"store={copy}", "train.threads=2", "train.max_bad_samples=100"), copy


def batches(setup: RunSetup, run_dir: Path, num_steps: int, rank: int = 0, world_size: int = 1) -> list[StepBatch]:
    with closing(iter(Loader(setup, run_dir, rank, world_size))) as steps:
        return [taken(batch) for batch in islice(steps, num_steps)]


def taken(batch: StepBatch) -> StepBatch:
    """A batch whose rows are kept."""
    return replace(batch, micro_batches=list(batch.micro_batches))


def steps_of_a_pass(setup: RunSetup) -> int:
    """Whole steps in the first pass."""
    return len(setup.stream.segment(0).rows) // setup.stream.lanes


def keys_of(setup: RunSetup) -> list[str]:
    dataset = setup.sources[0].dataset
    return [key for number in range(dataset.num_shards) for key in dataset.shard(number).keys.to_pylist()]


def num_read(found: list[StepBatch]) -> int:
    return sum(rows.num_samples for batch in found for rows in batch.micro_batches)


def test_every_rank_reads_its_lanes_and_together_they_read_everything(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    setup = set_up(run_dir)
    num_steps = steps_of_a_pass(setup) + 1
    parts = [batches(setup, run_dir, num_steps, rank, world_size=2) for rank in (0, 1)]
    keys = [key for part in parts for batch in part for key in batch.keys]
    assert set(keys) == set(keys_of(setup))
    assert len(keys) == sum(batch.num_samples for batch in parts[0]) == num_read(parts[0]) + num_read(parts[1])


def test_the_planned_lengths_are_the_lengths_of_the_rows(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    setup = set_up(run_dir)
    for batch in batches(setup, run_dir, steps_of_a_pass(setup)):
        filled = sum(int((rows.sample_ids_BS >= 0).sum()) for rows in batch.micro_batches)
        assert filled == batch.num_tokens


def test_a_loader_goes_on_from_its_state_on_another_number_of_ranks(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    straight = [batch.keys for batch in batches(set_up(run_dir), run_dir, 6)]
    with closing(iter(loader := Loader(set_up(run_dir), run_dir))) as steps:
        first = [batch.keys for batch in islice(steps, 2)]
        state = json.loads(json.dumps(loader.state_dict()))
    assert state["step"] == 2
    parts = []
    for rank in (0, 1):
        resumed = Loader(set_up(run_dir), run_dir, rank, world_size=2)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        with closing(iter(resumed)) as steps:
            parts.append([batch.keys for batch in islice(steps, 4)])
    assert [*first, *([*left, *right] for left, right in zip(*parts, strict=True))] == straight


def test_the_example_of_the_readme_trains_and_goes_on(make_run: Callable[..., Path]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (Path(train.__file__).parent / "README.md").read_text(), re.DOTALL)
    run_dir = make_run()
    model = GenLIP(set_up(run_dir).config)
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    names = {"run_dir": run_dir, "rank": 0, "world_size": 1, "model": model, "optimizer": optimizer}
    state = None
    for num_steps in (3, 6):
        names |= {"state": state, "num_steps": num_steps}
        exec(example, names)
        state = names["state"]
        del names["loader"], names["batch"]
    assert [entry["step"] for entry in read_lines(consumed_file(run_dir, 0))] == [1, 2, 3, 4, 5, 6]
    assert audit_run(run_dir).problems == []


@pytest.mark.parametrize(
    ("key", "value"), [("version", 2), ("fingerprint", "0" * 16), ("seed", 7), ("lanes", 4), ("lanes", None)]
)
def test_the_state_of_another_stream_is_refused_by_its_key(
    make_run: Callable[..., Path], key: str, value: int | str
) -> None:
    run_dir = make_run()
    loader = Loader(set_up(run_dir), run_dir)
    with pytest.raises(UserError, match=f"its {key} is {value}"):
        loader.load_state_dict(loader.state_dict() | {key: value})


def test_the_fingerprint_is_of_all_that_decides_the_stream(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    job = TrainJob.read(run_dir)
    changed = [
        job.model_copy(update={"train": job.train.model_copy(update={"row_tokens": 161})}),
        job.model_copy(update={"train": job.train.model_copy(update={"block_shards": 2})}),
        job.model_copy(update={"train": job.train.model_copy(update={"max_caption_tokens": 9})}),
        job.model_copy(update={"model": job.model.model_copy(update={"image_px": 16})}),
    ]
    same = job.model_copy(update={"train": job.train.model_copy(update={"threads": 3, "length": 77})})
    assert len({set_up(run_dir, one).fingerprint for one in [job, *changed]}) == len(changed) + 1
    assert set_up(run_dir, same).fingerprint == set_up(run_dir).fingerprint


def test_a_state_that_comes_too_late_is_refused(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    loader = Loader(set_up(run_dir), run_dir)
    state = loader.state_dict()
    with closing(iter(loader)) as steps:
        next(steps)
        with pytest.raises(RuntimeError, match="before the first batch"):
            loader.load_state_dict(state)
        with pytest.raises(RuntimeError, match="another iteration"):
            next(iter(loader))


def sample_at(setup: RunSetup, row: int) -> tuple[str, str, int, int]:
    """Shard, key, offset and size of a sample of the first shard."""
    shard = setup.sources[0].dataset.shard(0)
    return shard.path, shard.keys[row].as_py(), int(shard.offset_n[row]), int(shard.size_n[row])


def overwrite(path: Path, offset: int, body: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(body)


def damage_image(store: Path, setup: RunSetup) -> set[str]:
    path, key, offset, _ = sample_at(setup, 7)
    overwrite(store / path, offset + 512, b"\0" * 200)  # the first member follows its header
    return {key}


def damage_header(store: Path, setup: RunSetup) -> set[str]:
    path, key, offset, _ = sample_at(setup, 7)
    overwrite(store / path, offset, b"\xff" * 512)
    return {key}


def exchange(store: Path, setup: RunSetup) -> set[str]:
    """The tar is another one than the index is of: the places of two samples hold one sample."""
    rows = combinations(range(len(setup.sources[0].dataset.shard(0).keys)), 2)
    pairs = ((sample_at(setup, one), sample_at(setup, other)) for one, other in rows)
    (path, _, from_offset, size), (_, key, offset, _) = next(pair for pair in pairs if pair[0][3] == pair[1][3])
    overwrite(store / path, offset, (store / path).read_bytes()[from_offset : from_offset + size])
    return {key}


def cut_short(store: Path, setup: RunSetup) -> set[str]:
    path, _, offset, _ = sample_at(setup, 50)
    with (store / path).open("r+b") as stream:
        stream.truncate(offset + 100)
    return set(setup.sources[0].dataset.shard(0).keys.to_pylist()[50:])


def remove(store: Path, setup: RunSetup) -> set[str]:
    (store / sample_at(setup, 0)[0]).unlink()
    return set(setup.sources[0].dataset.shard(0).keys.to_pylist())


@pytest.mark.parametrize("damage", [damage_image, damage_header, exchange, cut_short, remove])
def test_what_cannot_be_read_leaves_its_place_empty_and_is_written_down(
    copied: tuple[Path, Path], damage: Callable[[Path, RunSetup], set[str]]
) -> None:
    run_dir, store = copied
    setup = set_up(run_dir)
    num_steps = steps_of_a_pass(setup)
    whole = batches(setup, run_dir, num_steps)
    victims = damage(store, setup)
    found = batches(setup, run_dir, num_steps)
    assert [batch.keys for batch in found] == [batch.keys for batch in whole]
    planned = victims & {key for batch in whole for key in batch.keys}
    assert num_read(found) == num_read(whole) - len(planned)
    written = bad_samples(run_dir)
    assert {bad.key for bad in written} >= planned
    assert {bad.key for bad in written} <= victims
    assert {bad.shard for bad in written} == {sample_at(setup, 0)[0]}
    assert all(bad.reason and bad.store == str(store) for bad in written)
    assert audit_run(run_dir).problems == []


def test_too_many_bad_samples_stop_the_run(copied: tuple[Path, Path]) -> None:
    run_dir, store = copied
    job = TrainJob.read(run_dir)
    setup = set_up(run_dir, job.model_copy(update={"train": job.train.model_copy(update={"max_bad_samples": 3})}))
    remove(store, setup)
    with pytest.raises(UserError, match=r"[4-9] samples could not be read(.|\n)*bad-samples-0.jsonl"):
        batches(setup, run_dir, steps_of_a_pass(setup))


def test_a_store_that_changes_under_a_run_is_noticed(copied: tuple[Path, Path]) -> None:
    """Same key, other caption: what was planned does not hold."""
    run_dir, store = copied
    setup = set_up(run_dir)
    path, key, offset, size = sample_at(setup, 7)
    body = (store / path).read_bytes()[offset : offset + size]
    caption = body.index(f"{key}.txt".encode()) + 512
    overwrite(store / path, offset + caption, b"xqzjk"[: body.index(b"\0", caption) - caption])
    with pytest.raises(UserError, match=rf"key {key}(.|\n)*genlip tokenizer RECIPE"):
        batches(setup, run_dir, steps_of_a_pass(setup) + 1)


def test_an_index_that_is_of_other_shards_is_refused(copied: tuple[Path, Path]) -> None:
    run_dir, store = copied
    folder = store / "shards" / "demo"
    shutil.copy(folder / "shard-000001.parquet", folder / "shard-000000.parquet")
    with pytest.raises(UserError, match=r"a shard's index is of shards/demo/shard-000001.tar"):
        set_up(run_dir)
    (folder / "shard-000000.parquet").unlink()
    with pytest.raises(UserError, match=r"shard's index is missing(.|\n)*genlip curate"):
        set_up(run_dir)


@pytest.fixture
def mixed(make_run: Callable[..., Path]) -> tuple[Path, RunSetup]:
    """A run on the training shards and, as a second source, the held-out ones."""
    run_dir = make_run("train.sources={web: {dataset: demo, weight: 3}, extra: {dataset: demo-heldout, weight: 1}}")
    return run_dir, set_up(run_dir)


def test_sources_are_mixed_by_weight_and_counted(mixed: tuple[Path, RunSetup]) -> None:
    run_dir, setup = mixed
    with closing(iter(loader := Loader(setup, run_dir))) as steps:
        found = list(islice(steps, 10))
        passes, read = loader.passes(), loader.bytes_read()
    num_web, num_extra = (source.dataset.num_samples for source in setup.sources)
    given = {"web": passes["web"] * num_web, "extra": passes["extra"] * num_extra}
    assert sum(given.values()) == pytest.approx(sum(batch.num_samples for batch in found))
    assert given["extra"] / sum(given.values()) == pytest.approx(0.25, abs=0.1)
    assert all(read[name]["bytes_delivered"] > 0 for name in given)
    assert setup.stream.mixture.taken(4000) == [3000, 1000]


def test_a_schedule_changes_the_weights(mixed: tuple[Path, RunSetup]) -> None:
    run_dir, setup = mixed
    content = setup.job.model_dump(mode="json")
    content["train"]["schedule"] = [{"after": "1k samples", "weights": {"extra": 1}}]
    changed = set_up(run_dir, TrainJob.model_validate(content))
    size = changed.stream.mixture.segment_samples
    begins = -(-1000 // size) * size
    assert changed.stream.mixture.taken(begins + size)[0] == setup.stream.mixture.taken(begins)[0]
    assert changed.fingerprint != setup.fingerprint
    first = changed.stream.step(Position())
    assert [list(row.places) for row in first.rows] == [list(row.places) for row in setup.stream.step(Position()).rows]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": [{"after": 9, "weights": {"wbe": 1}}]}, "names no source of train.sources: wbe"),
        ({"schedule": [{"after": 9, "weights": {"web": 0}}]}, "weight above 0"),
        ({"schedule": [{"after": n, "weights": {"web": 1}} for n in (9, 8)]}, "in order"),
    ],
)
def test_weights_that_make_no_sense_are_refused(
    mixed: tuple[Path, RunSetup], change: dict[str, object], words: str
) -> None:
    content = mixed[1].job.model_dump(mode="json")
    with pytest.raises(ValueError, match=words):
        TrainJob.model_validate(content | {"train": content["train"] | change})


def test_tars_of_others_are_read_where_they_lie(
    make_run: Callable[..., Path], small_store: Path, tmp_path: Path
) -> None:
    """With captions in a field of their JSON, beside the run's own shards."""
    store = Store(str(shutil.copytree(small_store / "store", tmp_path / "store")))
    own = list(first_samples(open_dataset(store, "demo"), 30))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with wds.TarWriter(str(foreign / "00000.tar")) as tar:
        for sample in own:
            tar.write({"__key__": sample.key, "jpg": sample.image, "json": {"alt": sample.caption}})
    tars = list_tars(str(foreign), store)
    for job in begin_index(store, "others", str(foreign), "json:alt", tars):
        write_foreign_index(job, store)
    finish_index(store, "others")
    sources = "{own: {dataset: demo, weight: 1}, others: {dataset: others, weight: 1}}"
    run_dir = make_run(f"store={store.root}", f"train.sources={sources}")
    setup = set_up(run_dir)
    with closing(iter(loader := Loader(setup, run_dir))) as steps:
        found = [taken(batch) for batch in islice(steps, 10)]
        assert loader.num_bad_samples == 0
        assert loader.bytes_read()["others"]["bytes_delivered"] > 0
    assert num_read(found) == sum(batch.num_samples for batch in found)
    assert audit_run(run_dir).problems == []
