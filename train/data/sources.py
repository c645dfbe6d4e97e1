"""The datasets that a run reads, and how they are mixed, from the recipe."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model import Tokenizer
from pipeline.store import Store
from train.data.dataset import Dataset, open_dataset
from train.data.lengths import CaptionLengths
from train.data.mixture import SEGMENT_SAMPLES, Mixture, Phase
from train.recipe import TrainJob, TrainSpec

_BLOCKS_KEPT = 3
"""Blocks of the order whose index stays in memory: that being read, its neighbour, and the one being planned."""


@dataclass(frozen=True)
class Source:
    """A dataset with its caption lengths."""

    name: str
    """In the recipe and in the log."""
    dataset: Dataset
    lengths: CaptionLengths

    def place(self, shard: int, row: int) -> str:
        """Where a sample is, for messages: shard and key."""
        found = self.dataset.shard(shard)
        return f"{self.dataset.store.path(found.path)} key {found.keys[row].as_py()}"


def open_datasets(job: TrainJob) -> dict[str, Dataset]:
    """The datasets by the names that the recipe gives them; the run's own where it names none.

    Raises:
        UserError: One does not exist or is empty.
    """
    kept = _BLOCKS_KEPT * job.train.block_shards
    if not job.train.sources:
        return {job.shards.name: open_dataset(Store(job.store), job.shards.name, kept)}
    return {
        name: open_dataset(Store(source.store or job.store), source.dataset, kept)
        for name, source in job.train.sources.items()
    }


def open_sources(job: TrainJob, tokenizer: Tokenizer, captions: Sequence[str], run_dir: Path) -> list[Source]:
    """The datasets with the lengths of some captions, which are read, or counted, when they are asked for."""
    return [
        Source(name, dataset, CaptionLengths(dataset, tokenizer, captions, run_dir))
        for name, dataset in open_datasets(job).items()
    ]


def phases(spec: TrainSpec) -> list[Phase]:
    """The weights of the sources, in their order, from each position of the run on."""
    if not spec.sources:
        return [Phase(0, (1.0,))]
    first = Phase(0, tuple(source.weight for source in spec.sources.values()))
    return [first, *(Phase(phase.after, _in_order(phase.weights, spec.sources)) for phase in spec.schedule)]


def _in_order(weights: Mapping[str, float], names: Iterable[str]) -> tuple[float, ...]:
    return tuple(weights.get(name, 0.0) for name in names)


def make_mixture(sources: Sequence[Source], spec: TrainSpec, seed: int) -> Mixture:
    """The sources as one endless sequence."""
    datasets = [source.dataset for source in sources]
    # Of small datasets a segment is about a pass: otherwise it would hold, and plan, many.
    segment_samples = min(SEGMENT_SAMPLES, max(sum(dataset.num_samples for dataset in datasets), len(datasets) ** 2))
    num_samples = [dataset.num_samples_S for dataset in datasets]
    return Mixture(num_samples, phases(spec), seed, spec.block_shards, segment_samples)
