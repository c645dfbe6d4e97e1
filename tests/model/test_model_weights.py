"""Saving and loading model folders."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import (
    GenLIP,
    GenLIPConfig,
    ImageProcessor,
    ModelError,
    SentencePieceTokenizer,
    load_model,
    save_model,
)

GOLDEN = Path(os.environ.get("GENLIP_GOLDEN", Path(__file__).parents[1] / "golden" / "genlip"))
TOKENIZER = SentencePieceTokenizer.train(["a red cup", "a blue dog"] * 10, vocab_size=300)
PROCESSOR = ImageProcessor("native", patch_size=8, min_pixels=256, max_pixels=4096)


def make_model(**overrides: object) -> GenLIP:
    model = GenLIP(GenLIPConfig.preset("nano8", vocab_size=TOKENIZER.vocab_size, num_hidden_layers=2, **overrides))
    model.init_weights(seed=5)
    return model


def save(folder: Path, model: GenLIP | None = None) -> Path:
    save_model(folder, model or make_model(), TOKENIZER, PROCESSOR)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "overrides", [{}, {"text_embed_dim": 64}, {"gated_attention": False, "use_swiglu_ffn": False, "ls_init_value": 0.0}]
)
def test_round_trip_is_bit_exact(tmp_path: Path, overrides: dict[str, object], dtype: torch.dtype) -> None:
    model = make_model(**overrides).to(dtype)
    loaded = load_model(save(tmp_path / "a" / "model", model))
    assert loaded.model.config == model.config
    assert loaded.processor == PROCESSOR
    assert loaded.tokenizer.fingerprint == TOKENIZER.fingerprint
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert list(state) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor), name


def test_saving_replaces_an_old_model_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    model = make_model()
    model.init_weights(seed=6)
    save(folder, model)
    assert torch.equal(load_model(folder).model.lm_head.weight, model.lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(_folder: Path | str) -> None:
        raise OSError("disk full")

    broken = SentencePieceTokenizer.train(["a red cup"] * 10, vocab_size=300)
    monkeypatch.setattr(broken, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(folder, make_model(), broken, PROCESSOR)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_never_replaces_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match="no model folder"):
        save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("name", [path.name.split(".")[0] for path in GOLDEN.glob("*.weights.safetensors")])
def test_official_exports_load_although_their_config_is_incomplete(tmp_path: Path, name: str) -> None:
    """Widths, depth and switches come from the tensors; the config may leave them out or contradict them."""
    config = json.loads((GOLDEN / f"{name}.config.json").read_text())
    expected = GenLIPConfig.from_dict(config)
    for key in ("text_embed_dim", "hidden_size", "num_hidden_layers", "gated_attention", "patch_size"):
        del config[key]
    config["intermediate_size"] = 9999
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 64}}))
    TOKENIZER.save(tmp_path)
    tensors = load_file(GOLDEN / f"{name}.weights.safetensors")
    half = len(tensors) // 2
    save_file(dict(list(tensors.items())[:half]), tmp_path / "model-00001-of-00002.safetensors")
    save_file(dict(list(tensors.items())[half:]), tmp_path / "model-00002-of-00002.safetensors")
    loaded = load_model(tmp_path)
    assert loaded.model.config == expected
    assert loaded.processor == ImageProcessor(image_px=64)
    assert all(torch.equal(loaded.model.state_dict()[key], tensor) for key, tensor in tensors.items())


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual.layers.1.mlp.fc2.bias"]
    tensors["visual.layers.0.layer_norm1.bias"] = torch.zeros(7)
    tensors["head.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "missing visual.layers.1.mlp.fc2.bias [192]" in message
    assert "unexpected head.weight [3]" in message
    assert "mis-shaped visual.layers.0.layer_norm1.bias: [7] instead of [192]" in message


def test_folders_that_are_no_model_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        load_model(tmp_path)
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no GenLIP weights"):
        load_model(tmp_path)
    folder = save(tmp_path / "model")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model(folder)


def test_heads_are_guessed_from_the_rotary_sections(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).model.config.num_attention_heads == 3
