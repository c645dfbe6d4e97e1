"""CLIP's and SigLIP's losses: the published formulas, on one process and on several."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from model import EncodedSample, ModelError
from model.baselines import Contrastive
from tests.model.baselines.toys import ENDING, gradients, image_of, make_sample, pack, tiny_baseline

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torch", "model"])
MAX_WAIT_S = 120


def contrastive(objective: str) -> Contrastive:
    model = tiny_baseline(objective)
    assert isinstance(model, Contrastive)
    return model


def clip_formula(image_GE: np.ndarray, text_GE: np.ndarray, scale: float) -> float:
    """Sum over the pairs; float64."""
    logits = scale * image_GE @ text_GE.T
    log_p_text = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    log_p_image = logits - np.log(np.exp(logits).sum(axis=0, keepdims=True))
    return float(-(np.trace(log_p_text) + np.trace(log_p_image)) / 2)


def siglip_formula(image_GE: np.ndarray, text_GE: np.ndarray, scale: float, bias: float) -> float:
    """Sum over all combinations; float64."""
    logits = scale * image_GE @ text_GE.T + bias
    sign = 2 * np.eye(len(logits)) - 1
    return float(np.log1p(np.exp(-sign * logits)).sum())


def unit_vectors(seed: int, num: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, 6))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), num=st.integers(1, 7), log_scale=st.floats(-1, 3), bias=st.floats(-10, 2))
def test_losses_are_the_published_formulas(seed: int, num: int, log_scale: float, bias: float) -> None:
    image, text = unit_vectors(seed, num), unit_vectors(seed + 1, num)
    tensors = torch.from_numpy(image).float(), torch.from_numpy(text).float()
    clip, siglip = contrastive("clip"), contrastive("siglip")
    torch.nn.init.constant_(clip.logit_scale, log_scale)
    torch.nn.init.constant_(siglip.logit_scale, log_scale)
    torch.nn.init.constant_(siglip.logit_bias, bias)
    with torch.no_grad():
        found = float(clip.loss_sum(*tensors)), float(siglip.loss_sum(*tensors))
    expected = clip_formula(image, text, np.exp(log_scale)), siglip_formula(image, text, np.exp(log_scale), bias)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_initial_temperatures_are_the_published_ones() -> None:
    clip, siglip = contrastive("clip"), contrastive("siglip")
    assert clip.scale.item() == pytest.approx(1 / 0.07)
    assert siglip.scale.item() == pytest.approx(10)
    assert siglip.logit_bias.item() == -10
    torch.nn.init.constant_(clip.logit_scale, 9.0)
    assert clip.scale.item() == 100


@pytest.mark.parametrize("objective", ["clip", "siglip"])
def test_loss_of_rows_is_that_of_the_embeddings(objective: str) -> None:
    """The pairs of rows are (image, caption with ending), whatever the prompt."""
    model = contrastive(objective).eval()
    samples = [make_sample(seed, grid, seed) for seed, grid in enumerate([(2, 3), (2, 2), (4, 1)])]
    with torch.no_grad():
        image = model.embed_images([image_of(sample) for sample in samples])
        text = model.embed_texts([sample.caption_ids for sample in samples])
        found = model(pack(samples[:1], samples[1:])).loss_sum
        torch.testing.assert_close(found, model.loss_sum(image, text), rtol=1e-4, atol=1e-4)
    for vectors in (image, text):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


def test_embedding_of_a_text_is_read_at_its_ending() -> None:
    model = contrastive("clip").eval()
    with torch.no_grad():
        first, second = model.embed_texts([[7, 8, *ENDING], [7, 9, *ENDING]])
        assert not torch.allclose(first, second)
        assert model.embed_texts([]).shape == (0, len(first))
        assert model.embed_images([]).shape == (0, len(first))
    for wrong in ([], [7, 50], [-1]):
        with pytest.raises(ModelError, match="text 1"):
            model.embed_texts([[7, *ENDING], wrong])


def _step(rank: int, objective: str, shares: Sequence[Sequence[EncodedSample]], folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'group'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=len(shares))
    model = contrastive(objective)
    loss = model(pack(shares[rank])).loss_sum
    loss.backward()
    torch.save((loss.detach(), gradients(model)), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("objective", ["clip", "siglip"])
@pytest.mark.parametrize("counts", [(3, 2), (4, 0)])
def test_two_processes_are_one(objective: str, counts: tuple[int, int], tmp_path: Path) -> None:
    """The sums of their losses and of their gradients, with unequal shares of the samples."""
    samples = [make_sample(seed) for seed in range(sum(counts))]
    shares = [samples[: counts[0]], samples[counts[0] :]]
    processes = [forks.Process(target=_step, args=(rank, objective, shares, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = contrastive(objective)
    loss = alone(pack(samples)).loss_sum
    loss.backward()
    for process in processes:
        process.join(MAX_WAIT_S)
    assert [process.exitcode for process in processes] == [0, 0]
    (loss_0, gradients_0), (loss_1, gradients_1) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(loss_0 + loss_1, loss.detach(), rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients_0[name] + gradients_1[name], gradient, rtol=1e-3, atol=1e-5)
