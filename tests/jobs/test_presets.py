"""The official recipes hold the official numbers, and a recipe that extends another says only what is different."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.plan import plan_run
from jobs.recipe import Recipe, load_recipe
from model import GenLIPConfig
from pipeline.errors import UserError

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes"
SIZES = ["l16", "so16", "g16"]


def load(stage: int, size: str, *overrides: str) -> Recipe:
    return load_recipe(FOLDER / f"stage{stage}_{size}.yaml", list(overrides))


@pytest.mark.parametrize("size", SIZES)
def test_stage_one_is_the_official_one(size: str) -> None:
    recipe = load(1, size)
    train, optim = recipe.train, recipe.train.optim
    is_large = size == "g16"
    assert (train.length, train.lanes, train.row_tokens) == (8_000_000_000, 768 if is_large else 512, 16_384)
    assert (optim.lr, optim.min_lr, optim.betas, optim.eps) == (1e-3, 1e-6, (0.9, 0.95), 1e-8)
    assert (optim.weight_decay, optim.no_decay, optim.clip) == (0.01, (), 1.0)
    assert optim.warmup == train.length * (20 if is_large else 7) // 1000
    assert (train.precision, train.gradient_checkpointing, train.init_from) == ("bf16", "full", "")
    assert (recipe.model.preset, recipe.model.image, recipe.model.image_px) == (size, "square", 224)
    assert GenLIPConfig.preset(size).drop_path_rate == (0.2 if is_large else 0.1)


@pytest.mark.parametrize("size", SIZES)
def test_stage_two_is_the_official_one_and_goes_on_from_stage_one(size: str) -> None:
    first, recipe = load(1, size), load(2, size)
    train, optim = recipe.train, recipe.train.optim
    assert (train.length, train.lanes, train.row_tokens) == (37_000_000, 256, 16_384)
    assert (optim.lr, optim.min_lr, optim.warmup) == (1e-4, 1e-6, train.length * 7 // 1000)
    assert optim.model_copy(update={"lr": 1e-3, "warmup": 0}) == first.train.optim.model_copy(update={"warmup": 0})
    assert (recipe.model.image, recipe.model.min_pixels, recipe.model.max_pixels) == ("native", 4096, 262_144)
    assert recipe.model.preset == size
    assert recipe.tokenizer == first.tokenizer
    assert Path(train.init_from) == first.run_dir
    # Image, prompt of six tokens, caption and ending: the official limit of a sample.
    assert 1024 + 6 + train.max_caption_tokens + 2 == 4096


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", [1, 2])
def test_the_plan_accepts_them(stage: int, size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["url", "re_caption", "org_caption", "sha256"]
    pq.write_table(pa.table({name: ["x"] for name in columns}), tmp_path / "urls.parquet")
    overrides = [f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    source = {"urls": str(tmp_path / "urls.parquet"), "preset": "recap_datacomp"}
    assert plan_run(load(stage, size, *overrides, f"ingest.source={source}")) == 0
    assert "1 rows in 1 files" in capsys.readouterr().out


def test_the_second_stage_of_the_demo_reads_what_the_first_has_made() -> None:
    first, second = load_recipe(FOLDER / "demo.yaml"), load_recipe(FOLDER / "demo_stage2.yaml")
    assert (second.store, second.shards, second.runs) == (first.store, first.shards, first.runs)
    assert Path(second.train.init_from) == first.run_dir
    assert Path(second.tokenizer.path).parent == first.run_dir
    assert (second.model.preset, second.model.image) == (first.model.preset, "native")
    assert second.run_dir != first.run_dir


def test_a_recipe_extends_another_section_by_section(tmp_path: Path) -> None:
    base = {
        "name": "base",
        "store": "store",
        "ingest": {"source": {"urls": "a"}, "filters": [{"caption_words": {"min": 2}}]},
        "train": {"length": "8k samples", "optim": {"lr": 0.5, "clip": 2.0}},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    path = tmp_path / "folder" / "recipe.yaml"
    path.parent.mkdir()
    mine = {"extends": "../base.yaml", "name": "mine", "ingest": {"filters": []}, "train": {"optim": {"lr": 0.25}}}
    path.write_text(yaml.safe_dump(mine))
    recipe = load_recipe(path, ["train.optim.min_lr=0"])
    assert (recipe.name, recipe.store, recipe.ingest.filters) == ("mine", "store", ())
    assert (recipe.train.length, recipe.train.optim.lr, recipe.train.optim.clip) == (8000, 0.25, 2.0)


def test_what_cannot_be_extended_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: absent.yaml\nname: mine\n")
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_recipe(path)
    path.write_text("extends: recipe.yaml\nname: mine\n")  # one level is enough, and no circle can arise
    with pytest.raises(UserError, match="extends: no such key"):
        load_recipe(path)
