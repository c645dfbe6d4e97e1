"""Benchmark: from shards to training batches, ours against webdataset in a torch DataLoader. No model runs.

Both read, decode, resize, cut into patches and tokenise the same samples with the same processor and tokenizer. Ours
packs them into rows; the peer pads batches of 64, as image-text training commonly reads.

Shape legend: B samples of a batch, P patches of an image, C channels, p side of a patch in pixels, S text tokens.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import ImageProcessor, Tokenizer
from tests.bench.harness import Metric, Result, find_peer, rounds
from tests.bench.stream_store import SHARD_SAMPLES, make_run
from train.loader import Loader
from train.setup import RunSetup, set_up

BATCH_SAMPLES = 64
NUM_WARM_UP_BATCHES = 4
SHUFFLE_SAMPLES = 500
NUM_WORKERS = (1, 2)
IGNORED_LABEL = -100

Encoded = tuple[np.ndarray[Any, np.dtype[np.uint8]], list[int]]
"""Patches, and the ids of prompt, caption and ending."""

PaddedBatch = tuple[Tensor, Tensor, Tensor, int]
"""Patches, token ids and labels of a batch, and how many of its token positions hold none."""


@dataclass(frozen=True)
class Count:
    """Of one batch."""

    num_samples: int
    num_positions: int
    """Token positions, image tokens included."""
    num_padding: int


def run(arguments: Sequence[str]) -> list[Result]:
    """Makes a store and reads it with one worker of each kind, then with two.

    Args:
        arguments: of the command line: `--samples N`.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench stream")
    parser.add_argument("--samples", type=int, default=4000, help="read in each run, in two epochs")
    num_samples: int = parser.parse_args(arguments).samples
    if num_samples < 4 * SHARD_SAMPLES:
        parser.error(f"--samples {num_samples}: two workers need two shards in an epoch, {4 * SHARD_SAMPLES} samples")
    torch.set_num_threads(1)  # threads beside the workers would help the side that uses more of torch
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as work:
        setup = set_up(make_run(Path(work), num_samples // 2))
        for workers in NUM_WORKERS:
            metrics = [Metric(f"samples_per_s_{workers}", "samples/s", "higher")]
            if workers == NUM_WORKERS[-1]:
                metrics.append(Metric("padding_share", "of token positions", "lower"))
            read_ours = partial(_ours, setup, workers, Path(work))
            peer = find_peer("webdataset", partial(_measure, partial(_peer, setup, workers), workers, num_samples))
            results += rounds("stream", metrics, partial(_measure, read_ours, workers, num_samples), peer)
    return results


def _measure(read: Callable[[], Generator[Count, None, None]], workers: int, num_samples: int) -> dict[str, float]:
    """Speed in the steady state: the clock starts after a few batches, and both sides work ahead at its end as well."""
    seen: list[Count] = []
    with closing(read()) as counts:
        for _ in range(NUM_WARM_UP_BATCHES):
            next(counts)
        began = time.perf_counter()
        while sum(count.num_samples for count in seen) < num_samples:
            seen.append(next(counts))
        wall_s = time.perf_counter() - began
    num_positions = sum(count.num_positions for count in seen)
    return {
        f"samples_per_s_{workers}": sum(count.num_samples for count in seen) / wall_s,
        "padding_share": sum(count.num_padding for count in seen) / num_positions,
    }


def _ours(setup: RunSetup, threads: int, folder: Path) -> Generator[Count, None, None]:
    """Packed rows, as the trainer takes them."""
    train = setup.job.train.model_copy(update={"max_bad_samples": 0, "threads": threads})
    setup = replace(setup, job=setup.job.model_copy(update={"train": train}))
    with closing(iter(Loader(setup, folder))) as steps:
        for step in steps:
            sample_ids = [rows.sample_ids_BS for rows in step.micro_batches]
            num_padding = sum(int((ids < 0).sum()) for ids in sample_ids)
            yield Count(step.num_samples, sum(ids.numel() for ids in sample_ids), num_padding)


def _peer(setup: RunSetup, num_workers: int) -> Generator[Count, None, None]:
    """Padded batches from worker processes."""
    import webdataset as wds  # here, because its absence is reported and is no error

    dataset = setup.sources[0].dataset
    shards = [dataset.store.path(path) for path in dataset.paths.to_pylist()]
    encode = partial(_encode, setup.processor, setup.tokenizer, setup.job.train.max_caption_tokens)
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .repeat()
        .shuffle(SHUFFLE_SAMPLES)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map(encode)
        .batched(BATCH_SAMPLES, collation_fn=partial(_pad, len(setup.tokenizer.prompt_ids)), partial=False)
    )
    for patches_BPCpp, ids_BS, _, num_padding in wds.WebLoader(dataset, batch_size=None, num_workers=num_workers):
        num_samples, num_patches = patches_BPCpp.shape[:2]
        yield Count(num_samples, num_samples * (num_patches + ids_BS.shape[1]), num_padding)


def _encode(
    processor: ImageProcessor, tokenizer: Tokenizer, max_caption_tokens: int, pair: tuple[Image.Image, str]
) -> Encoded:
    image, caption = pair
    caption_ids = tokenizer.encode(caption)[:max_caption_tokens]
    return processor.patches(image)[0], [*tokenizer.prompt_ids, *caption_ids, *tokenizer.ending_ids]


def _pad(num_prompt_ids: int, samples: list[Encoded]) -> PaddedBatch:
    """A batch of equal images (mode square) and of texts padded to the longest."""
    longest = max(len(ids) for _, ids in samples)
    ids_BS = torch.zeros(len(samples), longest, dtype=torch.int64)
    labels_BS = torch.full_like(ids_BS, IGNORED_LABEL)
    for row, (_, ids) in enumerate(samples):
        ids_BS[row, : len(ids)] = torch.tensor(ids)
        labels_BS[row, num_prompt_ids : len(ids)] = ids_BS[row, num_prompt_ids : len(ids)]
    num_padding = sum(longest - len(ids) for _, ids in samples)
    return torch.from_numpy(np.stack([patches for patches, _ in samples])), ids_BS, labels_BS, num_padding
