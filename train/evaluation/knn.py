"""Classification by the nearest training images in feature space: what features know without any training on them.

Shape legend: N training images, M queries, D feature width, C classes, k neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import LoadedModel
from train.evaluation.features import Features
from train.evaluation.labels import read_labels
from train.evaluation.result import Metric, Part
from train.evaluation.samples import EvalData
from train.evaluation.spec import EvalSpec

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Both as in DINO (Caron et al. 2021, section 4.1 and appendix)."""
QUERIES_AT_ONCE = 1024
"""Bounds the similarities held at a time."""


def knn_predict(train_ND: Tensor, class_N: Tensor, query_MD: Tensor, num_classes: int, k: int) -> Tensor:
    """The class of every query, [M]: its k nearest by cosine vote with exp(cosine / 0.07).

    Args:
        train_ND: Features whose class is known; at least one.
        class_N: Their classes, int64.
        query_MD: Features to classify.
        num_classes: C.
        k: Neighbours; all of them if there are fewer.
    """
    train_ND = F.normalize(train_ND, dim=-1)
    predicted: list[Tensor] = []
    for some_MD in torch.split(F.normalize(query_MD, dim=-1), QUERIES_AT_ONCE):
        cosine_Mk, neighbour_Mk = (some_MD @ train_ND.T).topk(min(k, len(train_ND)), dim=-1)
        vote_Mk = (cosine_Mk / TEMPERATURE).softmax(dim=-1)
        votes_MC = vote_Mk.new_zeros(len(some_MD), num_classes).scatter_add_(1, class_N[neighbour_Mk], vote_Mk)
        predicted.append(votes_MC.argmax(dim=-1))
    return torch.cat(predicted)


def knn(loaded: LoadedModel, data: EvalData, spec: EvalSpec, features: Features) -> Part:
    """Accuracy of the nearest neighbours on mean-pooled features."""
    labels = read_labels(features)
    if labels.problem:
        return Part(notes=[f"knn is left out: {labels.problem}"])
    predicted_M = knn_predict(
        features.training.pooled_ND[labels.train_rows_N],
        labels.train_class_N,
        features.heldout.pooled_ND[labels.heldout_rows_M],
        len(labels.class_names),
        NUM_NEIGHBOURS,
    )
    hit_M = (predicted_M == labels.heldout_class_M).double().numpy()
    return Part(
        metrics={"knn/top1": Metric(float(hit_M.mean()), chance=1 / len(labels.class_names))},
        per_image={"knn/top1": features.heldout.per_image(labels.heldout_rows_M, hit_M)},
        details={
            "knn/num_classes": len(labels.class_names),
            "knn/num_training_images": len(labels.train_rows_N),
            "knn/num_images": len(hit_M),
            "knn/majority_class": labels.majority,
        },
        notes=[f"knn: {note}" for note in labels.notes],
    )
