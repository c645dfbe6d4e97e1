"""Recorded attention is the model's own, and its statistics are what their names say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_images import SPEC, broken, square, squares, tiny_model

from model import EncodedSample, GenLIP, LoadedModel, pack_rows
from model.layers import SelfAttention
from train.evaluation.attention_mass import attention, masses, run_recorded, visible
from train.evaluation.features import Features
from train.evaluation.result import Part
from train.evaluation.samples import EvalData, Labelled

NAMES = ("text_to_first_text", "text_to_image", "text_to_other_text", "image_to_strongest")


def run(loaded: LoadedModel, heldout: list[Labelled]) -> Part:
    data = EvalData(heldout, [])
    return attention(loaded, data, SPEC, Features(loaded, data, SPEC))


def encoded(loaded: LoadedModel, one: Labelled) -> EncodedSample:
    tokenizer = loaded.tokenizer
    caption_ids = [*tokenizer.encode(one.caption), *tokenizer.ending_ids]
    return EncodedSample(*loaded.processor.load_patches(one.image), tokenizer.prompt_ids, caption_ids)


def network(loaded: LoadedModel) -> GenLIP:
    assert isinstance(loaded.model, GenLIP)
    return loaded.model


def test_what_is_seen() -> None:
    assert visible(num_image=2, num_tokens=4).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("gated", [True, False])
def test_outputs_are_those_of_the_model(gated: bool) -> None:
    loaded = tiny_model(gated_attention=gated)
    model, sample = network(loaded), encoded(loaded, squares(1, seed=0)[0])
    with torch.no_grad():
        expected = model.hidden_BSD(pack_rows([[sample]], sample.num_tokens))[0]
    probabilities: list[torch.Tensor] = []
    hidden = run_recorded(model, sample, lambda p, gate: probabilities.append(p))
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    assert len(probabilities) == 2
    for p in probabilities:
        assert p.shape == (4, sample.num_tokens, sample.num_tokens)
        torch.testing.assert_close(p.sum(dim=-1), torch.ones(p.shape[:2]))


def test_probabilities_are_those_of_dense_attention() -> None:
    """Values that are unit vectors make attention's output its probabilities."""
    loaded = tiny_model()
    model, sample = network(loaded), encoded(loaded, squares(1, seed=0)[0])
    rows = pack_rows([[sample]], sample.num_tokens)
    own = model.packed_attend(rows)
    sees = torch.tensor(
        [[key < 16 or key <= query for key in range(sample.num_tokens)] for query in range(sample.num_tokens)]
    )
    expected: list[torch.Tensor] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        units = torch.eye(len(v)).expand(4, -1, -1)
        expected.append(F.scaled_dot_product_attention(q.transpose(0, 1), k.transpose(0, 1), units, attn_mask=sees))
        return own(q, k, v)

    found: list[torch.Tensor] = []
    with torch.no_grad():
        model.run_blocks(model.embed_rows(rows), rows.position_ids_B3S, [attend] * 2)
    run_recorded(model, sample, lambda p, gate: found.append(p))
    for p, dense in zip(found, expected, strict=True):
        torch.testing.assert_close(p, dense, rtol=1e-4, atol=1e-6)


def test_masses_by_hand() -> None:
    """Two patches, then three text tokens, one head."""
    p = torch.tensor(
        [
            [
                [0.25, 0.75, 0.0, 0.0, 0.0],
                [0.75, 0.25, 0.0, 0.0, 0.0],
                [0.0, 0.0, 1.0, 0.0, 0.0],  # the first text token is no query
                [0.125, 0.125, 0.5, 0.25, 0.0],
                [0.25, 0.25, 0.25, 0.125, 0.125],
            ]
        ]
    )
    assert masses(p, num_image=2) == {
        "text_to_first_text": 0.375,
        "text_to_image": 0.375,
        "text_to_other_text": 0.25,
        "image_to_strongest": 0.5,
    }


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), num_image=st.integers(1, 6), num_text=st.integers(2, 6))
def test_what_text_gives_adds_up_to_one(seed: int, num_image: int, num_text: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sees = visible(num_image, num_image + num_text)
    scores = torch.randn(3, *sees.shape, generator=generator)
    found = masses(scores.masked_fill(~sees, -torch.inf).softmax(dim=-1), num_image)
    assert sum(found[name] for name in NAMES[:3]) == pytest.approx(1, abs=1e-5)
    assert 1 / num_image - 1e-5 <= found["image_to_strongest"] <= 1 + 1e-5


def test_queries_of_zero_attend_evenly() -> None:
    """Then the statistics are their own chance, and a gate of one value scales them all."""
    loaded = tiny_model()
    for module in loaded.model.modules():
        if isinstance(module, SelfAttention):
            torch.nn.init.zeros_(module.q_proj.weight)
            with torch.no_grad():
                module.q_proj.bias.copy_(torch.tensor([0.0] * 32 + [-2.0] * 32))
    part = run(loaded, squares(3, seed=0))
    gate = 1 / (1 + np.exp(2.0))
    assert part.metrics["attention/gate"].value == pytest.approx(gate)
    for name in NAMES:
        metric = part.metrics[f"attention/{name}"]
        assert metric.value == pytest.approx(metric.chance, rel=1e-5)
        assert part.metrics[f"attention/{name}_gated"].value == pytest.approx(gate * metric.value, rel=1e-5)
    assert part.metrics["attention/image_to_strongest"].value == pytest.approx(1 / 16)


def test_means_over_layers_and_images() -> None:
    heldout = squares(3, seed=0)
    part = run(tiny_model(), [heldout[0], broken("red"), Labelled("plain", square("red")), *heldout[1:]])
    for name, values in part.details["attention/by_layer"].items():
        metric = part.metrics[f"attention/{name}"]
        assert len(values) == 2
        assert metric.value == pytest.approx(np.mean(values))
        per_image = part.per_image[f"attention/{name}"]
        assert np.isnan(per_image).tolist() == [False, True, True, False, False]
        assert metric.value == pytest.approx(np.nanmean(per_image))
    assert sum(part.metrics[f"attention/{name}"].value for name in NAMES[:3]) == pytest.approx(1, abs=1e-5)
    assert part.details["attention/num_images"] == 3


def test_a_gate_belongs_to_its_head_and_query() -> None:
    loaded = tiny_model()
    model, one = network(loaded), squares(1, seed=0)[0]
    for block in model.visual.layers:
        torch.nn.init.normal_(block.self_attn.q_proj.weight, std=1, generator=torch.Generator().manual_seed(0))
    recorded: list[tuple[torch.Tensor, torch.Tensor]] = []
    sample = encoded(loaded, one)
    run_recorded(model, sample, lambda p, gate: recorded.append((p, gate)))
    attention_0 = model.visual.layers[0]
    with torch.no_grad():
        x = model.embed_rows(pack_rows([[sample]], sample.num_tokens))
        halves = attention_0.self_attn.q_proj(attention_0.layer_norm1(x)).view(len(x), 2, 4, 8)
    torch.testing.assert_close(recorded[0][1], halves[:, 1].sigmoid().mean(dim=-1).T)
    mass = [
        sum(float(p[head, query, :16].sum() * gate[head, query]) for head in range(4) for query in range(17, len(x)))
        for p, gate in recorded
    ]
    expected = np.mean(mass) / (4 * (len(x) - 17))
    assert run(loaded, [one]).metrics["attention/text_to_image_gated"].value == pytest.approx(expected, rel=1e-4)


def test_a_model_without_gates_has_no_gated_numbers() -> None:
    part = run(tiny_model(gated_attention=False), squares(2, seed=0))
    assert set(part.metrics) == {f"attention/{name}" for name in NAMES}


def test_no_hook_stays_behind() -> None:
    loaded = tiny_model()
    run(loaded, squares(1, seed=0))
    assert not any(module._forward_hooks for module in loaded.model.modules())


@pytest.mark.parametrize(
    ("objective", "heldout"), [("mae", squares(1, seed=0)), ("genlip", [Labelled("0", square("red"))])]
)
def test_without_text_there_is_a_note(objective: str, heldout: list[Labelled]) -> None:
    part = run(tiny_model(objective), heldout)
    assert part.metrics == {}
    assert "attention is left out" in part.notes[0]
