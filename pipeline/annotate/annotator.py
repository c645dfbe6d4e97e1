"""Annotators: plug-ins that compute columns from stored samples, batch by batch. The plug-in point is `annotator`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.plugins import build_from, register_in


@dataclass(frozen=True)
class Batch:
    """Some stored samples of one unit, in order: what an annotator sees. N samples."""

    rows: pa.Table
    """The ledger's columns: key, url, caption, width, height, original_width, original_height, sha256, phash …"""
    image_bytes: Sequence[bytes] = ()
    """The stored images, encoded; empty where no annotator of the run needs more than the ledger."""
    meta: Sequence[Mapping[str, Any]] = ()
    """The samples' KEY.json; empty as above."""

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def captions(self) -> list[str]:
        return [str(caption) for caption in self.rows["caption"].to_pylist()]

    @cached_property
    def images(self) -> list[NDArray[np.uint8]]:
        """The images as RGB, [height, width, 3]; decoded once for all annotators. Not to be written to.

        Raises:
            ValueError: One of them cannot be decoded; the message names its key.
        """
        decoded = []
        for key, body in zip(self.rows["key"].to_pylist(), self.image_bytes, strict=True):
            bgr = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
            if bgr is None:
                raise ValueError(f"the stored image of {key} cannot be decoded")
            decoded.append(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        return decoded

    def sample(self, index: int) -> "Batch":
        """One sample as a batch of its own."""
        return Batch(self.rows.slice(index, 1), self.image_bytes[index : index + 1], self.meta[index : index + 1])


Column = Sequence[Any] | NDArray[Any]


class Annotator(BaseModel):
    """Base of all annotators; the fields are the recipe's parameters, and together with `version` they name the result.

    What is costly to load (a model) belongs into a cached function, so that it is loaded once in each process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: ClassVar[str] = "1"
    """To be raised whenever the same parameters give other values."""
    needs_sample: ClassVar[bool] = True
    """False where the ledger's columns suffice: the raw files are not read then."""
    num_cpus: ClassVar[float] = 1
    """Cores that one process of it keeps busy."""
    num_gpus: ClassVar[float] = 0
    batch_samples: ClassVar[int] = 64
    """Samples in a batch at most. Those that need the sample share batches of the least of their numbers."""

    def columns(self) -> dict[str, pa.DataType]:
        """Names and types of the columns. A name means one thing in a recipe: let a parameter change it where one
        annotator may be used twice."""
        raise NotImplementedError

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        """One value per sample for each column; None where there is none.

        An exception costs the samples that raise it, one by one, and counts against the recipe's error budget.
        """
        raise NotImplementedError

    def state(self) -> str:
        """Fingerprint of what the parameters point at (a model's file), so that another file is another result."""
        return ""


ANNOTATORS: dict[str, type[Annotator]] = {}


def annotator(name: str) -> Callable[[type[Annotator]], type[Annotator]]:
    """Make an annotator available to recipes under `name`."""
    return register_in(ANNOTATORS, "annotator", name)


def name_of(one: Annotator) -> str:
    """The name under which an annotator is registered."""
    return next(name for name, known in ANNOTATORS.items() if known is type(one))


def build_annotator(name: str, parameters: dict[str, Any]) -> Annotator:
    """The annotator called `name`; a wrong name or parameter is a ValueError with a suggestion."""
    return build_from(ANNOTATORS, "annotator", name, parameters)
