"""What annotators with an ONNX model share: loading it, its preprocessing of images, the fingerprint of its file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotate.annotator import Annotator
from pipeline.annotate.missing import missing_package
from pipeline.errors import UserError
from pipeline.store import open_fs

_AT_A_TIME = 16
"""Inputs in one run of a model, whatever the size of the batch that the run's other annotators ask for."""
_CHUNK_BYTES = 1 << 24
_NUMPY_TYPES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


class ImageEmbedder(Annotator):
    """Base of annotators that embed images. The defaults of the preprocessing are those of OpenAI's CLIP."""

    image_model: str
    """Path or URL of an ONNX file with its weights inside: one input, float32 [N, 3, size_px, size_px];
    first output, [N, D]."""
    size_px: Annotated[int, Field(ge=1)] = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit vectors of RGB images, [N, D]."""
        session = onnx_session(self.image_model)
        parts = [
            session.embed(np.stack([self._pixels(image) for image in images[start : start + _AT_A_TIME]]))
            for start in range(0, len(images), _AT_A_TIME)
        ]
        return unit_vectors(np.concatenate(parts))

    def _pixels(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The square centre of the image, normalised: [3, size_px, size_px]."""
        height, width = rgb.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        # Averaging pixels is closest to the antialiased bicubic filter that CLIP was trained with.
        filter_ = cv2.INTER_AREA if side > self.size_px else cv2.INTER_CUBIC
        square = rgb[top : top + side, left : left + side]
        small = cv2.resize(square, (self.size_px, self.size_px), interpolation=filter_).astype(np.float32) / 255
        normalised = (small - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.asarray(normalised.transpose(2, 0, 1))


def unit_vectors(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions with length 1, [N, D]; a null vector stays one."""
    return np.asarray(x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12), np.float32)


@dataclass(frozen=True)
class OnnxSession:
    """An ONNX model on one thread."""

    run: Any
    types: dict[str, str]
    """By the names of its inputs."""

    def embed(self, inputs: NDArray[Any], mask: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """The first output, [N, D]. `mask` goes to the input `attention_mask`, where the model has one."""
        feeds = {
            name: (mask if name == "attention_mask" and mask is not None else inputs).astype(
                _NUMPY_TYPES.get(kind, np.float32)
            )
            for name, kind in self.types.items()
        }
        return np.asarray(self.run(None, feeds)[0], np.float32)


@lru_cache(maxsize=4)
def onnx_session(file: str) -> OnnxSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("an annotator", "onnxruntime", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(read_file(file), options, providers=["CPUExecutionProvider"])
    return OnnxSession(session.run, {one.name: one.type for one in session.get_inputs()})


def read_file(file: str) -> bytes:
    fs, path = open_fs(file)
    try:
        return bytes(fs.cat_file(path))
    except OSError as error:
        raise _unreadable(file, error) from error


@lru_cache(maxsize=16)
def file_sha256(file: str) -> str:
    fs, path = open_fs(file)
    digest = hashlib.sha256()
    try:
        with fs.open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise _unreadable(file, error) from error
    return digest.hexdigest()


def _unreadable(file: str, error: OSError) -> UserError:
    next_step = "correct the path in curate.annotate"
    return UserError("a file of the model cannot be read", where=file, why=str(error), next_step=next_step)
