"""`genlip tokenizer`: make or take the run's tokenizer, and count every caption that training reads with it, on Ray."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.console import say
from jobs.ray_pool import Pool
from jobs.recipe import Recipe
from jobs.runs import open_run
from model import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from pipeline.errors import UserError
from pipeline.store import Store
from train.data.captions import CAPTION, caption_of
from train.data.dataset import Dataset, first_samples, open_dataset, read_samples
from train.data.lengths import LengthsFiles, count_tokens
from train.data.sources import open_datasets
from train.recipe import TOKENIZER_FOLDER, TokenizerSpec, TrainJob


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
    with Pool(recipe.run.ray_address) as pool:
        for name, dataset in datasets.items():
            files = LengthsFiles(dataset, tokenizer.fingerprint, run_dir)
            counted = _count_missing(pool, dataset, files, run_dir, captions)
            _require_captions(dataset, files, counted)
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
        for sample in first_samples(dataset):
            yield from (text for name in captions if (text := caption_of(sample, name)) is not None)


def _count_missing(
    pool: Pool, dataset: Dataset, files: LengthsFiles, run_dir: Path, captions: Sequence[str]
) -> dict[str, Counted]:
    """Count what is not counted yet. Returns the sums by caption; nothing where all was there."""
    if all(files.num_shards(caption) == dataset.num_shards for caption in captions):
        return {}
    count = partial(
        _count_in_worker, root=dataset.store.root, name=dataset.name, run_dir=run_dir.resolve(), captions=captions
    )
    sums = dict.fromkeys(captions, Counted())
    for _, counted in pool.each(count, range(dataset.num_shards)):
        sums = {caption: sums[caption] + counted[caption] for caption in captions}
    return sums


def _count_in_worker(number: int, root: str, name: str, run_dir: Path, captions: Sequence[str]) -> dict[str, Counted]:
    dataset, tokenizer = _cached_dataset(root, name), _cached_tokenizer(run_dir / TOKENIZER_FOLDER)
    return count_shard(number, dataset, tokenizer, LengthsFiles(dataset, tokenizer.fingerprint, run_dir), captions)


@lru_cache(maxsize=2)
def _cached_dataset(root: str, name: str) -> Dataset:
    return open_dataset(Store(root), name)


@lru_cache(maxsize=2)
def _cached_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def count_shard(
    number: int, dataset: Dataset, tokenizer: Tokenizer, files: LengthsFiles, captions: Iterable[str]
) -> dict[str, Counted]:
    """Count some captions of a shard, as far as that is not done, and commit their lengths.

    Returns:
        The sums by caption.
    """
    known = {caption: files.find(caption, number) for caption in captions}
    found = {caption: lengths for caption, lengths in known.items() if lengths is not None}
    missing = [caption for caption in known if caption not in found]
    if missing:
        counted = count_tokens(read_samples(dataset, number), tokenizer, missing)
        for caption, lengths in counted.items():
            files.keep(caption, number, lengths)
        found |= counted
    return {caption: _sum(lengths.drop_null().to_numpy()) for caption, lengths in found.items()}


def _sum(lengths_N: NDArray[np.int32]) -> Counted:
    return Counted(len(lengths_N), int(lengths_N.sum()), int(lengths_N.max(initial=0)))


def _require_captions(dataset: Dataset, files: LengthsFiles, counted: dict[str, Counted]) -> None:
    """Refuse a caption that no sample has, and forget that it was counted.

    Raises:
        UserError: With the captions there are.
    """
    for caption, found in counted.items():
        if found.num_captions:
            continue
        files.forget(caption)
        first = first_samples(dataset, int(dataset.num_samples_S[0]))
        known = {name for sample in first for name in sample.meta.get("captions", {})}
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
