"""The model benchmark: equal input for all sides, what it refuses to compare, and its arithmetic."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model import GenLIP, flops_per_sample, pack_rows, score_captions
from tests.bench import model_gpu, model_loss, model_loss_whole, model_open_clip, model_score, model_side
from tests.bench.harness import BenchError
from tests.bench.model import check_agreement, run_side
from tests.bench.model_inputs import StepSetup, make_rows, make_sample

TINY = StepSetup("ours", "nano8", vocab_size=512, num_rows=2, row_tokens=910, num_steps=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_samples_are_the_same_every_time_and_rows_are_full() -> None:
    setup = replace(TINY, preset="s16", row_tokens=4096)
    first, again = (pack_rows(make_rows(setup), setup.row_tokens) for _ in range(2))
    assert torch.equal(first.input_ids_BS, again.input_ids_BS)
    assert torch.equal(first.patches_NCPP, again.patches_NCPP)
    _, _, num_image, num_tokens = first.segments_M4.T
    assert set(num_image.tolist()) == {196}
    lengths = num_tokens - num_image
    assert lengths.min() >= 20
    assert lengths.max() <= 120
    assert first.num_labels == lengths.sum()
    assert (first.sample_ids_BS < 0).float().mean() < 0.06


def test_a_side_in_its_own_process_gives_the_loss_of_the_model() -> None:
    answer = run_side(TINY)
    rows = pack_rows(make_rows(TINY), TINY.row_tokens)
    loss_sum, num_labels, _ = GenLIP(TINY.config)(rows)
    assert answer["loss"] == pytest.approx((loss_sum / num_labels).item(), rel=1e-5)
    assert answer["num_samples"] == rows.num_samples
    assert answer["step_s"] > 0
    assert answer["peak_bytes"] > 0


def test_a_side_that_fails_is_reported_with_its_last_words() -> None:
    with pytest.raises(BenchError, match=r"no-such-folder/veomni does not exist"):
        run_side(replace(TINY, side="official", folder="/no-such-folder"))


@pytest.mark.parametrize("change", [{"loss": 2.01}, {"grad_norm": 3.2}, {"loss": float("nan")}])
def test_sides_that_compute_different_things_are_not_compared(change: dict[str, float]) -> None:
    ours: dict[str, Any] = {"name": "ours", "loss": 2.0, "grad_norm": 3.0}
    check_agreement(ours, {**ours, "name": "peer", "loss": 2.0001}, 1e-3)
    with pytest.raises(BenchError, match="peer: "):
        check_agreement(ours, {**ours, "name": "peer", **change}, 1e-3)


def test_both_losses_are_the_same() -> None:
    setup = replace(TINY, side="loss", num_steps=0)
    chunked, whole = (side.make_step(setup)[0]() for side in (model_loss, model_loss_whole))
    torch.testing.assert_close(chunked, whole)


def test_scoring_again_gives_our_scores() -> None:
    model = GenLIP(TINY.config)
    rng = np.random.default_rng(0)
    image = make_sample(TINY.config, 0, rng)
    candidates = [rng.integers(1, 512, length).tolist() for length in (1, 5, 3, 9)]
    again = model_score.score_again(model, image, [7, 8], candidates, row_tokens=2 * (784 + 11))
    torch.testing.assert_close(again, score_captions(model, [(image.patches, image.grid)], [7, 8], candidates)[0])


def test_open_clip_gets_flat_patches_with_the_channel_last_and_padded_text() -> None:
    samples = [make_sample(TINY.config, length, np.random.default_rng(length)) for length in (2, 5)]
    batch = model_open_clip.pad(samples)
    first_pixel = torch.from_numpy(samples[1].patches[30, :, 0, 0]) / 127.5 - 1
    torch.testing.assert_close(batch["image"]["patches"][1, 30, :3], first_pixel)
    assert batch["image"]["patch_coord"][1, 30].tolist() == [1, 2]
    assert batch["text"].tolist()[0] == [*samples[0].caption_ids, 0, 0, 0]


def test_utilisation_is_flops_over_time_and_peak(capsys: pytest.CaptureFixture[str]) -> None:
    """The GPU's code path on the CPU."""
    rows = pack_rows(make_rows(TINY), TINY.row_tokens)
    flops = sum(
        flops_per_sample(TINY.config, num_image, num_tokens - num_image, num_tokens - num_image)
        for _, _, num_image, num_tokens in rows.segments_M4.tolist()
    )
    assert model_gpu.count_step(TINY) == (int(rows.segments_M4[:, 3].sum()), flops)
    setups = list(model_gpu.variants(TINY, ["sdpa"]))
    assert [setup.gradient_checkpointing for setup in setups] == [False, True]
    results = [result for setup in setups for result in model_gpu.measure(setup, "", 1e12, model_side.measure)]
    assert [result.metric for result in results] == [
        f"nano8_sdpa{suffix}_{metric}"
        for suffix in ("", "_checkpointed")
        for metric in ("tokens_per_s", "mfu", "peak_memory")
    ]
    tokens_per_s, mfu = results[0].value, results[1].value
    assert mfu / tokens_per_s == pytest.approx(flops / 1e12 / rows.segments_M4[:, 3].sum().item())
    assert f"{flops:.4g} FLOP / " in capsys.readouterr().err
    assert all(result.peer == "official: pass --official FOLDER" and result.ratio is None for result in results)


def test_a_variant_that_does_not_fit_gives_no_result_but_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert model_gpu.measure(TINY, "", 1e12, lambda setup: {"out_of_memory": "CUDA out of memory"}) == []
    assert "nano8_auto: no result, CUDA out of memory" in capsys.readouterr().err


def test_ours_is_reported_where_the_official_code_does_not_fit() -> None:
    def run(setup: StepSetup) -> dict[str, Any]:
        if setup.side == "official":
            return {"out_of_memory": "CUDA out of memory"}
        return {"name": "ours", "loss": 1.0, "step_s": 2.0, "peak_bytes": 2**30}

    speed, _, memory = model_gpu.measure(TINY, "/official", 1e12, run)
    assert speed.value == model_gpu.count_step(TINY)[0] / 2
    assert memory.value == 1
    assert speed.peer == "official GenLIP failed: CUDA out of memory"


def test_the_peak_of_a_known_gpu_is_found_and_asked_for_otherwise() -> None:
    assert model_gpu.find_peak_flops("NVIDIA H200") == 989e12
    with pytest.raises(BenchError, match="--peak-flops"):
        model_gpu.find_peak_flops("NVIDIA T4")


def test_a_setup_survives_its_way_to_the_process() -> None:
    assert StepSetup(**json.loads(json.dumps(vars(TINY)))) == TINY
