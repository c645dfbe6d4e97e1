"""A second stage begins with the weights of the first, and refuses those of another model or tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from train_runs import samples_of_steps

from model import GenLIP, GenLIPConfig, ImageProcessor, SentencePieceTokenizer, load_weights, save_model
from pipeline.errors import UserError
from pipeline.store import Store
from train.checkpoints import TrainState, latest_checkpoint
from train.checkpoints.record import Record, write_record
from train.init_from import INIT_FILE, load_initial_weights
from train.main import run_training
from train.metrics import read_metrics

CAPTIONS = ["a red cup", "two green apples on a table", "the cat sleeps"]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(CAPTIONS, vocab_size=300)


def make_model(vocab_size: int, seed: int = 0, **fields: object) -> GenLIP:
    model = GenLIP(GenLIPConfig.preset("nano8", num_hidden_layers=1, vocab_size=vocab_size, **fields))
    model.init_weights(seed)
    return model


def export(folder: Path, model: GenLIP, tokenizer: SentencePieceTokenizer) -> Path:
    save_model(folder, model, tokenizer, ImageProcessor("native", patch_size=model.config.patch_size))
    return folder


def commit(run_dir: Path, step: int, model: GenLIP, tokenizer: SentencePieceTokenizer) -> None:
    """A checkpoint of a run with nothing but its exported model."""
    name = f"step-{step:08d}"
    export(run_dir / "checkpoints" / name / "model", model, tokenizer)
    write_record(Store(str(run_dir / "checkpoints")), name, Record(state=TrainState(step=step)))


def same(ours: GenLIP, theirs: GenLIP) -> bool:
    expected = theirs.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_takes_the_weights_of_a_folder_and_writes_down_which(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    theirs = make_model(tokenizer.vocab_size, seed=1)
    folder = export(tmp_path / "model", theirs, tokenizer)
    ours = make_model(tokenizer.vocab_size, drop_path_rate=0.3)  # which belongs to the run, not to the weights
    assert not same(ours, theirs)
    load_initial_weights(ours, tokenizer, tmp_path, str(folder))
    assert same(ours, theirs)
    assert ours.config.drop_path_rate == 0.3
    assert json.loads((tmp_path / INIT_FILE).read_text())["folder"] == str(folder)


def test_bf16_weights_begin_an_fp32_model(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    theirs = make_model(tokenizer.vocab_size, seed=1).bfloat16()
    ours = make_model(tokenizer.vocab_size)
    load_initial_weights(ours, tokenizer, tmp_path, str(export(tmp_path / "model", theirs, tokenizer)))
    assert ours.ln_post.weight.dtype == torch.float32
    assert same(ours, theirs.float())


def test_another_model_or_tokenizer_is_refused_with_what_differs(
    tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    other = SentencePieceTokenizer.train([*CAPTIONS, "seven blue whales"], vocab_size=310)
    folder = export(tmp_path / "model", make_model(other.vocab_size), other)
    before = make_model(tokenizer.vocab_size, text_embed_dim=64)
    ours = make_model(tokenizer.vocab_size, text_embed_dim=64)
    with pytest.raises(UserError) as caught:
        load_initial_weights(ours, tokenizer, tmp_path, str(folder))
    assert f"vocab_size is {other.vocab_size} there, {tokenizer.vocab_size} in this run" in caught.value.message
    assert "text_embed_dim is 192 there, 64 in this run" in caught.value.message
    assert "tokenizer" in caught.value.message
    assert "hidden_size" not in caught.value.message
    assert same(ours, before)
    assert not (tmp_path / INIT_FILE).exists()


@pytest.mark.parametrize("content", ["nothing", "an empty folder"])
def test_a_folder_without_weights_is_refused(tokenizer: SentencePieceTokenizer, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    if content == "an empty folder":
        folder.mkdir()
    with pytest.raises(UserError, match=r"initial weights cannot be read.*"):
        load_initial_weights(make_model(tokenizer.vocab_size), tokenizer, tmp_path, str(folder))


@pytest.mark.slow
def test_a_second_stage_goes_on_from_the_first_at_the_native_aspect_ratio(make_run: Callable[..., Path]) -> None:
    first = make_run("name=first", f"train.length={samples_of_steps(make_run('name=count'), 12)}")
    run_training(first)
    options = ["model.image=native", "model.min_pixels=256", "model.max_pixels=2048", f"train.init_from={first}"]
    second = make_run("name=second", "train.length=20", "train.optim.lr=1e-4", "train.optim.warmup=4", *options)
    run_training(second)
    weights = load_weights(latest_checkpoint(first) / "model").state_dict()
    theirs = load_weights(latest_checkpoint(second) / "model").state_dict()
    moved = max(float((weights[name] - value).abs().max()) for name, value in theirs.items())
    assert 0 < moved < 1e-3  # a few steps of at most 1e-4 each
    assert read_metrics(second)[0]["loss"] < read_metrics(first)[0]["loss"] - 0.5
    assert Path(json.loads((second / INIT_FILE).read_text())["folder"]) == latest_checkpoint(first) / "model"


def test_another_try_begins_with_the_same_weights_although_the_other_run_went_on(
    make_run: Callable[..., Path], tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    source, run_dir = make_run("name=source"), tmp_path
    early, late = make_model(tokenizer.vocab_size, seed=1), make_model(tokenizer.vocab_size, seed=2)
    commit(source, 1, early, tokenizer)
    ours = make_model(tokenizer.vocab_size)
    load_initial_weights(ours, tokenizer, run_dir, str(source))
    assert same(ours, early)
    commit(source, 2, late, tokenizer)
    load_initial_weights(ours, tokenizer, run_dir, str(source))
    assert same(ours, early)
    (run_dir / INIT_FILE).unlink()
    load_initial_weights(ours, tokenizer, run_dir, str(source))
    assert same(ours, late)
