"""`clip_score`: how well image and caption agree by a CLIP-like model, two ONNX files at a path of the user's."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.annotate.overlay import mask_text
from pipeline.errors import EXIT_ENVIRONMENT, UserError
from pipeline.store import open_fs

_AT_A_TIME = 16
"""Pairs in one run of the models, whatever the size of the batch that the run's other annotators ask for."""
_CHUNK_BYTES = 1 << 24
_NUMPY_TYPES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


@annotator("clip_score")
class ClipScore(Annotator):
    """Cosine of the embeddings of image and caption (Hessel et al. 2021, "CLIPScore", without its factor 2.5).

    The defaults of the preprocessing are those of OpenAI's CLIP ViT-B and ViT-L.
    """

    batch_samples: ClassVar[int] = 64

    image_model: str
    """Path or URL of an ONNX file with its weights inside: one input, float32 [N, 3, size_px, size_px];
    first output, [N, D]."""
    text_model: str
    """Path or URL of an ONNX file: input, token ids [N, context_tokens], and `attention_mask` if it asks for one;
    first output, [N, D]."""
    tokenizer: str
    """Path or URL of a tokenizer.json (package tokenizers) or of a SentencePiece .model."""
    size_px: Annotated[int, Field(ge=1)] = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    context_tokens: Annotated[int, Field(ge=1)] = 77
    pad_token: int = 0
    """Fills the caption up to `context_tokens`."""
    mask_text: bool = False
    """Paint text over before the image is seen (T-MARS, arXiv:2307.03132)."""
    column: str = "clip_score"

    def columns(self) -> dict[str, pa.DataType]:
        """The cosine, -1 to 1, float32."""
        return {self.column: pa.float32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        image_session, text_session = _session(self.image_model), _session(self.text_model)
        encode = _encoder(self.tokenizer)
        scores_N = np.empty(len(batch), np.float32)
        for start in range(0, len(batch), _AT_A_TIME):
            chosen = slice(start, start + _AT_A_TIME)
            images_ND = image_session.embed(np.stack([self._pixels(image) for image in batch.images[chosen]]))
            texts_ND = text_session.embed(*self._tokens([encode(text) for text in batch.captions[chosen]]))
            scores_N[chosen] = _cosine(images_ND, texts_ND)
        return {self.column: scores_N}

    def state(self) -> str:
        return "-".join(_sha256(file) for file in (self.image_model, self.text_model, self.tokenizer))

    def _pixels(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The square centre of the image, normalised: [3, size_px, size_px]."""
        seen = mask_text(rgb) if self.mask_text else rgb
        height, width = seen.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        # Averaging pixels is closest to the antialiased bicubic filter that CLIP was trained with.
        filter_ = cv2.INTER_AREA if side > self.size_px else cv2.INTER_CUBIC
        square = seen[top : top + side, left : left + side]
        small = cv2.resize(square, (self.size_px, self.size_px), interpolation=filter_).astype(np.float32) / 255
        normalised = (small - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.asarray(normalised.transpose(2, 0, 1))

    def _tokens(self, ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and their mask, both [N, context_tokens]; a caption that is too long keeps its end token."""
        tokens_NT = np.full((len(ids), self.context_tokens), self.pad_token, np.int64)
        mask_NT = np.zeros_like(tokens_NT)
        for i, some in enumerate(ids):
            kept = some if len(some) <= self.context_tokens else [*some[: self.context_tokens - 1], some[-1]]
            tokens_NT[i, : len(kept)] = kept
            mask_NT[i, : len(kept)] = 1
        return tokens_NT, mask_NT


@dataclass(frozen=True)
class _Session:
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


def _cosine(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    norms_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return np.asarray((a_ND * b_ND).sum(axis=1) / np.maximum(norms_N, 1e-12), np.float32)


@lru_cache(maxsize=4)
def _session(file: str) -> _Session:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime", error, "pip install 'genlip[curate]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(_read(file), options, providers=["CPUExecutionProvider"])
    return _Session(session.run, {one.name: one.type for one in session.get_inputs()})


@lru_cache(maxsize=4)
def _encoder(file: str) -> Callable[[str], Sequence[int]]:
    """From a caption to token ids, with the special tokens of the tokenizer."""
    if file.endswith(".model"):
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=_read(file))
        return lambda text: [*processor.encode(text), processor.eos_id()]
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing("tokenizers", error, "pip install tokenizers") from error
    tokenizer = Tokenizer.from_str(_read(file).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text).ids


def _missing(package: str, error: ImportError, command: str) -> UserError:
    return UserError(
        f"the annotator 'clip_score' needs the package {package}",
        why=str(error),
        next_step=f"run: {command}",
        exit_code=EXIT_ENVIRONMENT,
    )


def _read(file: str) -> bytes:
    fs, path = open_fs(file)
    try:
        return bytes(fs.cat_file(path))
    except OSError as error:
        raise _unreadable(file, error) from error


@lru_cache(maxsize=16)
def _sha256(file: str) -> str:
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
    next_step = "correct curate.annotate: clip_score: image_model, text_model or tokenizer"
    return UserError("a file of the model cannot be read", where=file, why=str(error), next_step=next_step)
