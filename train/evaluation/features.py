"""Frozen features of an evaluation's images, computed once and shared by the tasks that read them.

Shape legend: N images, P patches of an image (of the largest one in a batch), D feature width, B images of a batch.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model import LoadedModel, ModelError
from model.cache import inference
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.spec import EvalSpec

KEPT_BYTES = 2**30
"""Patch features of a list of images are kept, in float16, if all of them fit; else every use computes them again."""


class ImageFeatures:
    """Features of a list of images: mean-pooled ones always at hand, those of patches in batches.

    Attributes:
        samples: The images that decode, N of them.
        number_N: Their places in the list that was given.
        grids: (rows, columns) of patches of each.
        pooled_ND: Mean over patches, float32 on the CPU.
    """

    def __init__(
        self, loaded: LoadedModel, samples: Sequence[Labelled], batch_images: int, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._loaded = loaded
        self._batch_images = batch_images
        self._num_given = len(samples)
        self._kept: list[Tensor] | None = []
        self.samples: list[Labelled] = []
        self.grids: list[tuple[int, int]] = []
        numbers: list[int] = []
        pooled: list[Tensor] = []
        num_bytes = 0
        for begin in range(0, len(samples), batch_images):
            batch = range(begin, min(begin + batch_images, len(samples)))
            decoded = {number: cut for number in batch if (cut := self._cut(samples[number].image))}
            numbers += decoded
            self.samples += [samples[number] for number in decoded]
            self.grids += [grid for _, grid in decoded.values()]
            patches = self._encode(list(decoded.values()))
            pooled += [one.mean(dim=0) for one in patches]
            num_bytes += sum(2 * one.numel() for one in patches)
            if self._kept is not None:
                self._kept += [one.half() for one in patches]
            if num_bytes > kept_bytes:
                self._kept = None
        self.number_N = np.array(numbers, np.int64)
        self.pooled_ND = torch.stack(pooled) if pooled else torch.zeros(0, loaded.model.config.hidden_size)

    def patches(self, rows: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Features of patches of some images: float32 [B, P, D], 0 behind an image's last patch, and bool [B, P]."""
        rows = [int(row) for row in rows]
        if self._kept is not None:
            found = [self._kept[row].float() for row in rows]
        else:
            found = []
            for begin in range(0, len(rows), self._batch_images):
                some = [self.samples[row].image for row in rows[begin : begin + self._batch_images]]
                found += self._encode([self._loaded.processor.load_patches(image) for image in some])
        lengths_B = torch.tensor([len(one) for one in found])
        x_BPD = pad_sequence(found, batch_first=True)
        return x_BPD, torch.arange(x_BPD.shape[1]) < lengths_B.unsqueeze(1)

    def per_image(self, rows: Sequence[int] | Tensor, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Values of some images at their places in the list that was given; NaN elsewhere."""
        result = np.full(self._num_given, np.nan)
        result[self.number_N[[int(row) for row in rows]]] = np.asarray(values, np.float64)
        return result

    def _cut(self, image: bytes) -> tuple[Any, tuple[int, int]] | None:
        try:
            return self._loaded.processor.load_patches(image)
        except ModelError:
            return None

    def _encode(self, images: list[tuple[Any, tuple[int, int]]]) -> list[Tensor]:
        """Float32 [P, D] of each, on the CPU."""
        model = self._loaded.model
        with inference(model):
            return [one.float().cpu() for one in model.encode_images(images)]


class Features:
    """Features of held-out and of labelled training images; each side is computed when it is first asked for.

    Attributes:
        skipped: Images that cannot be decoded, by side, as far as the sides have been computed.
    """

    def __init__(self, loaded: LoadedModel, data: EvalData, spec: EvalSpec) -> None:
        self._loaded = loaded
        self._data = data
        self._spec = spec
        self.skipped: dict[str, int] = {}

    @cached_property
    def heldout(self) -> ImageFeatures:
        """Of all held-out images."""
        return self._compute("held-out", self._data.heldout)

    @cached_property
    def training(self) -> ImageFeatures:
        """Of the first `probe.max_train_images` training images that have a class or a mask."""
        labelled = [one for one in self._data.training if one.class_name is not None or one.mask is not None]
        return self._compute("training", labelled[: self._spec.probe.max_train_images])

    def _compute(self, side: str, samples: list[Labelled]) -> ImageFeatures:
        computed = ImageFeatures(self._loaded, samples, self._spec.batch_images)
        if num_skipped := len(samples) - len(computed.samples):
            self.skipped[f"{side} images that cannot be decoded"] = num_skipped
        return computed
