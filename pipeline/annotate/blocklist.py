"""`blocklist`: captions that contain a word or phrase of a list."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import pyarrow as pa
from pydantic import model_validator

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.annotate.caption import IDEOGRAPHS, MARKS, SYLLABLES
from pipeline.errors import UserError
from pipeline.store import open_fs

_ASCII_TOKEN = re.compile(r"[a-z0-9]+")
_TOKEN = re.compile(f"[{IDEOGRAPHS}{SYLLABLES}]|(?:[^\\W_{IDEOGRAPHS}{SYLLABLES}]|[{MARKS}])+")


@annotator("blocklist")
class Blocklist(Annotator):
    """The first entry of a list that a caption contains as whole words, whatever their case, width and punctuation.

    Where a script puts no space between words, an entry is found anywhere in the text. The file is read once in a
    process.
    """

    needs_sample: ClassVar[bool] = False
    batch_samples: ClassVar[int] = 1024

    words: tuple[str, ...] = ()
    """Words and phrases."""
    file: str | None = None
    """Path or URL of a text file with more of them, one a line."""
    column: str = "blocked_word"

    @model_validator(mode="after")
    def _has_entries(self) -> "Blocklist":
        if not self.words and self.file is None:
            raise ValueError("give `words` or a `file`")
        return self

    def columns(self) -> dict[str, pa.DataType]:
        """The entry as the list has it, or null."""
        return {self.column: pa.string()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        listed = _phrases(self.words, self.file)
        return {self.column: [listed.find(caption) for caption in batch.captions]}

    def state(self) -> str:
        return hashlib.sha256(_read(self.file)).hexdigest() if self.file is not None else ""


@dataclass(frozen=True)
class _Phrases:
    entries: dict[str, str]
    """The entries as written, by their tokens with a space between."""
    lengths: dict[str, tuple[int, ...]]
    """By first token: how many tokens the entries that begin so have, the longest first."""

    def find(self, text: str) -> str | None:
        tokens = _tokens(text)
        if self.lengths.keys().isdisjoint(tokens):
            return None
        for start, token in enumerate(tokens):
            for length in self.lengths.get(token, ()):
                entry = self.entries.get(" ".join(tokens[start : start + length]))
                if entry is not None:
                    return entry
        return None


def _tokens(text: str) -> list[str]:
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    # Case folding may undo the normal form, so that it comes before as well as after.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _TOKEN.findall(folded)


@lru_cache(maxsize=16)
def _phrases(words: tuple[str, ...], file: str | None) -> _Phrases:
    lines = [] if file is None else _read(file).decode("utf-8-sig").splitlines()
    entries: dict[str, str] = {}
    lengths: dict[str, set[int]] = {}
    for entry in (*words, *(line.strip() for line in lines)):
        tokens = _tokens(entry)
        if tokens:
            entries.setdefault(" ".join(tokens), entry)
            lengths.setdefault(tokens[0], set()).add(len(tokens))
    return _Phrases(entries, {first: tuple(sorted(some, reverse=True)) for first, some in lengths.items()})


@lru_cache(maxsize=16)
def _read(file: str) -> bytes:
    fs, path = open_fs(file)
    try:
        return bytes(fs.cat_file(path))
    except OSError as error:
        next_step = "correct curate.annotate: blocklist: file"
        raise UserError("the block list cannot be read", where=file, why=str(error), next_step=next_step) from error
