"""The recipe's eval section: what is measured, on how many images, and how often during training."""

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from pipeline.section import Section
from train.samples import Samples

Task = Literal[
    "language", "zero_shot", "retrieval", "captioning", "probe", "knn", "segmentation", "readout", "attention"
]
TASKS: tuple[Task, ...] = get_args(Task)


class ProbeSpec(Section):
    """Classifiers trained on frozen features; see `train.evaluation.probes`."""

    max_train_images: Annotated[int, Field(ge=2)] = 2_000
    """Labelled training images whose features are computed; k-NN and segmentation use them too."""
    epochs: Annotated[int, Field(ge=1)] = 20
    """Of the attentive probe and the segmentation probe; the linear probe is solved to the end."""


class EvalSpec(Section):
    """What is measured on held-out images."""

    tasks: tuple[Task, ...] = TASKS
    """Those that a model or the data cannot do are left out, which the result says."""
    data: str = ""
    """What to measure on instead of the run's held-out shards: an ImageNet-style folder, COCO or Karpathy JSON, or a
    store; see `train/evaluation/README.md`."""
    every: Annotated[Samples, Field(ge=0)] = 0
    """Samples seen between two measurements during training, of the tasks `language` and `knn`; 0 measures none."""
    every_images: Annotated[int, Field(ge=2)] = 64
    """Held-out images of those."""
    max_images: Annotated[int, Field(ge=1)] = 256
    """Held-out images used, the same ones each time."""
    class_templates: tuple[str, ...] = ("A photo of a {}.",)
    """Captions that stand for a class in zero-shot classification; {} is the class name."""
    class_captions: Annotated[int, Field(ge=0)] = 4
    """Training captions that stand for a class in the second, caption-based classification; 0 leaves it out."""
    rerank: Annotated[int, Field(ge=1)] = 16
    """Candidates that features choose and the likelihood ranks, in two-stage retrieval."""
    batch_images: Annotated[int, Field(ge=1)] = 16
    probe: ProbeSpec = ProbeSpec()

    @field_validator("class_templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [template for template in templates if "{}" not in template]:
            raise ValueError(f"a class template needs {{}} where the class name goes: {wrong[0]!r} has none")
        return templates
