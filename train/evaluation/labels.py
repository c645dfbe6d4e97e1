"""Which images have a class, as probes and nearest neighbours need it.

Shape legend: N training images with a class, M held-out images with a class that is known from training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from train.evaluation.features import Features


@dataclass(frozen=True)
class Labels:
    """Images with a class: their rows in the features and the number of their class."""

    class_names: list[str]
    """Of the training images, in alphabetical order."""
    train_rows_N: Tensor
    train_class_N: Tensor
    heldout_rows_M: Tensor
    heldout_class_M: Tensor
    num_unknown: int
    """Held-out images whose class no training image has; they are left out."""

    @property
    def problem(self) -> str:
        """Why nothing can be measured; empty if it can."""
        if len(self.class_names) < 2:
            return f"the training images have {len(self.class_names)} classes, and two are needed"
        return "" if len(self.heldout_rows_M) else "no held-out image has a class that training images have"

    @property
    def notes(self) -> list[str]:
        """What was left out."""
        if not self.num_unknown:
            return []
        return [f"{self.num_unknown} held-out images are left out: no training image has their class"]

    @property
    def majority(self) -> float:
        """Accuracy of always saying the most frequent class of the training images."""
        return float((self.heldout_class_M == self.train_class_N.mode().values).float().mean())


def read_labels(features: Features) -> Labels:
    """The classes of the images that have features."""
    training, heldout = features.training.samples, features.heldout.samples
    names = sorted({one.class_name for one in training if one.class_name is not None})
    numbers = {name: number for number, name in enumerate(names)}
    train_rows = [row for row, one in enumerate(training) if one.class_name is not None]
    labelled = [row for row, one in enumerate(heldout) if one.class_name is not None]
    heldout_rows = [row for row in labelled if heldout[row].class_name in numbers]
    return Labels(
        class_names=names,
        train_rows_N=torch.tensor(train_rows, dtype=torch.long),
        train_class_N=torch.tensor([numbers[training[row].class_name or ""] for row in train_rows], dtype=torch.long),
        heldout_rows_M=torch.tensor(heldout_rows, dtype=torch.long),
        heldout_class_M=torch.tensor([numbers[heldout[row].class_name or ""] for row in heldout_rows]).long(),
        num_unknown=len(labelled) - len(heldout_rows),
    )
