"""What a model knows of held-out images, measured between two steps of its training, on all ranks together.

Every rank takes every `world_size`-th image, and all make the same forward passes in the same order, because ZeRO 3
gathers the weights anew in each. Nothing random is left behind, so training goes on as if nothing had been measured.

Shape legend: I held-out images, N images whose features are computed, D feature width, P patches of an image.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model import EncodedSample, ModelError, pack_rows
from pipeline.dataset_files import HELDOUT_SUFFIX
from pipeline.errors import UserError
from pipeline.shards import Sample
from pipeline.store import Store
from train.checkpoints.state import TrainState
from train.data.dataset import Dataset, first_samples, open_dataset
from train.data.encode import encode_caption
from train.engine import Ranks
from train.evaluation.knn import NUM_NEIGHBOURS, knn_predict
from train.metrics import Evaluation
from train.recipe import TrainJob
from train.setup import RunSetup

LOSS_IMAGES = 64
"""Of a forward pass of all ranks together: a contrastive loss compares so many held-out pairs, whatever the number of
ranks."""
BANK_PER_IMAGE = 4
"""Labelled training images among which neighbours are looked for, for each held-out image."""
_SCANNED_PER_LABELLED = 4
"""Training images looked at for each that is wanted: where few have a class, the bank is smaller."""


@dataclass(frozen=True)
class _Image:
    """A decoded image with its caption's ids, and the class it is of."""

    sample: EncodedSample
    class_name: str | None


def open_heldout(job: TrainJob) -> Dataset:
    """The held-out shards of a run.

    Raises:
        UserError: There are none, or none that are not empty.
    """
    try:
        return open_dataset(Store(job.store), job.shards.name + HELDOUT_SUFFIX)
    except UserError as error:
        raise UserError(
            "evaluation during training needs held-out samples, and there are none",
            where=f"eval.every, shards.holdout: {job.shards.name + HELDOUT_SUFFIX} in {job.store}",
            why=error.message.split("\n")[0],
            next_step="make shards with --set shards.holdout=0.1 --set shards.name=NAME, or --set eval.every=0",
        ) from error


class HeldoutEvaluation:
    """Held-out loss and nearest neighbours of the model in an engine. All ranks call it together."""

    def __init__(
        self, setup: RunSetup, heldout: Dataset, ranks: Ranks, on_result: Callable[[Evaluation], None]
    ) -> None:
        """Decodes the images, once for the whole run.

        Args:
            setup: Of the run.
            heldout: From `open_heldout`.
            ranks: This process's place.
            on_result: Called with what was measured, on every rank.

        Raises:
            UserError: No held-out image can be decoded.
        """
        job = setup.job
        self._every, self._length, self._batch_images = job.eval.every, job.train.length, job.eval.batch_images
        self._ranks, self._on_result = ranks, on_result
        num_images = job.eval.every_images
        images = list(islice(_decoded(first_samples(heldout), setup), num_images))
        if not images:
            raise UserError("no held-out image can be decoded", where=heldout.name, next_step="make the shards again")
        bank: list[_Image] = []
        if any(image.class_name for image in images):
            bank = list(islice(_decoded(_labelled(setup, num_images), setup), BANK_PER_IMAGE * num_images))
        self._classes = sorted({image.class_name for image in bank if image.class_name})
        self._num_images = len(images)
        self._num_labels = sum(len(image.sample.caption_ids) for image in images)
        self._chunks = [
            [image.sample for image in images[begin : begin + LOSS_IMAGES][ranks.rank :: ranks.world_size]]
            for begin in range(0, len(images), LOSS_IMAGES)
        ]
        self._class_N = torch.tensor([self._number_of(image) for image in [*images, *bank]], device=ranks.device)
        self._own = _share([image.sample for image in [*images, *bank]], ranks) if self._classes else []

    def is_due(self, before: TrainState, after: TrainState) -> bool:
        """Whether a step passed a multiple of `eval.every` samples, or was the last of the run."""
        passed = after.samples_seen // self._every > before.samples_seen // self._every
        return passed or after.samples_seen >= self._length

    def __call__(self, engine: Any, state: TrainState) -> None:
        """Measure."""
        with _evaluating(engine, self._ranks):
            metrics = {"language/loss": self._loss(engine.module)}
            if self._classes:
                metrics["knn/top1"] = self._top1(engine.module)
        self._on_result(Evaluation(state.step, state.samples_seen, time.time(), state.flops, metrics))

    def _loss(self, model: Any) -> float:
        """The objective's own, in its unit: by labelled token or by sample."""
        total = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        for number, samples in enumerate(self._chunks):
            torch.manual_seed(number * self._ranks.world_size + self._ranks.rank)  # of the patches that MAE masks
            rows = pack_rows([samples], max(1, sum(sample.num_tokens for sample in samples)))
            total += model(rows.to(self._ranks.device)).loss_sum
        dist.all_reduce(total)
        return float(total) / (self._num_labels if model.loss_per == "label" else self._num_images)

    def _top1(self, model: Any) -> float:
        """Share of the held-out images whose neighbours in the bank are of their class."""
        features_ND = self._features(model)
        class_I, bank_class_N = self._class_N[: self._num_images], self._class_N[self._num_images :]
        is_known_I = class_I >= 0
        bank_ND, query_ID = features_ND[self._num_images :], features_ND[: self._num_images][is_known_I]
        predicted = knn_predict(bank_ND, bank_class_N, query_ID, len(self._classes), NUM_NEIGHBOURS)
        return float((predicted == class_I[is_known_I]).double().mean())

    def _features(self, model: Any) -> Tensor:
        """Mean over the patches of each image, float32 [N, D], on every rank."""
        num_rounds = len(self._own)  # in each, every rank has one image
        features_ND = torch.zeros(
            num_rounds * self._ranks.world_size, model.config.hidden_size, device=self._ranks.device
        )
        own_ND = features_ND[self._ranks.rank :: self._ranks.world_size]
        for begin in range(0, num_rounds, self._batch_images):
            samples = self._own[begin : begin + self._batch_images]
            encoded = model.encode_images([(sample.patches, sample.grid) for sample in samples])
            own_ND[begin : begin + len(samples)] = torch.stack([x_PD.float().mean(dim=0) for x_PD in encoded])
        dist.all_reduce(features_ND)
        return features_ND[: len(self._class_N)]

    def _number_of(self, image: _Image) -> int:
        """Of an image's class; -1 for one that the bank does not have."""
        return self._classes.index(image.class_name) if image.class_name in self._classes else -1


def _decoded(samples: Iterable[Sample], setup: RunSetup) -> Iterator[_Image]:
    """Those whose image can be decoded, by the official filter."""
    tokenizer, max_caption_tokens = setup.tokenizer, setup.job.train.max_caption_tokens
    for sample in samples:
        try:
            patches, grid = setup.processor.load_patches(sample.image)
        except ModelError:
            continue
        ids = encode_caption(sample.caption, tokenizer, max_caption_tokens)
        yield _Image(EncodedSample(patches, grid, tokenizer.prompt_ids, ids), sample.meta.get("class_name"))


def _labelled(setup: RunSetup, num_images: int) -> Iterator[Sample]:
    """Training samples with a class, of the first ones of each source."""
    limit = _SCANNED_PER_LABELLED * BANK_PER_IMAGE * num_images
    for source in setup.sources:
        for sample in first_samples(source.dataset, limit):
            if sample.meta.get("class_name"):
                yield sample


def _share(samples: Sequence[EncodedSample], ranks: Ranks) -> list[EncodedSample]:
    """Every `world_size`-th sample; those at the end begin anew, so that every rank has as many."""
    rounds = -(-len(samples) // ranks.world_size)
    return [samples[(number * ranks.world_size + ranks.rank) % len(samples)] for number in range(rounds)]


@contextmanager
def _evaluating(engine: Any, ranks: Ranks) -> Iterator[None]:
    """Evaluation mode without gradients; random numbers go on afterwards as if none had been drawn."""
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    engine.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        engine.train()
