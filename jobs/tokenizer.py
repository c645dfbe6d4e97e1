"""`genlip tokenizer`: make or take the run's tokenizer, and count every training caption with it, on Ray."""

import shutil
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa

from jobs.console import say
from jobs.ray_pool import fan_out, ray_session
from jobs.recipe import Recipe
from jobs.runs import open_run
from model import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from pipeline.shards import iter_samples
from pipeline.store import Store
from train.recipe import TOKENIZER_FOLDER, TokenizerSpec
from train.stream import SampleTable, lengths_name, read_samples


def make_tokenizer(recipe: Recipe) -> int:
    """Give the run its tokenizer and the store its column of caption lengths. Does what is missing."""
    store, dataset = Store(recipe.store), recipe.shards.name
    samples = read_samples(store, dataset)
    run_dir = open_run(recipe)
    folder = run_dir / TOKENIZER_FOLDER
    if not folder.exists():
        say(f"tokenizer: {recipe.tokenizer.kind}, from {len(samples):,} captions")
        _save(_build(recipe.tokenizer, samples), folder)
    tokenizer = load_tokenizer(folder)
    say(f"tokenizer {folder}: vocabulary {tokenizer.vocab_size:,}, fingerprint {tokenizer.fingerprint[:16]}")
    name = lengths_name(dataset, tokenizer.fingerprint)
    if not store.exists(name):
        lengths = _count_shards(recipe.run.ray_address, samples, folder)
        columns = {"path": samples.shard_paths, "num_tokens": [lengths[path] for path in samples.shard_paths]}
        schema = pa.schema([("path", pa.string()), ("num_tokens", pa.list_(pa.int32()))])
        store.write_table(name, pa.table(columns, schema=schema))
    counts = [n for shard in store.read_table(name)["num_tokens"].to_pylist() for n in shard]
    mean = sum(counts) / len(counts)
    say(f"captions: {len(counts):,}, {mean:.1f} tokens each (longest {max(counts)})")
    say(f"next: genlip plan RECIPE, then genlip train RECIPE (run folder {run_dir})")
    return 0


def _build(spec: TokenizerSpec, samples: SampleTable) -> Tokenizer:
    if spec.kind == "huggingface":
        return HFTokenizer(spec.path, spec.prompt)
    return SentencePieceTokenizer.train(_captions(samples), spec.vocab_size, spec.prompt)


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder under another name first, so that it is there complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tokenizer.save(temporary)
    temporary.replace(folder)


def _captions(samples: SampleTable) -> Iterator[str]:
    for path in samples.shard_paths:
        with samples.store.reading(path) as stream:
            for sample in iter_samples(stream):
                yield sample.caption


def _count_shards(ray_address: str, samples: SampleTable, folder: Path) -> dict[str, list[int]]:
    lengths: dict[str, list[int]] = {}
    with ray_session(ray_address):
        count = partial(count_tokens, store=samples.store, folder=folder.resolve())
        for done in fan_out(count, samples.shard_paths):
            if done.error:
                raise done.error
            lengths[done.item] = done.result or []
    return lengths


def count_tokens(path: str, store: Store, folder: Path) -> list[int]:
    """Tokens of each caption of a shard, without prompt and ending."""
    tokenizer = _cached_tokenizer(folder)
    with store.reading(path) as stream:
        return [len(tokenizer.encode(sample.caption)) for sample in iter_samples(stream)]


@lru_cache(maxsize=2)
def _cached_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)
