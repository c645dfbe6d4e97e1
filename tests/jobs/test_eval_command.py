"""`genlip eval` on a model folder and on a run, as a user calls it: what it prints, writes and refuses."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.evaluation import EVAL_FILE, IMAGES_FILE, eval_rows, evaluate_folder
from model import GenLIPConfig, ImageProcessor, SentencePieceTokenizer, save_model
from model.baselines import build_model
from pipeline.errors import UserError

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
FEW = ["eval.tasks=[zero_shot, knn]", "eval.max_images=6"]


def write_images(root: Path) -> Path:
    """Class folders of noisy squares, and one file that is no image."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (np.array(colour) + rng.integers(-30, 31, (32, 32, 3))).clip(0, 255).astype(np.uint8)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG")
                (folder / f"{split}-{name}-{number}.png").write_bytes(stream.getvalue())
    (root / "val" / "red" / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as `save_model` writes it."""
    tokenizer = SentencePieceTokenizer.train([f"A {name} square." for name in COLOURS] * 20, vocab_size=300)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = GenLIPConfig(**sizes, text_embed_dim=32, patch_size=8, vocab_size=tokenizer.vocab_size)
    save_model(tmp_path / "model", build_model(config, "genlip"), tokenizer, ImageProcessor(image_px=32, patch_size=8))
    return tmp_path / "model"


def test_a_model_folder_on_class_folders(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "images")
    assert evaluate_folder(folder, str(data), None, FEW) == 0
    result = json.loads((folder / EVAL_FILE).read_text())
    assert (result["objective"], result["samples_seen"], result["num_images"]) == ("genlip", None, 6)
    assert result["parameters"] > 0
    assert result["flops_per_sample"] > 0
    assert result["eval"]["data"] == str(data)
    assert {"zero_shot/names_top1", "knn/top1"} <= set(result["metrics"])
    images = pq.read_table(folder / IMAGES_FILE)
    assert len(set(images["key"].to_pylist())) == 6
    top1 = result["metrics"]["zero_shot/names_top1"]
    assert np.nanmean(images["zero_shot/names_top1"].to_numpy()) == pytest.approx(top1["value"])
    printed = capsys.readouterr().out
    assert "zero_shot: 6 images and 12 for log P(T)" in printed
    assert "zero_shot/names_top1" in printed
    assert "95 % interval" in printed


def test_a_folder_without_data_or_tokenizer_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        evaluate_folder(folder, "", None, [])
    data = str(write_images(tmp_path / "images"))
    aside = tmp_path / "tokenizer"
    aside.mkdir()
    for file in folder.iterdir():
        if "token" in file.name:
            file.rename(aside / file.name)
    with pytest.raises(UserError, match="--tokenizer FOLDER"):
        evaluate_folder(folder, data, None, FEW)
    assert evaluate_folder(folder, data, aside, FEW) == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [("train.length=3", "only keys of the section eval"), ("eval.max_image=3", "did you mean eval.max_images")],
)
def test_wrong_overrides_are_refused(folder: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate_folder(folder, "somewhere", None, [override])


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        evaluate_folder(tmp_path / "nowhere", "", None, [])


def test_rows_show_interval_chance_and_its_multiple() -> None:
    share = {"value": 0.3, "chance": 0.1, "low": 0.2, "high": 0.4, "better": "higher", "unit": "share"}
    nats = {"value": 2.5, "chance": 7.6, "low": None, "high": None, "better": "lower", "unit": "nats"}
    assert eval_rows({"metrics": {"a/top1": share, "b/loss": nats}})[1:] == [
        ["a/top1", "30.0%", "20.0% – 40.0%", "10.0%", "3.0"],
        ["b/loss, nats", "2.5", "", "7.6", ""],
    ]
