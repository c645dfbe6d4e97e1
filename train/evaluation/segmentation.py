"""A linear probe on patch features that says the class of every pixel, where masks exist.

Shape legend: N training images, B images of a batch, P = R x K patches of a grid, D feature width, C classes,
H x W pixels of a mask.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from model import LoadedModel
from model.processing_genlip import DAMAGED_FILE_ERRORS
from train.evaluation.features import Features, ImageFeatures
from train.evaluation.probes import patch_statistics, train_probe
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData
from train.evaluation.spec import EvalSpec

NOT_COUNTED = 255
NO_LABEL = -100

Mask = NDArray[np.uint8]


class PatchClassifier(nn.Module):
    """One linear layer on standardised patch features."""

    def __init__(self, mean_D: Tensor, std_D: Tensor, num_classes: int) -> None:
        super().__init__()
        self.mean_D, self.std_D = mean_D, std_D
        self.weight_DC = nn.Parameter(torch.zeros(len(mean_D), num_classes))
        self.bias_C = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Logits [B, P, C]."""
        return (x_BPD - self.mean_D) / self.std_D @ self.weight_DC + self.bias_C


@dataclass(frozen=True)
class TrainingPatches:
    """Training images with the class of each of their patches."""

    rows_N: Tensor
    """Of the features."""
    labels: list[Tensor]
    """int64 [P] each; NO_LABEL where a patch has no counted pixel."""
    pixels_C: NDArray[np.int64]
    """Counted pixels of every class; classes are 0 to the largest number in a training mask."""


def segmentation(loaded: LoadedModel, data: EvalData, spec: EvalSpec, features: Features) -> Part:
    """Mean intersection over union and pixel accuracy on held-out masks; chance says the most frequent class always."""
    if not any(one.mask for one in data.heldout) or not any(one.mask for one in data.training):
        return Part(notes=["segmentation is left out: training and held-out images need masks, and some have none"])
    training = _read_training(features.training)
    if (training.pixels_C > 0).sum() < 2:
        return Part(notes=["segmentation is left out: the training masks have fewer than two classes"])
    probe = _train(features.training, training, spec.probe.epochs)
    majority = int(training.pixels_C.argmax())
    rows, predicted, always = [], [], []
    for row, mask in _read_masks(features.heldout):
        with torch.no_grad():
            logits_1PC = probe(features.heldout.patches([row])[0])
        guess = pixel_classes(logits_1PC[0], features.heldout.grids[row], mask.shape)
        num_classes = max(len(training.pixels_C), _largest(mask) + 1)
        rows.append(row)
        predicted.append(count_pixels(mask, guess, num_classes))
        always.append(count_pixels(mask, np.full_like(mask, majority), num_classes))
    return _summarise(features.heldout, rows, predicted, always, len(training.rows_N))


def count_pixels(mask: Mask, predicted: Mask, num_classes: int) -> NDArray[np.int64]:
    """Counted pixels by class and prediction, [C, C]."""
    is_counted = mask != NOT_COUNTED
    pair = mask[is_counted].astype(np.int64) * num_classes + predicted[is_counted]
    return np.bincount(pair, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(pixels_CC: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of every class, [C]; NaN for one that is nowhere, neither true nor predicted."""
    both_C = np.diag(pixels_CC)
    either_C = pixels_CC.sum(axis=0) + pixels_CC.sum(axis=1) - both_C
    return np.where(either_C > 0, both_C / np.maximum(either_C, 1), np.nan)


def pixel_classes(logits_PC: Tensor, grid: tuple[int, int], size_px: tuple[int, ...]) -> Mask:
    """The likeliest class of every pixel, [H, W]: logits of patches, bilinearly enlarged to that (height, width)."""
    logits_1CRK = torch.unflatten(logits_PC.T, 1, grid).unsqueeze(0)
    enlarged_CHW = F.interpolate(logits_1CRK, size=size_px, mode="bilinear")[0]
    classes: Mask = enlarged_CHW.argmax(dim=0).to(torch.uint8).numpy()
    return classes


def _read_masks(images: ImageFeatures) -> Iterator[tuple[int, Mask]]:
    """Row and mask [H, W] of the images that have one with a counted pixel."""
    for row, one in enumerate(images.samples):
        mask = _decode(one.mask) if one.mask else None
        if mask is not None and (mask != NOT_COUNTED).any():
            yield row, mask


def _decode(content: bytes) -> Mask | None:
    """Class numbers [H, W]; None if the file is damaged or has no single 8-bit number per pixel."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image) if image.mode in ("L", "P") else None
    except DAMAGED_FILE_ERRORS:
        return None


def _largest(mask: Mask) -> int:
    return int(mask[mask != NOT_COUNTED].max())


def _read_training(images: ImageFeatures) -> TrainingPatches:
    rows: list[int] = []
    labels: list[Tensor] = []
    pixels_C = np.zeros(NOT_COUNTED, np.int64)
    for row, mask in _read_masks(images):
        rows.append(row)
        labels.append(patch_labels(mask, images.grids[row]))
        pixels_C += np.bincount(mask[mask != NOT_COUNTED], minlength=NOT_COUNTED)
    num_classes = int(np.flatnonzero(pixels_C).max(initial=-1)) + 1
    return TrainingPatches(torch.tensor(rows), labels, pixels_C[:num_classes])


def patch_labels(mask: Mask, grid: tuple[int, int]) -> Tensor:
    """The most frequent counted class of every patch, int64 [P]; NO_LABEL for a patch without a counted pixel."""
    (num_rows, num_columns), (height, width) = grid, mask.shape
    row_H = np.arange(height) * num_rows // height
    column_W = np.arange(width) * num_columns // width
    patch_HW = row_H[:, None] * num_columns + column_W
    is_counted = mask != NOT_COUNTED
    num_classes = int(mask[is_counted].max(initial=0)) + 1
    pair = patch_HW[is_counted] * num_classes + mask[is_counted]
    pixels_PC = np.bincount(pair, minlength=num_rows * num_columns * num_classes).reshape(-1, num_classes)
    return torch.from_numpy(np.where(pixels_PC.any(axis=1), pixels_PC.argmax(axis=1), NO_LABEL))


def _train(images: ImageFeatures, training: TrainingPatches, epochs: int) -> PatchClassifier:
    probe = PatchClassifier(*patch_statistics(images, training.rows_N), len(training.pixels_C))

    def loss_of(batch: Tensor) -> Tensor:
        x_BPD, _ = images.patches(training.rows_N[batch])
        labels = [training.labels[number] for number in batch.tolist()]
        labels_BP = pad_sequence(labels, batch_first=True, padding_value=NO_LABEL)
        return F.cross_entropy(probe(x_BPD).flatten(0, 1), labels_BP.flatten(), ignore_index=NO_LABEL)

    train_probe(probe, loss_of, len(training.rows_N), epochs, len(probe.mean_D))
    return probe


def _summarise(
    heldout: ImageFeatures,
    rows: list[int],
    predicted: list[NDArray[np.int64]],
    always: list[NDArray[np.int64]],
    num_training: int,
) -> Part:
    if not rows:
        return Part(notes=["segmentation is left out: no held-out image has a readable mask"])
    num_classes = max(len(one) for one in predicted)
    total, chance = _sum(predicted, num_classes), _sum(always, num_classes)
    iou_C = intersection_over_union(total)
    accuracies = [_pixel_accuracy(one) for one in predicted]
    accuracy = Metric(float(np.mean(accuracies)), chance=float(np.mean([_pixel_accuracy(one) for one in always])))
    miou = Metric(float(np.nanmean(iou_C)), chance=float(np.nanmean(intersection_over_union(chance))))
    num_masks = sum(one.mask is not None for one in heldout.samples)
    unread = num_masks - len(rows)
    return Part(
        metrics={"segmentation/miou": miou, "segmentation/pixel_accuracy": accuracy},
        per_image={"segmentation/pixel_accuracy": heldout.per_image(rows, accuracies)},
        details={
            "segmentation/iou_by_class": [None if np.isnan(iou) else float(iou) for iou in iou_C],
            "segmentation/num_images": len(rows),
            "segmentation/num_training_images": num_training,
        },
        notes=[f"segmentation: {unread} held-out masks are unreadable or have no counted pixel"] if unread else [],
    )


def _pixel_accuracy(pixels_CC: NDArray[np.int64]) -> float:
    return float(np.trace(pixels_CC) / pixels_CC.sum())


def _sum(tables: list[NDArray[np.int64]], num_classes: int) -> NDArray[np.int64]:
    """Tables of fewer classes are filled up with 0."""
    total = np.zeros((num_classes, num_classes), np.int64)
    for table in tables:
        total[: len(table), : len(table)] += table
    return total
