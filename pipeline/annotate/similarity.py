"""`evaluation_similarity`: how near a stored image comes to an evaluation set in the eyes of a model of yours."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.annotator import Batch, Column, annotator
from pipeline.annotate.embedding import ImageEmbedder, file_sha256
from pipeline.annotate.evaluation import evaluation_images, sets_fingerprint


@annotator("evaluation_similarity")
class EvaluationSimilarity(ImageEmbedder):
    """The nearest image of the evaluation sets by the cosine of embeddings: finds crops, filters and other scans that
    perceptual hashes miss. Write the rule yourself, as in `eval_cosine < 0.6`; the threshold is the model's.

    All embeddings of the sets are in the memory of each process (a million of 512 numbers: 2 GB), and each image is
    compared with all of them.
    """

    sets: dict[str, str]
    """Evaluation sets by name: a store, or a folder or URL of images."""

    def columns(self) -> dict[str, pa.DataType]:
        """`eval_cosine`, -1 to 1, to the nearest image, which `eval_nearest` names as SET/IMAGE."""
        return {"eval_cosine": pa.float32(), "eval_nearest": pa.string()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        names, known_MD = _embedded_sets(self.model_dump_json())
        cosine_NM = self.embed_images(batch.images) @ known_MD.T
        nearest_N = cosine_NM.argmax(axis=1)
        return {
            "eval_cosine": cosine_NM[np.arange(len(batch)), nearest_N],
            "eval_nearest": [names[place] for place in nearest_N.tolist()],
        }

    def state(self) -> str:
        return hashlib.sha256(f"{file_sha256(self.image_model)} {sets_fingerprint(self.sets)}".encode()).hexdigest()


@lru_cache(maxsize=2)
def _embedded_sets(parameters: str) -> tuple[list[str], NDArray[np.float32]]:
    """SET/IMAGE and unit vector of every readable image of the sets, [M, D]."""
    asked = EvaluationSimilarity.model_validate_json(parameters)
    names, vectors = [], []
    for set_name, url in asked.sets.items():
        for image_name, body in evaluation_images(set_name, url):
            bgr = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
            names.append(f"{set_name}/{image_name}")
            vectors.append(asked.embed_images([np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)]))
    return names, np.concatenate(vectors)
