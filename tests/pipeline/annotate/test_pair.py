"""CLIP scores by toy models: the mean colour of an image against the mean colour of its caption's words."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from PIL import Image, ImageDraw, ImageFont

from pipeline.annotate.columns import address
from pipeline.annotate.pair import ClipScore
from pipeline.errors import UserError
from tests.onnx_files import FLOAT, INT64, node, onnx_model, value
from tests.pipeline.annotate.batches import batch_of, flat

pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
NAMES = list(COLOURS)
NORMALISED = {name: np.array(rgb, np.float32) / 127.5 - 1 for name, rgb in COLOURS.items()}
CONTEXT = 8


def image_model() -> bytes:
    nodes = [node("GlobalAveragePool", ["pixels"], "pooled"), node("Flatten", ["pooled"], "out")]
    return onnx_model(nodes, [value("pixels", FLOAT, ["n", 3, 32, 32])], value("out", FLOAT, ["n", 3]), {})


def text_model(table: np.ndarray[Any, Any], masked: bool = False) -> bytes:
    """The sum of the tokens' rows in a table; of all tokens, or of those under the mask."""
    inputs = [value("ids", INT64, ["n", CONTEXT])]
    nodes = [node("Gather", ["table", "ids"], "words")]
    if masked:
        inputs.append(value("attention_mask", INT64, ["n", CONTEXT]))
        nodes += [
            node("Equal", ["attention_mask", "zero"], "hidden"),
            node("Unsqueeze", ["hidden", "last"], "hidden_3d"),
            node("Where", ["hidden_3d", "nothing", "words"], "seen"),
        ]
    nodes.append(node("ReduceSum", ["seen" if masked else "words", "axis"], "summed"))
    nodes.append(node("Flatten", ["summed"], "out"))
    constants = {"zero": np.array(0), "last": np.array([2]), "nothing": np.zeros(1, np.float32)} if masked else {}
    weights = {"table": table.astype(np.float32), "axis": np.array([1]), **constants}
    return onnx_model(nodes, inputs, value("out", FLOAT, ["n", 3]), weights)


def word_tokenizer() -> str:
    words = {name: i for i, name in enumerate(["[PAD]", "[UNK]", *NAMES])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return str(tokenizer.to_str())


@pytest.fixture
def clip(tmp_path: Path) -> ClipScore:
    table = np.stack([np.zeros(3), np.zeros(3), *NORMALISED.values()])
    (tmp_path / "image.onnx").write_bytes(image_model())
    (tmp_path / "text.onnx").write_bytes(text_model(table))
    (tmp_path / "tokenizer.json").write_text(word_tokenizer())
    return parameters(tmp_path, "tokenizer.json")


def parameters(folder: Path, tokenizer: str, **others: Any) -> ClipScore:
    return ClipScore(
        image_model=str(folder / "image.onnx"),
        text_model=str(folder / "text.onnx"),
        tokenizer=str(folder / tokenizer),
        size_px=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        context_tokens=CONTEXT,
        **others,
    )


def scores(annotator: ClipScore, names: list[str], captions: list[str]) -> Any:
    images = [flat(40 + i, 60, COLOURS[name]) for i, name in enumerate(names)]
    return np.asarray(annotator.annotate(batch_of(images, captions))[annotator.column])


def test_matched_pairs_score_above_shuffled_ones(clip: ClipScore) -> None:
    names = NAMES * 10
    captions = [f"a {name} square" for name in names]
    matched = scores(clip, names, captions)
    shuffled = scores(clip, names, captions[1:] + captions[:1])
    assert matched == pytest.approx(np.ones(len(names)), abs=1e-5)
    assert shuffled.max() < 0.5


def test_scores_are_the_cosines_of_the_embeddings(clip: ClipScore) -> None:
    expected = [
        a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a in NORMALISED.values() for b in NORMALISED.values()
    ]
    found = scores(clip, [name for name in NAMES for _ in NAMES], NAMES * len(NAMES))
    assert found == pytest.approx(expected, abs=1e-5)


def test_long_captions_are_cut_and_keep_their_last_token(clip: ClipScore) -> None:
    (found,) = scores(clip, ["blue"], ["nothing " * 50 + "red red blue"])
    assert found == pytest.approx(1, abs=1e-5)


def test_captions_without_a_known_word_score_zero(clip: ClipScore) -> None:
    assert scores(clip, ["red", "blue"], ["", "unheard"]).tolist() == [0, 0]


def test_padding_is_hidden_from_a_model_with_a_mask(clip: ClipScore, tmp_path: Path) -> None:
    table = np.stack([NORMALISED["green"] * 9, np.zeros(3), *NORMALISED.values()])
    (tmp_path / "text.onnx").write_bytes(text_model(table, masked=True))
    assert scores(clip, ["red"], ["red"]) == pytest.approx([1], abs=1e-5)


def test_a_sentencepiece_model_serves_as_well(clip: ClipScore, tmp_path: Path) -> None:
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(NAMES * 20), model_writer=stream, model_type="word", vocab_size=7, minloglevel=2
    )
    (tmp_path / "toy.model").write_bytes(stream.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    table = np.zeros((processor.get_piece_size(), 3))
    for name in NAMES:
        table[processor.encode(name)[0]] = NORMALISED[name]
    (tmp_path / "text.onnx").write_bytes(text_model(table))
    found = scores(parameters(tmp_path, "toy.model", column="sp_score"), NAMES, NAMES)
    assert found == pytest.approx(np.ones(len(NAMES)), abs=1e-5)


def test_masking_text_scores_what_is_left(clip: ClipScore, tmp_path: Path) -> None:
    drawn = Image.fromarray(flat(300, 300, COLOURS["red"]))
    for top in range(10, 280, 34):
        ImageDraw.Draw(drawn).text((5, top), "some words upon words", (255, 255, 255), ImageFont.load_default(26))
    batch = batch_of([np.asarray(drawn)], ["red"])
    masking = clip.model_copy(update={"mask_text": True, "column": "masked_score"})
    plain, masked = (np.asarray(one.annotate(batch)[one.column])[0] for one in (clip, masking))
    assert plain < masked
    assert masked > 0.99


def test_another_model_is_another_result(clip: ClipScore, tmp_path: Path) -> None:
    assert hashlib.sha256(image_model()).hexdigest() in clip.state()
    other = tmp_path / "other.onnx"
    other.write_bytes(image_model())
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(text_model(np.ones((6, 3))))
    assert clip.model_copy(update={"image_model": str(other)}).state() == clip.state(), "the content counts"
    assert address(clip.model_copy(update={"text_model": str(changed)})) != address(clip)


def test_a_missing_model_names_the_file_and_the_key(clip: ClipScore, tmp_path: Path) -> None:
    lost = clip.model_copy(update={"image_model": str(tmp_path / "lost.onnx")})
    with pytest.raises(UserError, match=r"(?s)lost\.onnx.*curate.annotate"):
        lost.state()
    with pytest.raises(UserError, match=r"lost\.onnx"):
        scores(lost, ["red"], ["red"])
