"""Classifiers on frozen features: a linear one on pooled features and an attentive one on patch features.

Shape legend: N training images, M held-out images, B images of a batch, P patches, D feature width, C classes,
H heads, K channels of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import LoadedModel
from train.evaluation.features import Features, ImageFeatures
from train.evaluation.labels import Labels, read_labels
from train.evaluation.ranking import class_ranks
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData
from train.evaluation.spec import EvalSpec

SEED = 0
L2_GRID = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Weight of |W|^2 / 2 beside the mean cross entropy, strongest first."""
VALIDATION_SHARE = 0.2
"""Of the training images, to choose among L2_GRID."""
BATCH_IMAGES = 64
LOGIT_STEP = 0.5
"""The learning rate times the width: a step of AdamW then moves a logit alike at every width."""
WEIGHT_DECAY = 0.1
MIN_STEPS = 500
"""Of AdamW, so that a few hundred images are not left before they are learned."""
STATISTICS_IMAGES = 64
"""Training images whose patches give the mean and deviation that patch features are standardised by."""


def probe(loaded: LoadedModel, data: EvalData, spec: EvalSpec, features: Features) -> Part:
    """Accuracy of both probes on the held-out images; last-layer features, one view per image."""
    labels = read_labels(features)
    if labels.problem:
        return Part(notes=[f"probe is left out: {labels.problem}"])
    linear_MC, l2 = linear_logits(
        features.training.pooled_ND[labels.train_rows_N],
        labels.train_class_N,
        features.heldout.pooled_ND[labels.heldout_rows_M],
        len(labels.class_names),
    )
    attentive_MC = _attentive_logits(features, labels, loaded.model.config.num_attention_heads, spec.probe.epochs)
    part = Part(
        details={
            "probe/num_classes": len(labels.class_names),
            "probe/num_training_images": len(labels.train_rows_N),
            "probe/num_images": len(labels.heldout_rows_M),
            "probe/majority_class": labels.majority,
            "probe/linear_l2": l2,
        },
        notes=[f"probe: {note}" for note in labels.notes],
    )
    for name, logits_MC, k in (
        ("linear_top1", linear_MC, 1),
        ("linear_top5", linear_MC, 5),
        ("attentive_top1", attentive_MC, 1),
    ):
        _add_accuracy(part, f"probe/{name}", logits_MC, k, labels, features.heldout)
    return part


def linear_logits(train_ND: Tensor, class_N: Tensor, query_MD: Tensor, num_classes: int) -> tuple[Tensor, float]:
    """Multinomial logistic regression on standardised features: logits of the queries [M, C], and the L2 chosen.

    The L2 is the one with the lowest cross entropy on a fifth of the training images; the fit is then on all of them.

    Args:
        train_ND: Features of training images, at least two.
        class_N: Their classes, int64.
        query_MD: Features to classify.
        num_classes: C.
    """
    mean_D, std_D = _mean_std(train_ND)
    train_ND, query_MD = (train_ND - mean_D) / std_D, (query_MD - mean_D) / std_D
    order_N = torch.randperm(len(train_ND), generator=torch.Generator().manual_seed(SEED))
    num_validation = max(1, round(VALIDATION_SHARE * len(train_ND)))
    validation, rest = order_N[:num_validation], order_N[num_validation:]
    model = _zeros(train_ND.shape[1], num_classes)
    losses: list[float] = []
    for l2 in L2_GRID:
        # Each fit begins where the one before ended.
        model = _fit_linear(train_ND[rest], class_N[rest], model, l2)
        losses.append(float(F.cross_entropy(_linear(train_ND[validation], model), class_N[validation])))
    best = L2_GRID[losses.index(min(losses))]
    model = _fit_linear(train_ND, class_N, _zeros(train_ND.shape[1], num_classes), best)
    return _linear(query_MD, model), best


class AttentiveProbe(nn.Module):
    """Cross attention of one learned query per head to an image's patches, then a linear classifier.

    With a single query the key projection only multiplies it from the left, so it is part of the query here, and
    values are projected after pooling: the same functions for a fraction of the work. At the beginning the query is 0,
    which pools by the mean, and so is the classifier.
    """

    def __init__(self, mean_D: Tensor, std_D: Tensor, num_heads: int, num_classes: int) -> None:
        super().__init__()
        width = len(mean_D)
        self.mean_D, self.std_D = mean_D, std_D
        generator = torch.Generator().manual_seed(SEED)
        value_HDK = torch.randn(num_heads, width, width // num_heads, generator=generator) / width**0.5
        self.query_HD = nn.Parameter(torch.zeros(num_heads, width))
        self.value_HDK = nn.Parameter(value_HDK)
        self.weight_DC, self.bias_C = map(nn.Parameter, _zeros(width, num_classes))

    def forward(self, x_BPD: Tensor, is_patch_BP: Tensor) -> Tensor:
        """Logits [B, C] of batches as `ImageFeatures.patches` gives them."""
        x_BPD = (x_BPD - self.mean_D) / self.std_D
        scores_BHP = self.query_HD @ x_BPD.transpose(1, 2) / len(self.mean_D) ** 0.5
        weight_BHP = scores_BHP.masked_fill(~is_patch_BP.unsqueeze(1), -torch.inf).softmax(dim=-1)
        pooled_BHD = weight_BHP @ x_BPD
        value_BHK = torch.einsum("bhd,hdk->bhk", pooled_BHD, self.value_HDK)
        return value_BHK.flatten(1) @ self.weight_DC + self.bias_C


def train_probe(
    probe: nn.Module, loss_of: Callable[[Tensor], Tensor], num_images: int, epochs: int, width: int
) -> None:
    """AdamW with a cosine schedule on batches of images in an order drawn from a fixed seed.

    Args:
        probe: What is trained, in place.
        loss_of: The mean loss of the training images with these numbers, [B].
        num_images: N.
        epochs: Passes over them; more if that makes fewer than MIN_STEPS steps.
        width: D.
    """
    generator = torch.Generator().manual_seed(SEED)
    epoch_steps = -(-num_images // BATCH_IMAGES)
    epochs = max(epochs, -(-MIN_STEPS // epoch_steps))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LOGIT_STEP / width, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * epoch_steps)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(num_images, generator=generator), BATCH_IMAGES):
            optimizer.zero_grad()
            loss_of(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def patch_statistics(features: ImageFeatures, rows_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the patch features of the first images, [D] each."""
    x_BPD, is_patch_BP = features.patches(rows_N[:STATISTICS_IMAGES])
    return _mean_std(x_BPD[is_patch_BP])


def _attentive_logits(features: Features, labels: Labels, num_heads: int, epochs: int) -> Tensor:
    """[M, C]."""
    training, rows_N = features.training, labels.train_rows_N
    probe = AttentiveProbe(*patch_statistics(training, rows_N), num_heads, len(labels.class_names))

    def loss_of(batch: Tensor) -> Tensor:
        return F.cross_entropy(probe(*training.patches(rows_N[batch])), labels.train_class_N[batch])

    train_probe(probe, loss_of, len(rows_N), epochs, len(probe.mean_D))
    with torch.no_grad():
        some = torch.split(labels.heldout_rows_M, BATCH_IMAGES)
        return torch.cat([probe(*features.heldout.patches(rows)) for rows in some])


def _add_accuracy(part: Part, name: str, logits_MC: Tensor, k: int, labels: Labels, heldout: ImageFeatures) -> None:
    hit_M = class_ranks(logits_MC.double().numpy(), labels.heldout_class_M.numpy()) <= k
    num_classes = len(labels.class_names)
    part.metrics[name] = Metric(float(hit_M.mean()), chance=min(k, num_classes) / num_classes)
    part.per_image[name] = heldout.per_image(labels.heldout_rows_M, hit_M)


def _mean_std(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Of every channel; a constant one gets a deviation of 1."""
    std_D = x_ND.std(dim=0, correction=0)
    return x_ND.mean(dim=0), torch.where(std_D > 1e-6, std_D, 1.0)


Linear = tuple[Tensor, Tensor]


def _zeros(width: int, num_classes: int) -> Linear:
    return torch.zeros(width, num_classes), torch.zeros(num_classes)


def _linear(x_ND: Tensor, model: Linear) -> Tensor:
    return x_ND @ model[0] + model[1]


def _fit_linear(x_ND: Tensor, class_N: Tensor, start: Linear, l2: float) -> Linear:
    """Minimises the mean cross entropy + l2 |W|^2 / 2 by L-BFGS; the bias is free."""
    weight_DC, bias_C = (one.clone().requires_grad_() for one in start)
    optimizer = torch.optim.LBFGS([weight_DC, bias_C], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(_linear(x_ND, (weight_DC, bias_C)), class_N) + l2 / 2 * weight_DC.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight_DC.detach(), bias_C.detach()
