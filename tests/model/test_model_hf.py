"""The exported folder through Hugging Face's Auto classes, in a process that does not have this repository.

One process does all the loading (`hf_process.py`), because importing transformers takes seconds; the tests compare
what it wrote with the same numbers computed here.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from test_model_golden import build_model, load_case, row_cases, rows_of
from torch import Tensor

from model import (
    GenLIP,
    GenLIPConfig,
    HFTokenizer,
    ImageProcessor,
    SentencePieceTokenizer,
    Tokenizer,
    count_parameters,
    export,
    generate,
    load_weights,
    save_model,
)

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CAPTIONS = ["a red cup", "a blue dog", "Describe the image in detail."] * 10
TEXTS = ["a red cup", "  Zürich <|im_end|> 猫 ", "Describe the image in detail."]
IMAGE_SIZES = [(50, 70), (20, 70), (31, 31)]
NEW_TOKENS = 6


def train_hf_tokenizer(folder: Path) -> HFTokenizer:
    """A byte-level BPE tokenizer in Qwen's layout."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|im_end|>"], show_progress=False
    )
    core.train_from_iterator(CAPTIONS, trainer)
    folder.mkdir()
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return HFTokenizer(folder)


def make_images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in IMAGE_SIZES]


def make_model(tokenizer: Tokenizer, dtype: torch.dtype, **overrides: object) -> GenLIP:
    config = GenLIPConfig.preset("nano8", vocab_size=tokenizer.vocab_size, num_hidden_layers=2, **overrides)
    model = GenLIP(config)
    model.init_weights(seed=5)
    return model.to(dtype).eval()


@dataclass(frozen=True)
class Export:
    """What was saved, and where."""

    folder: Path
    model: GenLIP
    tokenizer: Tokenizer
    processor: ImageProcessor


@dataclass(frozen=True)
class Session:
    """All exports, and the folder of what the other process read from each."""

    exports: dict[str, Export]
    results: Path

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors that the other process computed with one export."""
        return load_file(self.results / f"{name}.safetensors")

    def facts(self, name: str) -> dict[str, object]:
        """Everything else that it saw."""
        facts: dict[str, object] = json.loads((self.results / f"{name}.json").read_text())
        return facts


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    root = tmp_path_factory.mktemp("hf")
    sentencepiece = SentencePieceTokenizer.train(CAPTIONS, vocab_size=300)
    native = ImageProcessor("native", patch_size=8, min_pixels=256, max_pixels=4096)
    square = ImageProcessor("square", image_px=32, patch_size=8)
    hf_tokenizer = train_hf_tokenizer(root / "tokenizer")
    exports = {
        "fp32": Export(root / "my-model.v1", make_model(sentencepiece, torch.float32), sentencepiece, native),
        "bf16": Export(
            root / "bf16", make_model(hf_tokenizer, torch.bfloat16, text_embed_dim=64), hf_tokenizer, square
        ),
    }
    for one in exports.values():
        save_model(one.folder, one.model, one.tokenizer, one.processor)
    golden_name, golden_case = row_cases()[0]
    golden = build_model(golden_name)
    save_model(root / "golden", golden, sentencepiece, ImageProcessor(patch_size=golden.config.patch_size))
    save_golden_rows(root / "rows.safetensors", golden_name, golden_case)
    make_and_save_images(root / "images")
    work = {
        "exports": {name: str(one.folder) for name, one in exports.items()},
        "golden": str(root / "golden"),
        "rows": str(root / "rows.safetensors"),
        "patch_size": golden.config.patch_size,
        "images": str(root / "images"),
        "texts": TEXTS,
        "new_tokens": NEW_TOKENS,
        "results": str(root / "results"),
    }
    run_process(root, work)
    return Session(exports, root / "results")


def save_golden_rows(path: Path, name: str, case_name: str) -> None:
    """The inputs of a golden case, cut into patches here because the other process has no golden folder."""
    case = load_case(name, case_name)
    rows = rows_of(name, case_name, case)
    inputs = {key.removeprefix("in."): value for key, value in case.items() if key.startswith("in.")}
    save_file({**inputs, "pixel_values": rows.patches_NCPP.contiguous()}, path)


def make_and_save_images(folder: Path) -> None:
    folder.mkdir()
    for number, image in enumerate(make_images()):
        image.save(folder / f"{number}.png")


def run_process(root: Path, work: dict[str, object]) -> None:
    (root / "results").mkdir()
    (root / "work.json").write_text(json.dumps(work))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "COV_"))}
    environment |= {"HF_HOME": str(root / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("hf_process.py")
    command = [sys.executable, "-I", str(script), str(root / "work.json"), str(Path(export.__file__).parents[1])]
    done = subprocess.run(
        command, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_features_are_equal_bit_for_bit(session: Session, name: str) -> None:
    one, tensors = session.exports[name], session.tensors(name)
    images = [one.processor.patches(image) for image in make_images()]
    with torch.no_grad():
        together = one.model.encode_images(images)
        alone = one.model.encode_image(*images[1])
    assert tensors["features"].dtype == one.model.ln_post.weight.dtype
    assert torch.equal(tensors["features"], torch.cat(together))
    assert torch.equal(tensors["encode_image"], alone)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_image_processor_gives_our_patches(session: Session, name: str) -> None:
    one, tensors = session.exports[name], session.tensors(name)
    images = [one.processor.patches(image) for image in make_images()]
    pixels = np.concatenate([patches for patches, _ in images])
    assert torch.equal(tensors["pixel_values"], (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5)
    assert tensors["image_grid_thw"].tolist() == [[1, *grid] for _, grid in images]


def test_whole_images_give_the_features_of_their_patches(session: Session) -> None:
    """[n, 3, H, W] without grids is the other way in; the square processor makes such images."""
    tensors = session.tensors("bf16")
    assert tensors["from_images"].shape == (len(IMAGE_SIZES), 16, 192)
    assert torch.equal(tensors["from_images"].flatten(0, 1), tensors["features"])
    assert tensors["pixel_gradient"].shape == (len(IMAGE_SIZES), 3, 32, 32)
    assert tensors["pixel_gradient"].abs().sum() > 0


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_text(session: Session, name: str) -> None:
    one, facts = session.exports[name], session.facts(name)
    images = [one.processor.patches(image) for image in make_images()]
    assert facts["captions"] == generate(one.model, images, one.tokenizer, max_new_tokens=NEW_TOKENS)
    if name == "fp32":
        assert facts["token_ids"] == [one.tokenizer.encode(text) for text in TEXTS]
        assert facts["decoded"] == facts["decoded_with_padding"] == [text.strip() for text in TEXTS]
    else:
        # Hugging Face's own class, which strips nothing and takes special tokens in text for what they say.
        assert facts["token_ids"][0] == one.tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_nothing_is_missing_or_drawn_anew(session: Session, name: str) -> None:
    one, facts = session.exports[name], session.facts(name)
    assert facts["loading_problems"] == {}
    assert facts["parameter_names"] == list(one.model.state_dict())
    assert facts["model_type"] == "genlip"
    assert facts["dtype"] == str(one.model.ln_post.weight.dtype)
    assert facts["is_training"] is False


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_folder_saved_by_transformers_is_still_official(session: Session, name: str) -> None:
    one = session.exports[name]
    resaved = session.results / f"{name}-resaved"
    ours, theirs = load_file(one.folder / "model.safetensors"), load_file(resaved / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(theirs[key].dtype == tensor.dtype and torch.equal(theirs[key], tensor) for key, tensor in ours.items())
    assert load_weights(resaved).config == one.model.config
    assert session.facts(name)["resaved_is_equal"] is True


def test_a_model_made_from_a_config_has_our_initialisation(session: Session) -> None:
    fresh = load_file(session.results / "fresh.safetensors")
    expected = GenLIP(session.exports["fp32"].model.config).state_dict()
    assert fresh.keys() == expected.keys()
    assert all(torch.equal(fresh[key], tensor) for key, tensor in expected.items())


def test_training_switches_reach_the_network(session: Session) -> None:
    assert session.facts("fp32")["switches"] == {"training": [True, False], "gradient_checkpointing": [False, True]}


def test_a_golden_case(session: Session) -> None:
    name, case_name = row_cases()[0]
    case, tensors = load_case(name, case_name), load_file(session.results / "golden.safetensors")
    torch.testing.assert_close(tensors["logits"][case["out.valid"]], case["out.logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tensors["loss"], case["out.loss"], atol=1e-5, rtol=0)
    with torch.no_grad():
        assert torch.equal(tensors["logits"], build_model(name).logits(rows_of(name, case_name, case)))


def test_the_entry_file_names_every_other_file(session: Session) -> None:
    """transformers 4 copies the files that it finds named there, and no others."""
    folder = session.exports["fp32"].folder
    entry = (folder / "hf_genlip.py").read_text()
    named = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", entry, re.MULTILINE))
    assert {path.stem for path in folder.glob("*.py")} == named | {"hf_genlip"}


def test_wrong_inputs_are_explained(session: Session) -> None:
    messages = session.facts("fp32")["errors"]
    assert "means 3 patches" in messages["grids that disagree"]
    assert "must hold (1, grid rows, grid columns)" in messages["video"]
    assert "no images of whole 8x8 patches" in messages["odd image"]
    assert "no images" in messages["nothing"]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_card(session: Session, name: str) -> None:
    one = session.exports[name]
    _, front, text = (one.folder / "README.md").read_text().split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["library_name"] == "transformers"
    assert meta["pipeline_tag"] == "image-feature-extraction"
    assert meta["license"] == "apache-2.0"
    assert "genlip" in meta["tags"]
    assert f"{count_parameters(one.model.config):,}" in text
    assert text.count("```") % 2 == 0


def test_facts_of_the_run_are_in_the_card(tmp_path: Path, session: Session) -> None:
    one = session.exports["fp32"]
    facts = {"Training data": "three captions", "License": "cc-by-4.0"}
    save_model(tmp_path / "m", one.model, one.tokenizer, one.processor, facts)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "- Training data: three captions" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"


def test_the_code_of_the_cards_runs(session: Session) -> None:
    """The other process ran the card's transformers example, on its own image."""
    for name, one in session.exports.items():
        assert session.facts(name)["card_features"][1] == one.model.config.hidden_size
