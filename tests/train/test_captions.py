"""Several captions per image: the choice is as declared, the same for everybody, and the plan knows its lengths."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_runs import small_recipe
from two_captions import NUM_SHARDS, SHARD_SAMPLES, stored, write_dataset

from jobs.recipe import Recipe
from jobs.tokenizer import make_tokenizer
from model import Tokenizer
from pipeline.errors import UserError
from pipeline.store import Store
from train.data.captions import CaptionChoice, caption_of, key_digests
from train.data.dataset import first_samples
from train.data.lengths import lengths_file, lengths_folder, write_lengths
from train.data.loader import Loader, StepBatch
from train.data.stream import Position
from train.plan import plan_lines
from train.setup import RunSetup, set_up

MIX = {"caption": 0.3, "recaption": 0.7}
WITH_MIX = "train.captions={caption: 0.3, recaption: 0.7}"
KEYS = [f"{number:020x}" for number in range(20_000)]
DIGESTS = key_digests(KEYS)
State = dict[str, int | str] | None
Lines = tuple[list[str], dict[str, int | str]]


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


def read(setup: RunSetup, folder: Path, steps: int, state: State = None, rank: int = 0, world_size: int = 1) -> Lines:
    """`step key caption` of every sample of some steps, and the state after them."""
    loader = Loader(setup, folder, rank, world_size)
    if state:
        loader.load_state_dict(state)
    with closing(iter(loader)) as batches:
        found = [
            f"{batch.step} {key} {text}"
            for batch in islice(batches, steps)
            for key, text in texts_read(batch, setup.tokenizer)
        ]
    return found, loader.state_dict()


def two_passes(setup: RunSetup) -> int:
    """Steps that have two passes in them, and the beginning of the third."""
    num_rows = sum(len(setup.stream.segment(number).rows) for number in (0, 1))
    return -(-num_rows // setup.stream.lanes)


@pytest.mark.parametrize("shares", [MIX, {"caption": 0.05, "a": 0.25, "b": 0.7}])
def test_captions_are_chosen_as_often_as_declared(shares: dict[str, float]) -> None:
    choice = CaptionChoice(shares, 7)
    for number in (0, 1, 1000):
        for index, name in enumerate(choice.names):
            share = float(np.mean(choice.at(number, DIGESTS) == index))
            assert share == pytest.approx(shares[name], abs=5 * np.sqrt(shares[name] * (1 - shares[name]) / len(KEYS)))


def test_passes_and_seeds_choose_independently() -> None:
    chosen = [CaptionChoice(MIX, seed).at(number, DIGESTS) for seed in (0, 1) for number in (0, 1)]
    for number, one in enumerate(chosen):
        for other in chosen[:number]:
            assert float(np.mean((one == 1) & (other == 1))) == pytest.approx(0.49, abs=0.02)


@given(st.lists(st.sampled_from(KEYS[:200]), min_size=1, max_size=30), st.integers(0, 2**40), st.integers(0, 100))
def test_a_choice_depends_on_seed_pass_and_key_alone(keys: list[str], seed: int, number: int) -> None:
    among_all = dict(zip(KEYS[:200], CaptionChoice(MIX, seed).at(number, DIGESTS[:200]).tolist(), strict=True))
    backwards = CaptionChoice(dict(reversed(MIX.items())), seed)
    assert backwards.at(number, key_digests(keys)).tolist() == [among_all[key] for key in keys]


def test_the_choice_is_the_same_in_the_next_version() -> None:
    choice = CaptionChoice(MIX, 42)
    assert "".join(map(str, choice.at(0, DIGESTS[:24]))) == "110101100101111111111110"
    assert "".join(map(str, choice.at(1, DIGESTS[:24]))) == "011110011101011111011111"


@pytest.mark.ray
def test_each_pass_reads_the_chosen_captions_and_what_a_sample_lacks_is_replaced(
    setup: RunSetup, tmp_path: Path
) -> None:
    expected = set()
    for number in (0, 1):
        for sample in map(stored, range(NUM_SHARDS * SHARD_SAMPLES)):
            name = setup.captions.names[setup.captions.at(number, key_digests([sample.key]))[0]]
            expected.add(f"{sample.key} {(caption_of(sample, name) or sample.caption).strip()}")
    found, _ = read(setup, tmp_path, two_passes(setup))
    in_two_passes = [line.split(" ", 1)[1] for line in found][: 2 * NUM_SHARDS * SHARD_SAMPLES]
    assert set(in_two_passes) == expected
    assert set(Counter(line.split(" ")[0] for line in in_two_passes).values()) == {2}


@pytest.mark.ray
def test_two_processes_and_a_resumed_one_read_what_one_reads(recipe: Recipe, setup: RunSetup, tmp_path: Path) -> None:
    steps = two_passes(setup)
    straight, end = read(setup, tmp_path, steps)
    both = [line for rank in (0, 1) for line in read(setup, tmp_path, steps, rank=rank, world_size=2)[0]]
    assert sorted(both) == sorted(straight)
    first, state = read(setup, tmp_path, steps // 2 + 1)
    assert setup.stream.passes(Position(int(state["segment"]), int(state["row"])))[0] > 1
    again, resumed_end = read(set_up(recipe.run_dir), tmp_path, steps - steps // 2 - 1, state)
    assert [*first, *again] == straight
    assert resumed_end == end


@pytest.mark.ray
def test_planned_lengths_are_those_of_the_rows_in_every_pass(setup: RunSetup, tmp_path: Path) -> None:
    with closing(iter(Loader(setup, tmp_path))) as batches:
        for batch in islice(batches, two_passes(setup)):
            assert sum(int((rows.sample_ids_BS >= 0).sum()) for rows in batch.micro_batches) == batch.num_tokens
    first, second = (setup.stream.segment(number).costs.tokens_N for number in (0, 1))
    assert len(first) == len(second) == NUM_SHARDS * SHARD_SAMPLES
    assert first.sum() != second.sum()
    assert "captions   caption 30%, recaption 70%, drawn anew" in "\n".join(plan_lines(setup, 1))


@pytest.mark.ray
def test_the_command_counts_every_declared_caption(recipe: Recipe, setup: RunSetup) -> None:
    store, dataset = Store(recipe.store), recipe.shards.name
    # The tokenizer is made of them as well: only the second captions have these letters, and none has those.
    assert len(setup.tokenizer.encode("marmalade")) < len(setup.tokenizer.encode("qxzjvkwpy"))
    for name in MIX:
        folder = lengths_folder(dataset, setup.tokenizer.fingerprint, name)
        texts = [caption_of(stored(number), name) for number in range(NUM_SHARDS * SHARD_SAMPLES)]
        files = [store.read_table(lengths_file(folder, shard)) for shard in range(NUM_SHARDS)]
        counted = [length for table in files for length in table["num_tokens"].to_pylist()]
        assert counted == [None if text is None else len(setup.tokenizer.encode(text)) for text in texts]


@pytest.mark.ray
def test_the_command_counts_only_the_shards_that_lack_it(
    recipe: Recipe, setup: RunSetup, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(recipe.store)
    folder = lengths_folder(recipe.shards.name, setup.tokenizer.fingerprint, "recaption")
    kept, missing = (Path(store.path(lengths_file(folder, shard))) for shard in (0, 1))
    before, content = kept.stat().st_mtime_ns, missing.read_bytes()
    missing.unlink()
    assert make_tokenizer(recipe) == 0
    assert (kept.stat().st_mtime_ns, missing.read_bytes()) == (before, content)
    assert "captions 'recaption' of demo: 64," in capsys.readouterr().out
    assert make_tokenizer(recipe) == 0
    assert "counted already in all 2 shards" in capsys.readouterr().out


@pytest.mark.ray
def test_lengths_of_other_shards_are_refused(recipe: Recipe, setup: RunSetup) -> None:
    store = Store(recipe.store)
    name = lengths_file(lengths_folder(recipe.shards.name, setup.tokenizer.fingerprint), 0)
    content = store.read(name)
    write_lengths(store, name, pa.array([1] * SHARD_SAMPLES, pa.int32()), shard_sha256="of another")
    with pytest.raises(UserError, match="belong to another shard"):
        set_up(recipe.run_dir)
    store.write(name, content)


@pytest.mark.ray
def test_an_unknown_caption_is_refused_with_those_there_are(recipe: Recipe, tmp_path: Path) -> None:
    train = recipe.train.model_copy(update={"captions": {"caption": 0.5, "recpation": 0.5}})
    other = recipe.model_copy(update={"train": train, "name": "other", "runs": str(tmp_path)})
    with pytest.raises(UserError, match=r"'recpation'(.|\n)*have caption, recaption(.|\n)*genlip curate"):
        make_tokenizer(other)
    with pytest.raises(UserError, match=r"'recpation'(.|\n)*correct the name"):
        set_up(other.run_dir)


def test_one_caption_is_read_as_it_stands(make_run: Callable[..., Path], tmp_path: Path) -> None:
    setup = set_up(make_run())
    with closing(iter(Loader(setup, tmp_path))) as batches:
        first = next(batches)
        found = list(texts_read(first, setup.tokenizer))
    dataset = setup.sources[0].dataset
    captions = {sample.key: sample.caption.strip() for sample in first_samples(dataset)}
    assert len(found) == first.num_samples
    assert all(captions[key] == text for key, text in found)


def test_probabilities_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add up to 1"):
        small_recipe(tmp_path, tmp_path, "train.captions={caption: 0.3, recaption: 0.6}")
    with pytest.raises(UserError, match=r"train\.captions"):
        small_recipe(tmp_path, tmp_path, "train.captions={../x: 1.0}")


def test_a_caption_of_its_own_stands_alone() -> None:
    choice = CaptionChoice({"recaption": 1.0}, 0)
    assert choice.is_fixed
    lacking, having = stored(0), stored(1)
    assert choice.apply(having, 3).caption == having.meta["captions"]["recaption"]
    assert choice.apply(lacking, 3) == lacking
    empty = replace(having, meta=json.loads('{"captions": {"recaption": ""}}'))
    assert choice.apply(empty, 3) == empty
