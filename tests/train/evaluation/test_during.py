"""Evaluation between the steps of training: what it measures, on any ranks, and that training does not notice."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from groups import Group
from train_runs import samples_of_steps

from model import EncodedSample, LoadedModel, load_model, pack_rows
from pipeline.errors import UserError
from pipeline.store import Store
from train.checkpoints import committed_checkpoints, latest_checkpoint, read_state
from train.data.dataset import first_samples, open_dataset
from train.data.encode import encode_caption
from train.evaluation.during import BANK_PER_IMAGE
from train.evaluation.knn import NUM_NEIGHBOURS, knn_predict
from train.main import run_training
from train.metrics import EVALUATIONS, Evaluation, read_evaluations, read_metrics
from train.plan import plan_lines
from train.recipe import Objective, TrainJob
from train.setup import set_up
from train.sinks import TENSORBOARD_FOLDER

NUM_IMAGES = 20
EVERY = ("eval.every=30", f"eval.every_images={NUM_IMAGES}", "eval.batch_images=8")


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    return [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in read_metrics(run_dir)]


def run(make_run: Callable[..., Path], name: str, *overrides: str) -> Path:
    """A run of ten steps on this process."""
    length = samples_of_steps(make_run("name=count"), 10)
    run_dir = make_run(f"name={name}", f"train.length={length}", "train.micro_rows=2", *overrides)
    run_training(run_dir)
    return run_dir


def measured_alone(run_dir: Path) -> dict[str, float]:
    """What the last checkpoint's model knows, by a plain loop over the first held-out and training images."""
    job = TrainJob.read(run_dir)
    loaded = load_model(latest_checkpoint(run_dir) / "model")
    heldout = list(first_samples(open_dataset(Store(job.store), f"{job.shards.name}-heldout"), NUM_IMAGES))
    training = list(first_samples(open_dataset(Store(job.store), job.shards.name), 16 * NUM_IMAGES))
    bank = [one for one in training if one.meta.get("class_name")][: BANK_PER_IMAGE * NUM_IMAGES]
    encoded = [encode(loaded, one.image, one.caption, job.train.max_caption_tokens) for one in heldout]
    with torch.inference_mode():
        rows = pack_rows([encoded], sum(one.num_tokens for one in encoded))
        loss = float(loaded.model(rows).loss_sum)
        query_ID, bank_ND = (pooled(loaded, [one.image for one in images]) for images in (heldout, bank))
    classes = sorted({one.meta["class_name"] for one in bank})
    class_N = torch.tensor([classes.index(one.meta["class_name"]) for one in bank])
    answers = [classes[number] for number in knn_predict(bank_ND, class_N, query_ID, len(classes), NUM_NEIGHBOURS)]
    right = [one.meta["class_name"] == answer for one, answer in zip(heldout, answers, strict=True)]
    known = [one.meta["class_name"] in classes for one in heldout]
    num = rows.num_labels if loaded.model.loss_per == "label" else len(heldout)
    return {"language/loss": loss / num, "knn/top1": float(np.mean(np.array(right)[known]))}


def encode(loaded: LoadedModel, image: bytes, caption: str, max_caption_tokens: int) -> EncodedSample:
    patches, grid = loaded.processor.load_patches(image)
    ids = encode_caption(caption, loaded.tokenizer, max_caption_tokens)
    return EncodedSample(patches, grid, loaded.tokenizer.prompt_ids, ids)


def pooled(loaded: LoadedModel, images: list[bytes]) -> torch.Tensor:
    return torch.stack([loaded.model.encode_images([loaded.processor.load_patches(one)])[0].mean(0) for one in images])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "clip"])
def test_training_does_not_notice_and_the_numbers_are_those_of_the_model(
    make_run: Callable[..., Path], objective: Objective
) -> None:
    plain = run(make_run, "plain", f"objective={objective}")
    run_dir = run(make_run, "measured", f"objective={objective}", *EVERY)
    assert losses(run_dir) == losses(plain)
    assert not (plain / EVALUATIONS).exists()

    evaluations = read_evaluations(run_dir)
    length = read_metrics(run_dir)[-1]["samples"]
    assert [one.samples // 30 for one in evaluations[:-1]] == list(range(1, len(evaluations)))
    assert evaluations[-1].samples == length
    steps = {entry["step"]: entry for entry in read_metrics(run_dir)}
    assert [steps[one.step]["samples"] for one in evaluations] == [one.samples for one in evaluations]
    assert evaluations[-1].flops == read_state(latest_checkpoint(run_dir)).flops
    assert all(ours.flops < theirs.flops for ours, theirs in pairwise(evaluations))
    assert sum(entry["time_shares"]["evaluation"] > 0 for entry in steps.values()) >= len(evaluations) - 1

    expected = measured_alone(run_dir)
    assert evaluations[-1].metrics["knn/top1"] == pytest.approx(expected["knn/top1"])
    if objective != "mae":  # whose masks are drawn
        assert evaluations[-1].metrics["language/loss"] == pytest.approx(expected["language/loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "stage", "options"),
    [
        ("genlip", 3, ["train.micro_rows=1"]),
        # The rows of its passes, and so DropPath's draws, follow from the ranks: only weights that stay compare.
        ("clip", 1, ["train.optim.lr=1.0e-12", "train.optim.min_lr=0"]),
    ],
)
def test_all_ranks_measure_what_one_measures(
    make_run: Callable[..., Path], tmp_path: Path, objective: Objective, stage: int, options: list[str]
) -> None:
    alone = run(make_run, "alone", f"objective={objective}", *EVERY, *options)
    length = TrainJob.read(alone).train.length
    options = [f"objective={objective}", *EVERY, *options, f"train.length={length}", f"train.zero.stage={stage}"]
    options += ["name=divided", "train.micro_rows=1"]
    divided = make_run(*options)
    group = Group(tmp_path / "recipe.yaml", *options, world_size=2)
    group.finish()
    if objective == "genlip":
        expected = [loss for _, loss, _ in losses(alone)]
        assert [loss for _, loss, _ in losses(divided)] == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(read_evaluations(divided), read_evaluations(alone), strict=True):
        assert (ours.step, ours.samples, ours.flops) == (theirs.step, theirs.samples, theirs.flops)
        assert ours.metrics["language/loss"] == pytest.approx(theirs.metrics["language/loss"], rel=1e-5)
        assert ours.metrics["knn/top1"] == pytest.approx(theirs.metrics["knn/top1"], abs=1.01 / NUM_IMAGES)
        assert f"step {ours.step:,} · samples {ours.samples:,} · held-out: language/loss " in group.output


class Killed(Exception):
    """What ends a life of a run in the middle of a step."""


def test_a_run_that_is_killed_and_resumed_has_each_evaluation_once(make_run: Callable[..., Path]) -> None:
    straight = run(make_run, "straight", *EVERY)
    length = TrainJob.read(straight).train.length
    options = [f"train.length={length}", "train.micro_rows=2", "train.checkpoint.every=20"]
    run_dir = make_run("name=killed", *EVERY, *options)

    def die(evaluation: Evaluation) -> None:
        if len(read_evaluations(run_dir)) == 2:
            raise Killed

    with pytest.raises(Killed):
        run_training(run_dir, on_evaluation=die)
    before = read_evaluations(run_dir)
    assert len(before) == 2
    assert read_state(committed_checkpoints(run_dir)[-1]).step < before[-1].step
    run_training(run_dir)
    found, expected = read_evaluations(run_dir), read_evaluations(straight)
    assert [(one.step, one.samples, one.flops, one.metrics) for one in found] == [
        (one.step, one.samples, one.flops, one.metrics) for one in expected
    ]
    assert losses(run_dir) == losses(straight)


def test_the_trackers_get_the_numbers_and_the_plan_says_how_often(make_run: Callable[..., Path]) -> None:
    run_dir = run(make_run, "shown", *EVERY, "train.log.to=[tensorboard]")
    events = b"".join(path.read_bytes() for path in (run_dir / TENSORBOARD_FOLDER).iterdir())
    assert b"eval/language/loss" in events
    assert b"eval/knn/top1" in events
    lines = "\n".join(plan_lines(set_up(run_dir), world_size=1))
    length = TrainJob.read(run_dir).train.length
    assert f"evaluation every 30 samples, {length // 30} times, on {NUM_IMAGES} held-out images" in lines


def test_without_held_out_shards_nothing_is_begun(make_run: Callable[..., Path]) -> None:
    job = TrainJob.read(make_run())
    index = Path(job.store) / "shards" / f"{job.shards.name}-heldout" / "index.parquet"
    hidden = index.with_name("hidden")
    index.rename(hidden)
    try:
        run_dir = make_run("name=measured", "train.length=20", *EVERY)
        for begin in (run_training, lambda run_dir: plan_lines(set_up(run_dir), 1)):
            with pytest.raises(UserError, match=r"eval\.every, shards\.holdout(.|\n)*shards\.holdout=0\.1"):
                begin(run_dir)
        assert not read_metrics(run_dir)
        assert plan_lines(set_up(make_run()), 1)
    finally:
        hidden.rename(index)
