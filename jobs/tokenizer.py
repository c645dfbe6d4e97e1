"""`genlip tokenizer`: make or take the run's tokenizer, and count every caption that training reads with it, on Ray."""

import shutil
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa

from jobs.console import say
from jobs.ray_pool import fan_out, ray_session
from jobs.recipe import Recipe
from jobs.runs import open_run
from model import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from pipeline.errors import UserError
from pipeline.shards import iter_samples
from pipeline.store import Store
from train.captions import CAPTION, caption_of, num_tokens
from train.recipe import TOKENIZER_FOLDER, TokenizerSpec
from train.stream import SampleTable, lengths_name, read_samples

Lengths = list[int | None]
"""Tokens of the samples of a shard; None for a sample that lacks the caption."""


def make_tokenizer(recipe: Recipe) -> int:
    """Give the run its tokenizer and the store its column of caption lengths. Does what is missing."""
    store, dataset = Store(recipe.store), recipe.shards.name
    samples = read_samples(store, dataset)
    run_dir = open_run(recipe)
    folder = run_dir / TOKENIZER_FOLDER
    if not folder.exists():
        say(f"tokenizer: {recipe.tokenizer.kind}, from {len(samples):,} captions")
        _save(_build(recipe.tokenizer, samples, recipe.train.captions), folder)
    tokenizer = load_tokenizer(folder)
    say(f"tokenizer {folder}: vocabulary {tokenizer.vocab_size:,}, fingerprint {tokenizer.fingerprint[:16]}")
    captions = sorted({CAPTION, *recipe.train.captions})  # the first also stands in where another is missing
    names = {caption: lengths_name(dataset, tokenizer.fingerprint, caption) for caption in captions}
    missing = [caption for caption in captions if not store.exists(names[caption])]
    if missing:
        lengths = _count_shards(recipe.run.ray_address, samples, folder, missing)
        for caption in missing:
            _write_lengths(names[caption], caption, samples, [lengths[path][caption] for path in samples.shard_paths])
    for caption in captions:
        shards = store.read_table(names[caption])["num_tokens"].to_pylist()
        counts = [n for shard in shards for n in shard if n is not None]
        title = "captions" if caption == CAPTION else f"captions {caption!r}"
        say(f"{title}: {len(counts):,}, {sum(counts) / len(counts):.1f} tokens each (longest {max(counts)})")
    say(f"next: genlip plan RECIPE, then genlip train RECIPE (run folder {run_dir})")
    return 0


def _build(spec: TokenizerSpec, samples: SampleTable, captions: Iterable[str]) -> Tokenizer:
    if spec.kind == "huggingface":
        return HFTokenizer(spec.path, spec.prompt)
    return SentencePieceTokenizer.train(_texts(samples, captions), spec.vocab_size, spec.prompt)


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder under another name first, so that it is there complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tokenizer.save(temporary)
    temporary.replace(folder)


def _texts(samples: SampleTable, captions: Iterable[str]) -> Iterator[str]:
    for path in samples.shard_paths:
        with samples.store.reading(path) as stream:
            for sample in iter_samples(stream):
                yield from (text for name in captions if (text := caption_of(sample, name)) is not None)


def _write_lengths(name: str, caption: str, samples: SampleTable, lengths: list[Lengths]) -> None:
    if all(length is None for shard in lengths for length in shard):
        raise _no_such_caption(caption, samples)
    schema = pa.schema([("path", pa.string()), ("num_tokens", pa.list_(pa.int32()))])
    columns = {"path": samples.shard_paths, "num_tokens": lengths}
    samples.store.write_table(name, pa.table(columns, schema=schema))


def _no_such_caption(caption: str, samples: SampleTable) -> UserError:
    with samples.store.reading(samples.shard_paths[0]) as stream:
        known = {CAPTION, *(name for sample in iter_samples(stream) for name in sample.meta.get("captions", {}))}
    return UserError(
        f"no sample has a caption called {caption!r}",
        where="train.captions",
        why=f"the samples of {samples.shard_paths[0]} have {', '.join(sorted(known))}",
        next_step="name one of these, or shard a selection with that column: genlip curate RECIPE",
    )


def _count_shards(
    ray_address: str, samples: SampleTable, folder: Path, captions: list[str]
) -> dict[str, dict[str, Lengths]]:
    """Lengths by shard and caption."""
    lengths: dict[str, dict[str, Lengths]] = {}
    with ray_session(ray_address):
        count = partial(_count_captions, store=samples.store, folder=folder.resolve(), captions=captions)
        for done in fan_out(count, samples.shard_paths):
            if done.error:
                raise done.error
            lengths[done.item] = done.result or {}
    return lengths


def _count_captions(path: str, store: Store, folder: Path, captions: list[str]) -> dict[str, Lengths]:
    return {caption: count_tokens(path, store, folder, caption) for caption in captions}


def count_tokens(path: str, store: Store, folder: Path, caption: str = CAPTION) -> Lengths:
    """Tokens of the caption of that name of each sample of a shard; None for those that lack it."""
    tokenizer = _cached_tokenizer(folder)
    with store.reading(path) as stream:
        texts = (caption_of(sample, caption) for sample in iter_samples(stream))
        return [None if text is None else num_tokens(tokenizer, text) for text in texts]


@lru_cache(maxsize=2)
def _cached_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)
