"""Probes find what is there to find, and nothing in noise."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_images import SPEC, broken, coloured_data, squares, tiny_model

from train.evaluation.features import Features
from train.evaluation.probes import AttentiveProbe, linear_logits, probe, train_probe
from train.evaluation.result import Part
from train.evaluation.samples import EvalData


def gaussians(count: int, distance: float, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes of unit variance that far apart, in unlike units and away from 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    classes = torch.randint(2, (count,), generator=generator)
    x[:, 0] += distance * classes
    return x * torch.logspace(-2, 2, width) + 100, classes


def test_the_linear_probe_reaches_the_bayes_rate() -> None:
    train, classes = gaussians(3000, distance=2.0, width=10, seed=0)
    queries, truth = gaussians(6000, distance=2.0, width=10, seed=1)
    logits, _ = linear_logits(train, classes, queries, num_classes=2)
    bayes = 0.5 * (1 + math.erf(1 / math.sqrt(2)))  # Phi(distance / 2)
    assert float((logits.argmax(dim=1) == truth).float().mean()) == pytest.approx(bayes, abs=0.015)


def test_the_linear_probe_solves_its_problem() -> None:
    """At the optimum the gradient of cross entropy + l2 |W|^2 / 2 is 0; it needs only logits of the training images."""
    train, classes = gaussians(400, distance=1.0, width=6, seed=0)
    logits, l2 = linear_logits(train, classes, train, num_classes=2)
    x = (train - train.mean(dim=0)) / train.std(dim=0, correction=0)
    # The logits are linear in x, so W follows from them.
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solution = torch.linalg.lstsq(design, logits).solution
    weight = solution[:-1]
    gradient = x.T @ (logits.softmax(dim=1) - F.one_hot(classes, 2)) / len(x) + l2 * weight
    assert float(gradient.abs().max()) < 1e-3


def test_labels_of_chance_are_not_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x, classes = torch.randn(600, 40, generator=generator), torch.randint(4, (600,), generator=generator)
    queries, truth = torch.randn(4000, 40, generator=generator), torch.randint(4, (4000,), generator=generator)
    logits, l2 = linear_logits(x, classes, queries, num_classes=4)
    # Five standard deviations of a guess.
    assert float((logits.argmax(dim=1) == truth).float().mean()) == pytest.approx(0.25, abs=0.035)
    assert l2 >= 0.1


def test_a_constant_channel_does_no_harm() -> None:
    train, classes = gaussians(200, distance=6.0, width=3, seed=0)
    train[:, 1] = 7.0
    logits, _ = linear_logits(train, classes, train, num_classes=2)
    assert float((logits.argmax(dim=1) == classes).float().mean()) > 0.97


def marked_patches(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 16, 8] of noise with one marked patch, whose second channel holds the class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 16, 8, generator=generator)
    classes = torch.randint(2, (count,), generator=generator)
    place = torch.randint(16, (count,), generator=generator)
    x[:, :, 0] = 0
    x[torch.arange(count), place, 0] = 4
    x[torch.arange(count), place, 1] = 4.0 * classes - 2
    return x, classes


def test_the_attentive_probe_finds_the_patch_that_matters() -> None:
    train, classes = marked_patches(512, seed=0)
    queries, truth = marked_patches(1000, seed=1)
    pooled_logits, _ = linear_logits(train.mean(dim=1), classes, queries.mean(dim=1), num_classes=2)
    all_patches = torch.ones(len(train), 16, dtype=torch.bool)
    attentive = AttentiveProbe(train.mean(dim=(0, 1)), train.std(dim=(0, 1)), num_heads=2, num_classes=2)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(attentive(train[batch], all_patches[batch]), classes[batch])

    train_probe(attentive, loss_of, len(train), epochs=20, width=8)
    logits = attentive(queries, torch.ones(len(queries), 16, dtype=torch.bool))
    assert float((logits.argmax(dim=1) == truth).float().mean()) > 0.95
    assert float((pooled_logits.argmax(dim=1) == truth).float().mean()) < 0.8


def test_padding_changes_no_attentive_logit() -> None:
    attentive = AttentiveProbe(torch.zeros(8), torch.ones(8), num_heads=2, num_classes=3)
    torch.nn.init.normal_(attentive.query_HD)
    torch.nn.init.normal_(attentive.weight_DC)
    x = torch.randn(2, 6, 8)
    is_patch = torch.arange(9).expand(2, -1) < 6
    padded = torch.cat([x, torch.full((2, 3, 8), 50.0)], dim=1)
    torch.testing.assert_close(attentive(padded, is_patch), attentive(x, is_patch[:, :6]))


def test_single_query_pooling_is_cross_attention() -> None:
    """The same as attention with keys and values of its own, as the folding of the key projection claims."""
    generator = torch.Generator().manual_seed(0)
    attentive = AttentiveProbe(torch.zeros(8), torch.ones(8), num_heads=2, num_classes=3)
    query, key, values = (torch.randn(8, *rest, generator=generator) for rest in ((), (8,), (8,)))
    x = torch.randn(5, 6, 8, generator=generator)
    q, k, v = ((y).unflatten(-1, (2, 4)) for y in (query, x @ key, x @ values))
    attended = F.scaled_dot_product_attention(
        q.expand(5, 1, 2, 4).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    )
    with torch.no_grad():
        folded = torch.einsum("dhk,hk->hd", key.unflatten(1, (2, 4)), q)
        attentive.query_HD.copy_(folded * (8**0.5 / 4**0.5))
        attentive.value_HDK.copy_(values.unflatten(1, (2, 4)).transpose(0, 1))
        attentive.weight_DC.copy_(torch.randn(8, 3, generator=generator))
    expected = attended.transpose(1, 2).flatten(1) @ attentive.weight_DC
    torch.testing.assert_close(attentive(x, torch.ones(5, 6, dtype=torch.bool)), expected)


@pytest.fixture(scope="module")
def measured() -> Part:
    """Both probes on colours, which an untrained model tells apart."""
    data, loaded = coloured_data(), tiny_model()
    torch.manual_seed(1)
    return probe(loaded, data, SPEC, Features(loaded, data, SPEC))


def test_colours_are_told_apart(measured: Part) -> None:
    assert {name: metric.value for name, metric in measured.metrics.items()} == {
        "probe/linear_top1": 1,
        "probe/linear_top5": 1,
        "probe/attentive_top1": 1,
    }
    assert measured.metrics["probe/linear_top1"].chance == pytest.approx(1 / 3)
    assert measured.metrics["probe/linear_top5"].chance == 1
    assert measured.details["probe/num_classes"] == 3
    assert measured.details["probe/majority_class"] == pytest.approx(1 / 3)


def test_a_global_seed_changes_nothing_and_is_not_changed() -> None:
    train, classes = marked_patches(64, seed=0)
    logits = []
    all_patches = torch.ones(len(train), 16, dtype=torch.bool)
    for _ in range(2):
        torch.rand(1)
        state = torch.get_rng_state()
        attentive = AttentiveProbe(train.mean(dim=(0, 1)), train.std(dim=(0, 1)), num_heads=2, num_classes=2)

        def loss_of(batch: torch.Tensor, probe: AttentiveProbe = attentive) -> torch.Tensor:
            return F.cross_entropy(probe(train[batch], all_patches[batch]), classes[batch])

        linear_logits(train.mean(dim=1), classes, train.mean(dim=1), num_classes=2)
        train_probe(attentive, loss_of, len(train), epochs=1, width=8)
        assert torch.equal(torch.get_rng_state(), state)
        logits.append(attentive(train, all_patches))
    assert torch.equal(logits[0], logits[1])


def test_unknown_classes_and_broken_images_have_no_value() -> None:
    loaded = tiny_model()
    data = EvalData([broken("red"), *squares(6, seed=1000)], squares(12, seed=0, colours=("red", "blue")))
    part = probe(loaded, data, SPEC, Features(loaded, data, SPEC))
    for name, metric in part.metrics.items():
        assert np.isnan(part.per_image[name]).tolist() == [True, False, True, False, False, True, False]
        assert metric.value == np.nanmean(part.per_image[name])
    assert "2 held-out images" in part.notes[0]


@pytest.mark.parametrize("training", [("red",), ()])
def test_too_few_classes_give_a_note(training: tuple[str, ...]) -> None:
    loaded = tiny_model()
    data = EvalData(squares(3, seed=1000), squares(4, 0, training) if training else [])
    part = probe(loaded, data, SPEC, Features(loaded, data, SPEC))
    assert part.metrics == {}
    assert "probe is left out" in part.notes[0]
