"""`caption_tokens`: the length of each caption under a tokenizer, as training counts it."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.errors import UserError

if TYPE_CHECKING:
    from model import Tokenizer


@annotator("caption_tokens")
class CaptionTokens(Annotator):
    """Tokens of each caption, without prompt and ending."""

    tokenizer: str
    """Folder that `genlip tokenizer` wrote (RUN/tokenizer), or the name or folder of a Hugging Face tokenizer."""
    of: str = "caption"
    """Column of the ledger with the text."""
    column: str = "tokens"

    needs_sample: ClassVar[bool] = False

    def columns(self) -> dict[str, pa.DataType]:
        return {self.column: pa.int32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        from train.data.captions import num_tokens

        tokenizer, texts = _load(self.tokenizer), texts_of(batch, self.of)
        return {self.column: [None if text is None else num_tokens(tokenizer, text) for text in texts]}

    def state(self) -> str:
        return _load(self.tokenizer).fingerprint


def texts_of(batch: Batch, column: str) -> list[str | None]:
    """The texts in a column of the ledger, one per sample.

    Raises:
        UserError: The ledger has no such column of text.
    """
    known = [field.name for field in batch.rows.schema if pa.types.is_string(field.type)]
    if column not in known:
        raise UserError(
            f"the ledger has no text column {column!r}", why=f"it has {', '.join(known)}", next_step="correct `of`"
        )
    texts: list[str | None] = batch.rows[column].to_pylist()
    return texts


@lru_cache(maxsize=4)
def _load(tokenizer: str) -> "Tokenizer":
    from model import HFTokenizer, ModelError, load_tokenizer

    try:
        return load_tokenizer(tokenizer) if Path(tokenizer).is_dir() else HFTokenizer(tokenizer)
    except ModelError as error:
        next_step = "name the folder that genlip tokenizer printed, or a Hugging Face tokenizer"
        raise UserError("no tokenizer to count with", where=tokenizer, why=str(error), next_step=next_step) from error
