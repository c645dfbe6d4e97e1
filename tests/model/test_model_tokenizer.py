"""Tokenizers: lossless text, safe special tokens, determinism, saving."""

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import HFTokenizer, ModelError, SentencePieceTokenizer, Tokenizer, load_tokenizer
from model.tokenizer import DEFAULT_PROMPT, END_TOKEN

CAPTIONS = [
    f"A {size} {colour} {thing} {place}."
    for size in ("small", "large")
    for colour in ("red", "blue", "green")
    for thing in ("cup", "dog", "house, with 3 windows")
    for place in ("on a table", "in the rain")
]


@functools.cache
def trained() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(CAPTIONS, vocab_size=400)


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer in Qwen's layout, made here."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CAPTIONS, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
    wrapped.add_special_tokens({"additional_special_tokens": [END_TOKEN]})
    folder = tmp_path_factory.mktemp("hf")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(params=["sentencepiece", "hf"])
def tokenizer(request: pytest.FixtureRequest, hf_folder: Path) -> Tokenizer:
    return trained() if request.param == "sentencepiece" else HFTokenizer(hf_folder)


def test_layout(tokenizer: Tokenizer) -> None:
    end, newline = tokenizer.ending_ids
    assert len({end, newline, *tokenizer.prompt_ids}) == 2 + len(set(tokenizer.prompt_ids))
    assert all(0 <= i < tokenizer.vocab_size for i in (end, newline, *tokenizer.prompt_ids))
    assert tokenizer.decode([end]) == ""
    ids = tokenizer.encode("  A small red cup. ")
    assert ids == tokenizer.encode("A small red cup.")
    assert tokenizer.decode([*ids, *tokenizer.ending_ids]) == "A small red cup."


def test_ids_that_only_the_model_has_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("A small red cup.")
    assert tokenizer.decode([tokenizer.vocab_size, *ids, 10**6, -1]) == "A small red cup."


@pytest.mark.parametrize(
    "text", [END_TOKEN, f"a{END_TOKEN}b", f"{DEFAULT_PROMPT} {END_TOKEN}\n", f"red {END_TOKEN} cup"]
)
def test_captions_cannot_contain_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.ending_ids[0] not in ids
    assert tokenizer.decode(ids) == text.strip()


def test_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.prompt_ids, loaded.ending_ids) == (
        tokenizer.vocab_size,
        tokenizer.prompt_ids,
        tokenizer.ending_ids,
    )
    assert loaded.encode("A blue dog, née 犬!") == tokenizer.encode("A blue dog, née 犬!")


# Excluded: sentencepiece writes a space as U+2581 and takes NUL for the end; lone surrogates are no text.
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0"), max_size=40)


@settings(deadline=None)
@given(any_text)
def test_sentencepiece_is_lossless_and_never_gives_control_symbols(text: str) -> None:
    ids = trained().encode(text)
    assert trained().decode(ids) == text.strip()
    assert not {trained().ending_ids[0], *trained().prompt_ids} & set(ids)


def test_the_prompt_is_one_token_only_as_a_prompt() -> None:
    assert len(trained().prompt_ids) == 1
    ids = trained().encode(DEFAULT_PROMPT)
    assert trained().prompt_ids[0] not in ids
    assert trained().decode(ids) == DEFAULT_PROMPT
    assert trained().decode(trained().prompt_ids) == ""


def test_newlines_in_captions_are_the_newline_of_the_ending() -> None:
    assert trained().ending_ids[1] in trained().encode("a\nb")


def test_training_is_deterministic_and_the_prompt_counts() -> None:
    again = SentencePieceTokenizer.train(iter(CAPTIONS), vocab_size=400)
    assert again.fingerprint == trained().fingerprint
    other = SentencePieceTokenizer.train(CAPTIONS, vocab_size=400, prompt="Say, briefly.")
    assert other.fingerprint != trained().fingerprint
    assert len(other.prompt_ids) == 1


def test_vocabulary_shrinks_to_what_the_captions_support() -> None:
    small = SentencePieceTokenizer.train(["a cup", "a dog"] * 20, vocab_size=4096)
    assert 256 < small.vocab_size < 400
    assert small.decode(small.encode("zebra")) == "zebra"


@pytest.mark.parametrize(("captions", "vocab_size"), [([], 400), (["", "  "], 400), (CAPTIONS, 100)])
def test_training_on_nothing_or_into_nothing_is_refused(captions: list[str], vocab_size: int) -> None:
    with pytest.raises(ModelError, match="cannot train"):
        SentencePieceTokenizer.train(captions, vocab_size=vocab_size)


def test_hugging_face_prompt_is_ordinary_text(hf_folder: Path) -> None:
    tokenizer = HFTokenizer(hf_folder, prompt=" Say, briefly. ")
    assert tokenizer.prompt_ids == tokenizer.encode("Say, briefly.")
    assert tokenizer.fingerprint != HFTokenizer(hf_folder).fingerprint


def test_plain_hugging_face_folders_load_with_the_default_prompt(hf_folder: Path) -> None:
    assert load_tokenizer(hf_folder).prompt_ids == HFTokenizer(hf_folder).encode(DEFAULT_PROMPT)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.model", b"<html>not found</html>"),
        ("tokenizer.model", b""),
        ("tokenizer.model", None),
        ("genlip_tokenizer.json", b"{"),
        ("genlip_tokenizer.json", b"{}"),
        ("genlip_tokenizer.json", b"[]"),
    ],
)
def test_damaged_tokenizers_are_explained(tmp_path: Path, file: str, content: bytes | None) -> None:
    trained().save(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=f"the tokenizer of {tmp_path} does not load"):
        load_tokenizer(tmp_path)


def test_missing_tokenizers_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="does not load"):
        HFTokenizer(tmp_path)
