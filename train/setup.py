"""A run folder's job, put together: data, tokenizer, model shape and stream. Used to plan as well as to train."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import GenLIPConfig, ImageProcessor, Tokenizer, load_tokenizer
from pipeline.errors import UserError
from pipeline.store import Store
from train.captions import CaptionChoice
from train.encode import SampleCosts, build_processor, check_fits, sample_costs
from train.recipe import TOKENIZER_FOLDER, TrainJob
from train.stream import SampleTable, Stream, read_caption_lengths, read_samples


@dataclass(frozen=True)
class RunSetup:
    """Everything that follows from a run folder and its store before a process group exists."""

    job: TrainJob
    config: GenLIPConfig
    tokenizer: Tokenizer
    processor: ImageProcessor
    samples: SampleTable
    captions: CaptionChoice
    costs_at: Callable[[int], SampleCosts]
    """What each sample costs in an epoch, with the captions that it reads."""
    stream: Stream


def set_up(run_dir: Path, job: TrainJob | None = None) -> RunSetup:
    """Load what a run needs.

    Args:
        run_dir: Holds the tokenizer, and the recipe where no job is given.
        job: What to set up instead of the folder's recipe.

    Raises:
        UserError: A step before it is missing (the message names it), or a sample does not fit into a row.
    """
    job = job or TrainJob.read(run_dir)
    if not (run_dir / TOKENIZER_FOLDER).exists():
        raise UserError("this run has no tokenizer", where=str(run_dir), next_step="run: genlip tokenizer RECIPE")
    tokenizer = load_tokenizer(run_dir / TOKENIZER_FOLDER)
    config = GenLIPConfig.preset(job.model.preset, vocab_size=tokenizer.vocab_size)
    processor = build_processor(job.model, config.patch_size)
    samples = read_samples(Store(job.store), job.shards.name)
    spec, dataset = job.train, job.shards.name
    captions = CaptionChoice(spec.captions, job.seed, samples.keys)
    lengths_CN = np.stack(
        [read_caption_lengths(samples, dataset, tokenizer.fingerprint, name) for name in captions.names]
    )

    def costs_of(caption_tokens_N: NDArray[np.int32]) -> SampleCosts:
        return sample_costs(samples, caption_tokens_N, config, processor, tokenizer, spec.max_caption_tokens)

    longest = costs_of(lengths_CN.max(axis=0))
    check_fits(longest.tokens_N, spec.row_tokens)

    @lru_cache(maxsize=2)
    def costs_at(epoch: int) -> SampleCosts:
        if captions.is_fixed:
            return longest
        return costs_of(np.take_along_axis(lengths_CN, captions.at(epoch)[None], axis=0)[0])

    tokens_of = None if captions.is_fixed else lambda epoch: costs_at(epoch).tokens_N
    stream = Stream(longest.tokens_N, spec.row_tokens, spec.lanes, job.seed, tokens_of)
    return RunSetup(job, config, tokenizer, processor, samples, captions, costs_at, stream)


def check_world_size(lanes: int, micro_rows: int, world_size: int) -> None:
    """Refuse a number of processes that does not divide the lanes.

    Raises:
        UserError: With the numbers that do.
    """
    if lanes % (world_size * micro_rows):
        fitting = [size for size in range(1, lanes + 1) if lanes % (size * micro_rows) == 0]
        raise UserError(
            f"{lanes} lanes cannot be dealt to {world_size} processes in micro-batches of {micro_rows} rows",
            where="train.lanes, train.micro_rows, run.workers",
            next_step=f"use one of these numbers of processes: {', '.join(map(str, fitting))}",
        )
