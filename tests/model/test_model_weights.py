"""Saving and loading model folders."""

import json
import os
import subprocess
import sys
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
    export,
    load_model,
    load_weights,
    save_model,
)

GOLDEN = Path(os.environ.get("GENLIP_GOLDEN", Path(__file__).parents[1] / "golden" / "genlip"))
GOLDEN_MODELS = [path.name.removesuffix(".weights.safetensors") for path in GOLDEN.glob("*.weights.safetensors")]
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


@pytest.mark.parametrize("name", GOLDEN_MODELS)
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


def edit_config(folder: Path, **changes: object) -> None:
    """Changes keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def official_folder(folder: Path, name: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """A golden model as an official export; its tensors, matrices alone in `dtype` if that is given."""
    tensors = load_file(GOLDEN / f"{name}.weights.safetensors")
    if dtype is not None:
        tensors = {key: tensor.to(dtype) if tensor.dim() > 1 else tensor for key, tensor in tensors.items()}
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN / f"{name}.config.json").read_text())
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_official_ours_official_is_bit_exact(tmp_path: Path, name: str, dtype: torch.dtype | None) -> None:
    tensors = official_folder(tmp_path / "official", name, dtype)
    model = load_weights(tmp_path / "official")
    save_model(tmp_path / "ours", model, TOKENIZER, ImageProcessor(patch_size=model.config.patch_size))
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert written[key].dtype == tensor.dtype
        assert torch.equal(written[key], tensor), key
    official, ours = (json.loads((tmp_path / which / "config.json").read_text()) for which in ("official", "ours"))
    assert GenLIPConfig.from_dict(ours) == GenLIPConfig.from_dict(official) == model.config
    assert ours["architectures"] == ["GenLIPModel"]
    assert ours["rope_scaling"]["mrope_section"] == list(model.config.mrope_section)


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 10**6)
    model = make_model()
    folder = save(tmp_path / "model", model)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("model*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    state = load_model(folder).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    (folder / files[1]).unlink()
    with pytest.raises(ModelError, match=f"{files[1]} is missing although .* lists it"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="no weight_map"):
        load_model(folder)


def test_all_files_of_a_folder_may_be_read_by_the_same_people(tmp_path: Path) -> None:
    assert len({path.stat().st_mode for path in save(tmp_path / "model").iterdir()}) == 1


def test_saving_and_loading_work_without_transformers(tmp_path: Path) -> None:
    save(tmp_path / "model")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from model import load_model, save_model\n"
        "loaded = load_model('model')\n"
        "save_model('again', loaded.model, loaded.tokenizer, loaded.processor)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(export.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    again, first = (load_weights(tmp_path / name).state_dict() for name in ("again", "model"))
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path / "model") / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"<html>not found</html>", "empty": b""}[damage])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or no safetensors file"):
        load_model(tmp_path / "model")


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    clip = {
        "text_model.embeddings.token_embedding.weight": torch.zeros(8, 4),
        "vision_model.embeddings.patch_embedding.weight": torch.zeros(4, 3, 2, 2),
        "logit_scale": torch.zeros(()),
    }
    save_file(clip, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no GenLIP weights.*logit_scale.*another model"):
        load_model(folder)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    torch.save(make_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("embeddings.weight", torch.zeros(5), r"embeddings\.weight must have 2 axes, got shape \[5\]"),
        ("ln_post.bias", torch.zeros(192, dtype=torch.int8), r"not floating point: ln_post\.bias"),
        ("ln_post.bias", torch.full((192,), torch.nan), r"not finite \(NaN or infinity\): ln_post\.bias"),
    ],
)
def test_odd_tensors_are_refused(tmp_path: Path, name: str, tensor: torch.Tensor, message: str) -> None:
    folder = save(tmp_path / "model")
    save_file(load_file(folder / "model.safetensors") | {name: tensor}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "192 must split into 5 heads"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [8, 12, 12]}}, "of type 'yarn' are not implemented"),
        ({"rope_scaling": {"mrope_section": [8, 12]}}, "three channel counts"),
        ({"rope_scaling": "mrope"}, "must be an object"),
        ({"hidden_act": "gelu"}, "only hidden_act='silu' is implemented"),
        ({"tie_word_embeddings": True}, "only tie_word_embeddings=False"),
        ({"rope_theta": -1.0}, "rope_theta must be a finite number"),
        ({"num_attention_heads": None, "rope_scaling": None}, "no num_attention_heads"),
        ({"num_attention_heads": None, "rope_scaling": {"mrope_section": [9, 12, 12]}}, "do not tell how many heads"),
        ({"ls_init_value": 0.0}, r"unexpected visual\.layers\.0\.layer_scale1"),
    ],
)
def test_configs_that_do_not_fit_are_explained(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = save(tmp_path / "model")
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rotary_settings_are_read_from_either_key(tmp_path: Path, key: str) -> None:
    """transformers 5 writes `rope_parameters`, which hold theta too."""
    folder = save(tmp_path / "model")
    nested = {"rope_type": "mrope", "mrope_section": [4, 5, 6], "rope_theta": 500.0}
    edit_config(folder, **{"rope_scaling": None, "rope_theta": None, key: nested})
    config = load_weights(folder).config
    assert (config.mrope_section, config.rope_theta) == ((4, 5, 6), 500.0)


def test_the_repositorys_own_l16_config_loads_with_the_published_weights(tmp_path: Path) -> None:
    """That file says width 1152 and feed-forward 2752, calls the class GenLIP and leaves epsilon out."""
    model = GenLIP(GenLIPConfig.preset("l16", num_hidden_layers=1, vocab_size=32, text_embed_dim=16))
    folder = save(tmp_path / "model", model)
    repository = GenLIPConfig.preset("l16_repo").to_dict() | {
        "architectures": ["GenLIP"],
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-5,
        "initializer_factor": 1.0,
        "lm_head_hdsz": 1024,
        "use_liger_kernel": True,
        "max_position_embeddings": 16384,
        "torch_dtype": "bfloat16",
    }
    for absent in ("layer_norm_eps", "text_embed_dim", "initializer_range", "ls_init_value"):
        del repository[absent]
    (folder / "config.json").write_text(json.dumps(repository))
    assert load_weights(folder).config == model.config


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
    with pytest.warns(UserWarning, match="assuming 3"):
        assert load_model(folder).model.config.num_attention_heads == 3
