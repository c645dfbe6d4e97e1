"""`genlip tokenizer`: make or take the run's tokenizer, and count every caption that training reads with it, on Ray."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from jobs.console import say
from jobs.ray_pool import fan_out, ray_session
from jobs.recipe import Recipe
from jobs.runs import open_run
from model import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from pipeline.errors import UserError
from pipeline.shards import Sample
from pipeline.store import Store
from train.captions import CAPTION, caption_of, num_tokens
from train.dataset import Dataset, open_dataset, shard_samples
from train.lengths import lengths_file, lengths_folder, read_lengths, write_lengths
from train.recipe import TOKENIZER_FOLDER, TokenizerSpec, TrainJob
from train.sources import open_datasets


@dataclass(frozen=True)
class Counted:
    """How long one of the captions is in some samples."""

    num_captions: int = 0
    num_tokens: int = 0
    longest: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        longest = max(self.longest, other.longest)
        return Counted(self.num_captions + other.num_captions, self.num_tokens + other.num_tokens, longest)


def make_tokenizer(recipe: Recipe) -> int:
    """Give the run its tokenizer and its datasets their columns of caption lengths. Does what is missing."""
    datasets = open_datasets(TrainJob.model_validate(recipe.model_dump(mode="json")))
    run_dir = open_run(recipe)
    folder = run_dir / TOKENIZER_FOLDER
    if not folder.exists():
        num_samples = sum(dataset.num_samples for dataset in datasets.values())
        source = recipe.tokenizer.path or f"{num_samples:,} captions"
        say(f"tokenizer: {recipe.tokenizer.kind}, from {source}")
        _save(_build(recipe.tokenizer, datasets.values(), recipe.train.captions), folder)
    tokenizer = load_tokenizer(folder)
    say(f"tokenizer {folder}: vocabulary {tokenizer.vocab_size:,}, fingerprint {tokenizer.fingerprint[:16]}")
    captions = sorted({CAPTION, *recipe.train.captions})  # the first also stands in where another is missing
    for name, dataset in datasets.items():
        counted = _count_missing(recipe.run.ray_address, dataset, folder, tokenizer.fingerprint, captions)
        _require_captions(dataset, tokenizer.fingerprint, counted)
        for line in _lines(name, dataset, counted):
            say(line)
    say(f"next: genlip plan RECIPE, then genlip train RECIPE (run folder {run_dir})")
    return 0


def _build(spec: TokenizerSpec, datasets: Iterable[Dataset], captions: Iterable[str]) -> Tokenizer:
    if spec.kind == "huggingface":
        return HFTokenizer(spec.path, spec.prompt)
    if spec.path:
        return load_tokenizer(spec.path)
    return SentencePieceTokenizer.train(_texts(datasets, captions), spec.vocab_size, spec.prompt)


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder under another name first, so that it is there complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tokenizer.save(temporary)
    temporary.replace(folder)


def _texts(datasets: Iterable[Dataset], captions: Iterable[str]) -> Iterator[str]:
    for dataset in datasets:
        for number in range(dataset.num_shards):
            for sample in shard_samples(dataset, number):
                yield from (text for name in captions if (text := caption_of(sample, name)) is not None)


def _count_missing(
    ray_address: str, dataset: Dataset, folder: Path, fingerprint: str, captions: Sequence[str]
) -> dict[str, Counted]:
    """Count what is not counted yet. Returns the sums by caption; nothing where all was there."""
    folders = {caption: lengths_folder(dataset.name, fingerprint, caption) for caption in captions}
    there = (len(dataset.store.names(one, ".parquet")) for one in folders.values())
    if all(number == dataset.num_shards for number in there):
        return {}
    sums = dict.fromkeys(captions, Counted())
    with ray_session(ray_address):
        root, name = dataset.store.root, dataset.name
        count = partial(_count_in_worker, root=root, dataset=name, folder=folder.resolve(), lengths_folders=folders)
        for done in fan_out(count, range(dataset.num_shards)):
            if done.error or done.result is None:
                raise done.error or RuntimeError(f"shard {done.item} was not counted")
            sums = {caption: sums[caption] + done.result[caption] for caption in captions}
    return sums


def _count_in_worker(
    number: int, root: str, dataset: str, folder: Path, lengths_folders: dict[str, str]
) -> dict[str, Counted]:
    return count_shard(number, _cached_dataset(root, dataset), folder, lengths_folders)


@lru_cache(maxsize=2)
def _cached_dataset(root: str, name: str) -> Dataset:
    return open_dataset(Store(root), name)


def count_shard(number: int, dataset: Dataset, folder: Path, lengths_folders: dict[str, str]) -> dict[str, Counted]:
    """Count the captions of a shard, as far as that is not done, and commit their lengths.

    Args:
        number: Of the shard.
        dataset: Of which.
        folder: The tokenizer's.
        lengths_folders: By caption where its lengths go.

    Returns:
        The sums by caption.
    """
    store, sha256 = dataset.store, dataset.shard(number).sha256
    sums = {}
    for caption, lengths_to in lengths_folders.items():
        name = lengths_file(lengths_to, number)
        if not store.exists(name):
            write_lengths(store, name, count_tokens(shard_samples(dataset, number), folder, caption), sha256)
        lengths = [length for length in read_lengths(store, name, sha256).to_pylist() if length is not None]
        sums[caption] = Counted(len(lengths), sum(lengths), max(lengths, default=0))
    return sums


def count_tokens(samples: Iterable[Sample], folder: Path, caption: str = CAPTION) -> list[int | None]:
    """Tokens of the caption of that name of each sample; None for those that lack it."""
    tokenizer = _cached_tokenizer(folder)
    texts = (caption_of(sample, caption) for sample in samples)
    return [None if text is None else num_tokens(tokenizer, text) for text in texts]


@lru_cache(maxsize=2)
def _cached_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def _require_captions(dataset: Dataset, fingerprint: str, counted: dict[str, Counted]) -> None:
    """Refuse a caption that no sample has, and forget that it was counted.

    Raises:
        UserError: With the captions there are.
    """
    for caption, found in counted.items():
        if found.num_captions:
            continue
        dataset.store.remove(lengths_folder(dataset.name, fingerprint, caption))
        known = {name for sample in shard_samples(dataset, 0) for name in sample.meta.get("captions", {})}
        raise UserError(
            f"no sample has a caption called {caption!r}",
            where="train.captions",
            why=f"the samples of {dataset.paths[0].as_py()} have {', '.join(sorted({CAPTION, *known}))}",
            next_step="name one of these, or shard a selection with that column: genlip curate RECIPE",
        )


def _lines(name: str, dataset: Dataset, counted: dict[str, Counted]) -> Iterator[str]:
    if not counted:
        yield f"captions of {name}: counted already in all {dataset.num_shards:,} shards"
    for caption, one in counted.items():
        title = f"captions of {name}" if caption == CAPTION else f"captions {caption!r} of {name}"
        mean = one.num_tokens / one.num_captions
        yield f"{title}: {one.num_captions:,}, {mean:.1f} tokens each (longest {one.longest})"
