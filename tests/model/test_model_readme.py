"""The examples of model/README.md, run as they are written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_model_golden import FOLDER, row_cases
from test_model_hf import CAPTIONS, make_images, train_hf_tokenizer

from model import export, list_presets

README = Path(export.__file__).with_name("README.md")


def test_the_examples_run(tmp_path: Path) -> None:
    """One after the other in one process, in a folder with the files that they name."""
    pytest.importorskip("transformers")
    make_images()[0].save(tmp_path / "cup.jpg")
    train_hf_tokenizer(tmp_path / "Qwen3-0.6B")
    name, _ = row_cases()[0]
    official = tmp_path / "GenLIP-L16-224"
    official.mkdir()
    shutil.copy(FOLDER / f"{name}.weights.safetensors", official / "model.safetensors")
    shutil.copy(FOLDER / f"{name}.config.json", official / "config.json")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    checks = "assert scores.shape == gain.shape == (1, 2) and features.shape == (64, 192), features.shape"
    script = "\n".join([f"captions = {CAPTIONS!r}", *blocks, checks])
    environment = os.environ | {
        "PYTHONPATH": str(README.parents[1]),
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_every_preset_and_file_is_listed() -> None:
    text = README.read_text(encoding="utf-8")
    for name in list_presets():
        assert f"| `{name}`" in text
    for path in README.parent.glob("*.py"):
        assert path.name == "__init__.py" or f"`{path.name}`" in text, path.name
