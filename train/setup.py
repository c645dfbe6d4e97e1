"""A run folder's job, put together: data, tokenizer, model shape and stream. Used to plan as well as to train."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from model import GenLIPConfig, ImageProcessor, Tokenizer, load_tokenizer
from pipeline.errors import UserError
from train.data.captions import CaptionChoice
from train.data.costs import CostModel
from train.data.encode import build_processor
from train.data.mixture import Mixture
from train.data.sources import Source, make_mixture, open_sources, phases
from train.data.stream import Position, Stream
from train.network import Network
from train.recipe import TOKENIZER_FOLDER, TrainJob


@dataclass(frozen=True)
class RunSetup:
    """Everything that follows from a run folder and its store before a process group exists."""

    job: TrainJob
    config: GenLIPConfig
    tokenizer: Tokenizer
    processor: ImageProcessor
    sources: list[Source]
    captions: CaptionChoice
    stream: Stream
    fingerprint: str
    """Of all that the order, the rows and their content follow from, but the seed and the lanes."""

    @property
    def network(self) -> Network:
        return Network(self.config, self.job.objective)


def set_up(run_dir: Path, job: TrainJob | None = None) -> RunSetup:
    """Load what a run needs, and plan the first rows.

    Args:
        run_dir: Holds the tokenizer, and the recipe where no job is given.
        job: What to set up instead of the folder's recipe.

    Raises:
        UserError: A step before it is missing (the message names it), or one of the first samples does not fit into a
            row.
    """
    job = job or TrainJob.read(run_dir)
    spec = job.train
    if not (run_dir / TOKENIZER_FOLDER).exists():
        raise UserError("this run has no tokenizer", where=str(run_dir), next_step="run: genlip tokenizer RECIPE")
    tokenizer = load_tokenizer(run_dir / TOKENIZER_FOLDER)
    config = GenLIPConfig.preset(job.model.preset, vocab_size=tokenizer.vocab_size)
    processor = build_processor(job.model, config.patch_size)
    captions = CaptionChoice(spec.captions, job.seed)
    sources = open_sources(job, tokenizer, captions.names, run_dir)
    network = Network(config, job.objective)
    cost = CostModel(sources, captions, network, processor, tokenizer, spec.max_caption_tokens, spec.row_tokens)
    mixture = make_mixture(sources, spec, job.seed)
    stream = Stream(mixture, cost, spec.row_tokens, spec.lanes)
    stream.step(Position())
    fingerprint = _fingerprint(job, sources, mixture, tokenizer, config.patch_size)
    return RunSetup(job, config, tokenizer, processor, sources, captions, stream, fingerprint)


def _fingerprint(job: TrainJob, sources: list[Source], mixture: Mixture, tokenizer: Tokenizer, patch_size: int) -> str:
    spec = job.train
    content = {
        "datasets": [source.dataset.fingerprint for source in sources],
        "phases": [asdict(phase) for phase in phases(spec)],
        "order": [mixture.segment_samples, spec.block_shards],
        "tokenizer": tokenizer.fingerprint,
        "captions": [sorted(spec.captions.items()), spec.max_caption_tokens],
        "image": job.model.model_dump(mode="json", exclude={"preset"}) | {"patch_size": patch_size},
        "row_tokens": spec.row_tokens,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def world_sizes(setup: RunSetup, largest: int, smallest: int) -> list[int]:
    """Numbers of processes with which a run may train, the largest first.

    Args:
        setup: Of the run.
        largest: When nothing is missing.
        smallest: When processes are lost and not replaced; 0: no fewer than the largest.

    Raises:
        UserError: The largest or the smallest does not divide the lanes; with the numbers that fit.
    """
    spec, whole_batch = setup.job.train, setup.network.skeleton().needs_whole_batch
    if whole_batch and 0 < smallest < largest:
        raise UserError(
            f"this run cannot go on with {smallest} of {largest} processes",
            where="run.min_workers",
            why="a contrastive objective holds the global batch in one forward pass, train.micro_rows in each process",
            next_step="leave run.min_workers out",
        )
    smallest = smallest or largest
    for size in (largest, smallest):
        check_world_size(spec.lanes, spec.micro_rows, size, whole_batch)
    return [size for size in range(largest, smallest - 1, -1) if spec.lanes % (size * spec.micro_rows) == 0]


def check_world_size(lanes: int, micro_rows: int, world_size: int, whole_batch: bool = False) -> None:
    """Refuse a number of processes that the lanes cannot be dealt to.

    Args:
        lanes: Of the global batch.
        micro_rows: Of one forward pass of one process.
        world_size: Processes.
        whole_batch: Whether the loss compares all samples of the global batch, which one forward pass must hold then.

    Raises:
        UserError: With the numbers that fit.
    """
    if whole_batch and lanes != world_size * micro_rows:
        fitting = f"--set train.micro_rows={lanes // world_size}"
        if lanes % world_size:
            sizes = ", ".join(str(size) for size in range(1, lanes + 1) if lanes % size == 0)
            fitting = f"use one of these numbers of processes: {sizes}; with train.micro_rows={lanes} ÷ processes"
        raise UserError(
            f"{world_size} processes × {micro_rows} rows do not hold all {lanes} lanes in one forward pass",
            where="train.lanes, train.micro_rows, run.workers",
            why="a contrastive objective compares every sample of the global batch with every other",
            next_step=fitting,
        )
    if lanes % (world_size * micro_rows):
        fitting = ", ".join(str(size) for size in range(1, lanes + 1) if lanes % (size * micro_rows) == 0)
        raise UserError(
            f"{lanes} lanes cannot be dealt to {world_size} processes in micro-batches of {micro_rows} rows",
            where="train.lanes, train.micro_rows, run.workers, run.min_workers",
            next_step=f"use one of these numbers of processes: {fitting}",
        )
