"""Every derived number of a training run, with its arithmetic, before anything starts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.loader import stream_state
from train.data.order import shuffle_quality
from train.data.stream import Position, Stream
from train.evaluation.during import open_heldout
from train.mfu import device_name, mfu_lines
from train.optimizer import decay_lines
from train.plan_cost import StepCost, cost_lines
from train.recipe import TrainSpec
from train.setup import RunSetup, world_sizes

_SEGMENTS_LOOKED_AT = 4
_BATCH = 64


@dataclass(frozen=True)
class Means:
    """Of the first segments of a run, which stand for the others."""

    num_rows: int
    num_samples: int
    tokens: float
    """These three of a sample."""
    patches: float
    flops: float


def measure(stream: Stream) -> Means:
    """Plan a few segments; of a small dataset this is all of its first pass."""
    segments = [stream.segment(number) for number in range(_SEGMENTS_LOOKED_AT)]

    def mean(name: str) -> float:
        return float(np.mean(np.concatenate([getattr(segment.costs, name) for segment in segments])))

    num_rows = sum(len(segment.rows) for segment in segments)
    num_samples = sum(len(segment.places) for segment in segments)
    return Means(num_rows, num_samples, mean("tokens_N"), mean("patches_N"), mean("flops_N"))


def plan_lines(setup: RunSetup, world_size: int, run_dir: Path | None = None, min_world_size: int = 0) -> list[str]:
    """The training plan as lines of text.

    Args:
        setup: Of the run.
        world_size: Processes to plan for.
        run_dir: Whose metrics say how fast the devices are, if it has any.
        min_world_size: With how many of them the run may go on when others are lost; 0: with all.

    Raises:
        UserError: The lanes cannot be dealt to that many processes, or what is to be measured does not exist.
    """
    spec, network = setup.job.train, setup.network
    sizes = world_sizes(setup, world_size, min_world_size)
    means = measure(setup.stream)
    samples_per_step = means.num_samples / means.num_rows * spec.lanes
    accumulation = spec.lanes // (world_size * spec.micro_rows)
    return [
        _model_line(setup),
        *_source_lines(setup),
        f"sample     {means.patches:.1f} image + {means.tokens - means.patches:.1f} text tokens = {means.tokens:.1f}"
        f" tokens (mean of the first {means.num_samples:,})",
        *_caption_lines(spec.captions),
        f"rows       {means.num_samples:,} samples × {means.tokens:.1f} tokens ÷ {means.num_rows:,} rows of"
        f" {spec.row_tokens:,} tokens: {_fill(means, spec.row_tokens):.2%} full",
        f"step       {spec.lanes} lanes × {spec.row_tokens:,} tokens = {spec.lanes * spec.row_tokens:,} tokens"
        f" ≈ {samples_per_step:.1f} samples",
        f"processes  {spec.lanes} lanes = {world_size} processes × {spec.micro_rows} rows"
        f" × {accumulation} accumulated; ZeRO stage {spec.zero.stage}, {spec.precision}",
        *_elastic_lines(spec, sizes),
        *_schedule_lines(spec, samples_per_step),
        f"compute    {spec.length:,} samples × {means.flops / 1e9:.2f} GFLOP"
        f" = {spec.length * means.flops:.3g} FLOP (forward + backward, {network.name})",
        *mfu_lines(means.flops, world_size, device_name(), spec.precision, spec.log.peak_tflops),
        f"checkpoint every {spec.checkpoint.every:,} samples"
        f" ≈ {spec.checkpoint.every / samples_per_step:,.0f} steps, the last {spec.checkpoint.keep_last} kept",
        *_evaluation_lines(setup),
        *_state_lines(setup),
        *decay_lines(network, spec.optim),
        *cost_lines(network, spec, _step_cost(setup, means), world_size, run_dir),
    ]


def _elastic_lines(spec: TrainSpec, sizes: list[int]) -> list[str]:
    """With how many processes a run goes on that has lost some, where it may."""
    fewer = [f"{size} × {spec.micro_rows} × {spec.lanes // (size * spec.micro_rows)}" for size in sizes[1:]]
    return [f"elastic    the same {spec.lanes} lanes as {' or '.join(fewer)} when nodes are lost"] if fewer else []


def _model_line(setup: RunSetup) -> str:
    config, network = setup.config, setup.network
    return (
        f"model      {setup.job.model.preset}: {config.num_hidden_layers} layers × {config.hidden_size} wide;"
        f" {network.name}: {network.num_parameters:,} parameters with a vocabulary of {config.vocab_size:,}"
    )


def _evaluation_lines(setup: RunSetup) -> list[str]:
    """What is measured on the way, where anything is."""
    spec = setup.job.eval
    if not spec.every:
        return []
    num_images = min(spec.every_images, open_heldout(setup.job).num_samples)
    return [
        f"evaluation every {spec.every:,} samples, {setup.job.train.length // spec.every:,} times, on {num_images:,}"
        " held-out images"
    ]


def _schedule_lines(spec: TrainSpec, samples_per_step: float) -> list[str]:
    return [
        f"length     {spec.length:,} samples ÷ {samples_per_step:.1f} ≈ {spec.length / samples_per_step:,.0f} steps",
        f"warm-up    {spec.optim.warmup:,} samples ÷ {samples_per_step:.1f}"
        f" ≈ {spec.optim.warmup / samples_per_step:,.0f} steps, to lr {spec.optim.lr:g}; then cosine to"
        f" {spec.optim.min_lr:g}",
    ]


def _step_cost(setup: RunSetup, means: Means) -> StepCost:
    samples = means.num_samples / means.num_rows * setup.job.train.lanes
    labels = means.tokens - means.patches - len(setup.tokenizer.prompt_ids)
    return StepCost(means.tokens * samples, means.patches * samples, labels * samples, means.flops * samples, samples)


def _fill(means: Means, row_tokens: int) -> float:
    """Share of row space that holds tokens."""
    return means.num_samples * means.tokens / (means.num_rows * row_tokens)


def _source_lines(setup: RunSetup) -> list[str]:
    """What is read, how often, and in how random an order."""
    length, mixture = setup.job.train.length, setup.stream.mixture
    lines = []
    for number, (source, taken) in enumerate(zip(setup.sources, mixture.taken(length), strict=True)):
        dataset = source.dataset
        lines.append(
            f"data       {source.name}: {dataset.num_samples:,} samples in {dataset.num_shards:,} shards;"
            f" {taken:,} samples ÷ {dataset.num_samples:,} = {taken / dataset.num_samples:.2f} passes"
        )
        if source.lengths.num_counted:
            lines.append(
                f"counted    {source.name}: the captions of {source.lengths.num_counted:,} shards, which nobody had"
                " counted; so it goes on shard by shard, unless you run: genlip tokenizer RECIPE (all at once, on Ray)"
            )
        distinct, same = shuffle_quality(mixture.order(number, 0), 0, _BATCH)
        lines.append(
            f"order      {source.name}: blocks of {setup.job.train.block_shards} shards; {distinct:.1f} different"
            f" shards in {_BATCH} samples, {same:.1%} of neighbours from the same shard"
        )
    return lines


def _state_lines(setup: RunSetup) -> list[str]:
    num_bytes = len(json.dumps(stream_state(setup, 0, Position())))
    return [f"state      {num_bytes} bytes for the whole stream, on any number of processes"]


def _caption_lines(shares: Mapping[str, float]) -> list[str]:
    """Which captions are read, where that is a choice."""
    if len(shares) == 1:
        return []
    drawn = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return [f"captions   {drawn}, drawn anew in each pass"]
