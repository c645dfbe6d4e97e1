"""Model folders of every objective."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import (
    GenLIP,
    ImageProcessor,
    ModelError,
    SentencePieceTokenizer,
    Tokenizer,
    load_model,
    load_weights,
    save_model,
)
from model.baselines import OBJECTIVES, build_model
from tests.model.baselines.toys import BASELINES, image_of, make_sample, tiny_baseline, tiny_config

PROCESSOR = ImageProcessor(image_px=8, patch_size=4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = ["a red cup", "a blue dog", "two green trees", "the old grey house"]
    return SentencePieceTokenizer.train([f"{one} and {other}" for one in words for other in words], vocab_size=300)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_gives_the_model_back(
    objective: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = build_model(tiny_config(vocab_size=tokenizer.vocab_size), objective, mask_ratio=0.6, parallel=0.3)
    model.init_weights(3)
    model.to(dtype).eval()
    save_model(tmp_path / "saved", model, tokenizer, PROCESSOR)
    loaded = load_model(tmp_path / "saved").model
    assert type(loaded) is type(model)
    assert loaded.objective == objective
    assert loaded.config == model.config
    assert not loaded.training
    assert getattr(loaded, "options", None) == getattr(model, "options", None)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, model.state_dict()[name])
    image = image_of(make_sample(0))
    with torch.no_grad():
        assert torch.equal(loaded.encode_images([image])[0], model.encode_images([image])[0])


@pytest.mark.parametrize("objective", BASELINES)
def test_a_baseline_is_not_taken_for_genlip(objective: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = tiny_baseline(objective, vocab_size=tokenizer.vocab_size)
    save_model(tmp_path / "saved", model, tokenizer, PROCESSOR, {"License": "mit", "Samples seen": "12"})
    with pytest.raises(ModelError, match=f"objective '{objective}', and GenLIP is needed"):
        load_weights(tmp_path / "saved")
    with pytest.raises(ModelError, match=f"this one has the objective '{objective}'"):
        _ = load_model(tmp_path / "saved").genlip
    assert not list((tmp_path / "saved").glob("*.py"))
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"the objective `{objective}`" in card
    assert "license: mit" in card
    assert "Samples seen: 12" in card
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in card


def test_genlip_where_it_is_needed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(tmp_path / "saved", GenLIP(tiny_config(vocab_size=tokenizer.vocab_size)), tokenizer, PROCESSOR)
    loaded = load_model(tmp_path / "saved")
    assert loaded.genlip is loaded.model


def test_damaged_folders_are_explained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "saved"
    save_model(folder, tiny_baseline("clip", vocab_size=tokenizer.vocab_size), tokenizer, PROCESSOR)
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"objective": "genlip"}, {"objective": None}, {"backbone": 3}, {"backbone": {}}):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ModelError, match=r"config\.json"):
            load_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"objective": "siglip"}))
    with pytest.raises(ModelError, match=r"missing logit_bias"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"].fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite.*logit_scale"):
        load_model(folder)
