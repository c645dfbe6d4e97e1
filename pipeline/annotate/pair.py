"""`clip_score`: how well image and caption agree by a CLIP-like model, two ONNX files at a path of the user's."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotate.annotator import Batch, Column, annotator
from pipeline.annotate.embedding import (
    ImageEmbedder,
    file_sha256,
    onnx_session,
    read_file,
    unit_vectors,
)
from pipeline.annotate.missing import missing_package
from pipeline.annotate.overlay import mask_text

_AT_A_TIME = 16
"""Captions in one run of the model."""


@annotator("clip_score")
class ClipScore(ImageEmbedder):
    """Cosine of the embeddings of image and caption (Hessel et al. 2021, "CLIPScore", without its factor 2.5).

    The defaults of the preprocessing are those of OpenAI's CLIP ViT-B and ViT-L.
    """

    text_model: str
    """Path or URL of an ONNX file: input, token ids [N, context_tokens], and `attention_mask` if it asks for one;
    first output, [N, D]."""
    tokenizer: str
    """Path or URL of a tokenizer.json (package tokenizers) or of a SentencePiece .model."""
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
        seen = [mask_text(image) for image in batch.images] if self.mask_text else batch.images
        text_session, encode = onnx_session(self.text_model), _encoder(self.tokenizer)
        texts_ND = [
            text_session.embed(*self._tokens([encode(text) for text in batch.captions[start : start + _AT_A_TIME]]))
            for start in range(0, len(batch), _AT_A_TIME)
        ]
        return {self.column: (self.embed_images(seen) * unit_vectors(np.concatenate(texts_ND))).sum(axis=1)}

    def state(self) -> str:
        return "-".join(file_sha256(file) for file in (self.image_model, self.text_model, self.tokenizer))

    def _tokens(self, ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and their mask, both [N, context_tokens]; a caption that is too long keeps its end token."""
        tokens_NT = np.full((len(ids), self.context_tokens), self.pad_token, np.int64)
        mask_NT = np.zeros_like(tokens_NT)
        for i, some in enumerate(ids):
            kept = some if len(some) <= self.context_tokens else [*some[: self.context_tokens - 1], some[-1]]
            tokens_NT[i, : len(kept)] = kept
            mask_NT[i, : len(kept)] = 1
        return tokens_NT, mask_NT


@lru_cache(maxsize=4)
def _encoder(file: str) -> Callable[[str], Sequence[int]]:
    """From a caption to token ids, with the special tokens of the tokenizer."""
    if file.endswith(".model"):
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=read_file(file))
        return lambda text: [*processor.encode(text), processor.eos_id()]
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_package("an annotator", "tokenizers", error, "pip install tokenizers") from error
    tokenizer = Tokenizer.from_str(read_file(file).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text).ids
