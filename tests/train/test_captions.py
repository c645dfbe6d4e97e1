"""Several captions per image: the choice is as declared, the same for everybody, and the plan knows its lengths."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_runs import small_recipe

from jobs.recipe import Recipe
from jobs.tokenizer import make_tokenizer
from model import Tokenizer
from pipeline.errors import UserError
from pipeline.shards import Sample, ShardWriter, index_table, parse_sample
from pipeline.store import Store
from tests.stores import noise
from train.captions import CaptionChoice, caption_of
from train.loader import Loader, StepBatch
from train.plan import plan_lines
from train.setup import RunSetup, set_up
from train.stream import Position, index_name, lengths_name

MIX = {"caption": 0.3, "recaption": 0.7}
WITH_MIX = "train.captions={caption: 0.3, recaption: 0.7}"
KEYS = [f"{number:020x}" for number in range(20_000)]
NUM_SHARDS, SHARD_SAMPLES = 2, 40


def stored(number: int) -> Sample:
    """Sample of a dataset in which every fifth one has no second caption."""
    meta = {} if number % 5 == 0 else {"captions": {"recaption": f"a long tale of marmalade, number {number}, " * 2}}
    return Sample(f"{number:020x}", noise(number), f"thing {number}", meta)


def write_dataset(store: Store, dataset: str) -> None:
    rows = []
    for shard in range(NUM_SHARDS):
        path = f"shards/{dataset}/{shard:06d}.tar"
        samples = [stored(shard * SHARD_SAMPLES + number) for number in range(SHARD_SAMPLES)]
        with store.writing(path) as stream:
            writer = ShardWriter(stream)
            offsets, sizes = zip(*(writer.add(sample) for sample in samples), strict=True)
            num_bytes, sha256 = writer.close()
        rows.append(
            {
                "path": path,
                "num_samples": len(samples),
                "num_bytes": num_bytes,
                "sha256": sha256,
                "keys": [sample.key for sample in samples],
                "offsets": offsets,
                "sizes": sizes,
                "widths": [32] * len(samples),
                "heights": [24] * len(samples),
            }
        )
    store.write_table(index_name(dataset), index_table(rows))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run that reads two captions, its tokenizer made by the command."""
    folder = tmp_path_factory.mktemp("captions")
    recipe = small_recipe(folder, folder, WITH_MIX, "tokenizer.vocab_size=400")
    write_dataset(Store(recipe.store), recipe.shards.name)
    assert make_tokenizer(recipe) == 0
    return recipe


@pytest.fixture
def setup(recipe: Recipe) -> RunSetup:
    return set_up(recipe.run_dir)


def texts_read(batch: StepBatch, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Key and caption of each sample in a batch."""
    texts = []
    for rows in batch.micro_batches:
        for ids_S, labels_S in zip(rows.sample_ids_BS, rows.labels_BS, strict=True):
            for sample in range(int(ids_S.max()) + 1):
                labels = labels_S[(ids_S == sample) & (labels_S >= 0)].tolist()
                texts.append(tokenizer.decode(labels[: -len(tokenizer.ending_ids)]))
    return zip(batch.keys, texts, strict=True)


def read(setup: RunSetup, folder: Path, start: Position, steps: int, rank: int = 0, world_size: int = 1) -> list[str]:
    """`epoch.step key caption` of every sample of some steps."""
    loader = Loader(setup, folder / "bad.jsonl", rank, world_size)
    return [
        f"{batch.at.epoch}.{batch.at.step} {key} {text}"
        for batch in islice(loader.steps(start), steps)
        for key, text in texts_read(batch, setup.tokenizer)
    ]


def two_epochs(setup: RunSetup) -> int:
    return setup.stream.num_steps(0) + setup.stream.num_steps(1)


@pytest.mark.parametrize("shares", [MIX, {"caption": 0.05, "a": 0.25, "b": 0.7}])
def test_captions_are_chosen_as_often_as_declared(shares: dict[str, float]) -> None:
    choice = CaptionChoice(shares, 7, KEYS)
    for epoch in (0, 1, 1000):
        for index, name in enumerate(choice.names):
            share = float(np.mean(choice.at(epoch) == index))
            assert share == pytest.approx(shares[name], abs=5 * np.sqrt(shares[name] * (1 - shares[name]) / len(KEYS)))


def test_epochs_and_seeds_choose_independently() -> None:
    chosen = [CaptionChoice(MIX, seed, KEYS).at(epoch) for seed in (0, 1) for epoch in (0, 1)]
    for number, one in enumerate(chosen):
        for other in chosen[:number]:
            assert float(np.mean((one == 1) & (other == 1))) == pytest.approx(0.49, abs=0.02)


@given(st.lists(st.sampled_from(KEYS[:200]), min_size=1, max_size=30), st.integers(0, 2**40), st.integers(0, 100))
def test_a_choice_depends_on_seed_epoch_and_key_alone(keys: list[str], seed: int, epoch: int) -> None:
    among_all = dict(zip(KEYS[:200], CaptionChoice(MIX, seed, KEYS[:200]).at(epoch).tolist(), strict=True))
    backwards = dict(reversed(MIX.items()))
    assert CaptionChoice(backwards, seed, keys).at(epoch).tolist() == [among_all[key] for key in keys]


def test_the_choice_is_the_same_in_the_next_version() -> None:
    choice = CaptionChoice(MIX, 42, KEYS[:24])
    assert "".join(map(str, choice.at(0))) == "110101100101111111111110"
    assert "".join(map(str, choice.at(1))) == "011110011101011111011111"


@pytest.mark.ray
def test_each_epoch_reads_the_chosen_captions_and_what_a_sample_lacks_is_replaced(
    setup: RunSetup, tmp_path: Path
) -> None:
    expected = set()
    for epoch in (0, 1):
        for number, index in enumerate(setup.captions.at(epoch)):
            sample = stored(number)
            text = caption_of(sample, setup.captions.names[index]) or sample.caption
            expected.add(f"{epoch} {sample.key} {text.strip()}")
    found = read(setup, tmp_path, Position(), two_epochs(setup))
    assert {f"{line[0]} {line.split(' ', 1)[1]}" for line in found} == expected
    assert len(found) == 2 * NUM_SHARDS * SHARD_SAMPLES


@pytest.mark.ray
def test_two_processes_and_a_resumed_one_read_what_one_reads(recipe: Recipe, setup: RunSetup, tmp_path: Path) -> None:
    steps = two_epochs(setup)
    straight = read(setup, tmp_path, Position(), steps)
    both = [line for rank in (0, 1) for line in read(setup, tmp_path, Position(), steps, rank, world_size=2)]
    assert sorted(both) == sorted(straight)
    at, before = Position(), setup.stream.num_steps(0) + 1
    for _ in range(before):
        at = setup.stream.after(at)
    assert at.epoch == 1
    again = read(set_up(recipe.run_dir), tmp_path, at, steps - before)
    assert again == straight[-len(again) :]


@pytest.mark.ray
def test_planned_lengths_are_those_of_the_rows_in_every_epoch(setup: RunSetup, tmp_path: Path) -> None:
    for batch in islice(Loader(setup, tmp_path / "bad.jsonl").steps(Position()), two_epochs(setup)):
        assert sum(int((rows.sample_ids_BS >= 0).sum()) for rows in batch.micro_batches) == batch.num_tokens
    assert setup.stream.tokens_at(0).sum() != setup.stream.tokens_at(1).sum()
    assert (setup.stream.tokens_at(1) <= setup.stream.tokens_N).all()
    assert "captions   caption 30%, recaption 70%, drawn anew" in "\n".join(plan_lines(setup, 1))


@pytest.mark.ray
def test_the_command_counts_every_declared_caption(recipe: Recipe, setup: RunSetup) -> None:
    store, dataset = Store(recipe.store), recipe.shards.name
    # The tokenizer is made of them as well: only the second captions have these letters, and none has those.
    assert len(setup.tokenizer.encode("marmalade")) < len(setup.tokenizer.encode("qxzjvkwpy"))
    for name in MIX:
        table = store.read_table(lengths_name(dataset, setup.tokenizer.fingerprint, name))
        texts = [caption_of(stored(number), name) for number in range(NUM_SHARDS * SHARD_SAMPLES)]
        counted = [length for shard in table["num_tokens"].to_pylist() for length in shard]
        assert counted == [None if text is None else len(setup.tokenizer.encode(text)) for text in texts]


@pytest.mark.ray
def test_an_unknown_caption_is_refused_with_those_there_are(recipe: Recipe, tmp_path: Path) -> None:
    train = recipe.train.model_copy(update={"captions": {"caption": 0.5, "recpation": 0.5}})
    other = recipe.model_copy(update={"train": train, "name": "other", "runs": str(tmp_path)})
    with pytest.raises(UserError, match=r"'recpation'(.|\n)*have caption, recaption(.|\n)*genlip curate"):
        make_tokenizer(other)
    with pytest.raises(UserError, match="genlip tokenizer RECIPE"):
        set_up(other.run_dir)


def test_one_caption_is_read_as_ever(make_run: Callable[..., Path], tmp_path: Path) -> None:
    setup = set_up(make_run())
    assert lengths_name("demo", "f" * 64) == "shards/demo/lengths-ffffffffffffffff.parquet"
    assert setup.costs_at(0) is setup.costs_at(5)
    assert setup.stream.tokens_at(3) is setup.stream.tokens_N
    first = next(Loader(setup, tmp_path / "bad.jsonl").steps(Position()))
    numbers = {key: number for number, key in enumerate(setup.samples.keys)}
    for key, text in texts_read(first, setup.tokenizer):
        assert text == parse_sample(setup.samples.read(numbers[key])).caption.strip()


def test_probabilities_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add up to 1"):
        small_recipe(tmp_path, tmp_path, "train.captions={caption: 0.3, recaption: 0.6}")
    with pytest.raises(UserError, match=r"train\.captions"):
        small_recipe(tmp_path, tmp_path, "train.captions={../x: 1.0}")


def test_a_caption_of_its_own_stands_alone(tmp_path: Path) -> None:
    choice = CaptionChoice({"recaption": 1.0}, 0, KEYS[:10])
    assert choice.is_fixed
    lacking, having = stored(0), stored(1)
    assert choice.apply(having, 1, epoch=3).caption == having.meta["captions"]["recaption"]
    assert choice.apply(lacking, 0, epoch=3) == lacking
    empty = replace(having, meta=json.loads('{"captions": {"recaption": ""}}'))
    assert choice.apply(empty, 1, epoch=3) == empty
