"""Text to token ids: what the model needs of a tokenizer, and two that provide it."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from .errors import ModelError

DEFAULT_PROMPT = "Describe the image in detail."
END_TOKEN = "<|im_end|>"
SIDECAR = "genlip_tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"


class Tokenizer(Protocol):
    """What training, generation and scoring use of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; the model's vocab_size must be at least this."""

    @property
    def prompt_ids(self) -> list[int]:
        """Ids of the prompt that stands between image and caption."""

    @property
    def ending_ids(self) -> list[int]:
        """The two ids that end every caption: <|im_end|> and a newline."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides how text becomes ids, the prompt included."""

    def encode(self, text: str) -> list[int]:
        """Ids of the stripped text. Special tokens are never added, nor recognised inside the text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens; ids that only the model's larger vocabulary has give nothing."""

    def save(self, folder: Path | str) -> None:
        """Writes the files that `load_tokenizer` reads."""


class SentencePieceTokenizer:
    """A unigram tokenizer with byte fallback, trained on the captions at hand.

    <|im_end|> and the prompt sentence are control symbols: each is one id, and no text ever encodes to it.
    """

    def __init__(self, model_proto: bytes, prompt: str) -> None:
        self._model_proto = model_proto
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        self.prompt = prompt
        self.vocab_size: int = self._processor.get_piece_size()
        self.prompt_ids = [self._symbol_id(prompt)]
        self.ending_ids = [self._symbol_id(END_TOKEN), self._symbol_id("\n")]
        self.fingerprint = _fingerprint(model_proto, prompt)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, prompt: str = DEFAULT_PROMPT) -> "SentencePieceTokenizer":
        """Trains on captions; the same captions in the same order give the same tokenizer.

        `vocab_size` is a ceiling: captions with few different words give fewer ids (read `tokenizer.vocab_size`).

        Raises:
            ModelError: no text at all, or a `vocab_size` too small for the bytes and characters.
        """
        prompt = prompt.strip()
        if not prompt or prompt == END_TOKEN:
            raise ModelError(f"tokenizer: the prompt must be a sentence, got {prompt!r}")
        lines = (line for caption in captions if (line := caption.strip()))
        proto = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=proto,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                byte_fallback=True,
                # Lossless: no Unicode folding, no squeezing of spaces.
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                control_symbols=[END_TOKEN, prompt],
                user_defined_symbols=["\n"],
                bos_id=-1,
                eos_id=-1,
                max_sentence_length=1 << 16,
                # Part of the result: sums are taken per thread.
                num_threads=4,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ModelError(
                f"tokenizer: cannot train {vocab_size} ids on these captions ({error}); the captions must not be"
                " empty, and vocab_size must hold 256 bytes, 4 symbols and every frequent character"
            ) from error
        return cls(proto.getvalue(), prompt)

    def encode(self, text: str) -> list[int]:
        """Ids of the stripped text, without special tokens."""
        ids: list[int] = self._processor.encode(text.strip())
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; <|im_end|> and the prompt decode to nothing."""
        text: str = self._processor.decode([int(i) for i in ids if 0 <= i < self.vocab_size])
        return text.strip()

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.model and a sidecar with the prompt."""
        (Path(folder) / SENTENCEPIECE_FILE).write_bytes(self._model_proto)
        _write_sidecar(folder, "sentencepiece", self.prompt)

    def _symbol_id(self, symbol: str) -> int:
        index: int = self._processor.piece_to_id(symbol)
        if self._processor.id_to_piece(index) != symbol:
            raise ModelError(f"tokenizer: the model has no symbol {symbol!r}; train it with this prompt")
        return index


class HFTokenizer:
    """A Hugging Face tokenizer in Qwen's layout: captions end with <|im_end|> and a newline."""

    def __init__(self, name_or_path: str | Path, prompt: str = DEFAULT_PROMPT) -> None:
        self._tokenizer = _load_transformers_tokenizer(str(name_or_path))
        self.prompt = prompt.strip()
        self.vocab_size = len(self._tokenizer)
        self.prompt_ids = self.encode(self.prompt)
        newline_ids = self._tokenizer.encode("\n", add_special_tokens=False)
        end_id = self._tokenizer.get_vocab().get(END_TOKEN)
        if end_id is None or len(newline_ids) != 1:
            raise ModelError(
                f"tokenizer {name_or_path}: needs {END_TOKEN} and a newline as single tokens, as Qwen's tokenizers"
                " have; choose one of those, or train a SentencePieceTokenizer"
            )
        self.ending_ids = [int(end_id), int(newline_ids[0])]
        content = self._tokenizer.backend_tokenizer.to_str().encode()
        self.fingerprint = _fingerprint(content, self.prompt)

    def encode(self, text: str) -> list[int]:
        """Ids of the stripped text, without special tokens."""
        ids = self._tokenizer.encode(text.strip(), add_special_tokens=False, split_special_tokens=True)
        return [int(i) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        text: str = self._tokenizer.decode(known, skip_special_tokens=True)
        return text.strip()

    def save(self, folder: Path | str) -> None:
        """Writes the tokenizer's own files and a sidecar with the prompt."""
        self._tokenizer.save_pretrained(str(folder))
        _write_sidecar(folder, "hf", self.prompt)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Reads what `save` wrote, or a plain Hugging Face tokenizer folder (with the default prompt).

    Raises:
        ModelError: the folder holds no tokenizer, or one whose files are missing or damaged.
    """
    sidecar = Path(folder) / SIDECAR
    if sidecar.exists():
        try:
            settings = json.loads(sidecar.read_text(encoding="utf-8"))
            kind, prompt = settings["kind"], settings["prompt"]
            if kind == "sentencepiece":
                return SentencePieceTokenizer((Path(folder) / SENTENCEPIECE_FILE).read_bytes(), prompt)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise ModelError(f"the tokenizer of {folder} does not load ({error}); copy its files again") from error
        return HFTokenizer(folder, prompt)
    if (Path(folder) / "tokenizer.json").exists():
        return HFTokenizer(folder)
    raise ModelError(f"{folder} holds no tokenizer ({SIDECAR} or tokenizer.json); save one there with tokenizer.save")


def _write_sidecar(folder: Path | str, kind: str, prompt: str) -> None:
    text = json.dumps({"kind": kind, "prompt": prompt}, indent=2)
    (Path(folder) / SIDECAR).write_text(text + "\n", encoding="utf-8")


def _fingerprint(content: bytes, prompt: str) -> str:
    digest = hashlib.sha256(content)
    digest.update(b"\0" + prompt.encode())
    return digest.hexdigest()


def _load_transformers_tokenizer(name_or_path: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelError("Hugging Face tokenizers need transformers; run: pip install 'transformers>=5,<6'") from error
    try:
        return AutoTokenizer.from_pretrained(name_or_path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as not_local:
        if Path(name_or_path).exists():
            raise ModelError(f"tokenizer {name_or_path}: the folder does not load ({not_local})") from not_local
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"tokenizer {name_or_path}: neither a folder nor downloadable ({error}); check the name, or pass a folder"
            " written by save_pretrained"
        ) from error
