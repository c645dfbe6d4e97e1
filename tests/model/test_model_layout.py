"""Rows: labels and positions of the official template, isolation of packed samples, errors."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import EncodedSample, GenLIP, GenLIPConfig, ModelError, PackedRows, pack_rows

GOLDEN = Path(os.environ.get("GENLIP_GOLDEN", Path(__file__).parents[1] / "golden" / "genlip"))
VOCAB = 40
CONFIG = GenLIPConfig(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    text_embed_dim=16,
    vocab_size=VOCAB,
    patch_size=2,
    drop_path_rate=0.0,
)


def make_model(seed: int = 0) -> GenLIP:
    """A toy model with noise on every parameter, so that no branch is hidden by zeros or small LayerScale."""
    model = GenLIP(CONFIG).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def make_sample(seed: int, grid: tuple[int, int], num_prompt: int, num_caption: int) -> EncodedSample:
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (grid[0] * grid[1], 3, 2, 2), dtype=np.uint8)
    ids = rng.integers(0, VOCAB, num_prompt + num_caption).tolist()
    return EncodedSample(patches, grid, ids[:num_prompt], ids[num_prompt:])


side = st.integers(1, 4)
samples_strategy = st.builds(
    make_sample, st.integers(0, 999), st.tuples(side, side), st.integers(0, 3), st.integers(0, 7)
)
rows_strategy = st.lists(st.lists(samples_strategy, max_size=4), min_size=1, max_size=3).filter(any)


def row_length(rows: list[list[EncodedSample]], extra: int = 0) -> int:
    return max(sum(sample.num_tokens for sample in row) for row in rows) + extra


def template_cases() -> list[Any]:
    cases = json.loads((GOLDEN / "data_rules.json").read_text())["template_cases"]
    single_turn = {name: case for name, case in cases.items() if len(case["conversation"]) == 2}
    return [pytest.param(case, id=name) for name, case in single_turn.items()]


@pytest.mark.parametrize("case", template_cases())
def test_template_rules(case: dict[str, Any]) -> None:
    """One user and one assistant turn, with the byte tokenizer of the golden files."""
    prompt, caption = (
        "".join(text for kind, text in parts if kind == "text") for _role, *parts in case["conversation"]
    )
    prompt_ids = list(prompt.strip().encode())
    caption_ids = [*caption.strip().encode(), 258, 10]
    patches = np.zeros((case["image_tokens"], 3, 2, 2), np.uint8)
    sample = EncodedSample(patches, (1, case["image_tokens"]), prompt_ids, caption_ids)
    rows = pack_rows([[sample]], len(case["input_ids"]))
    assert rows.input_ids_BS[0].tolist() == [0 if i == -200 else i for i in case["input_ids"]]
    assert rows.labels_BS[0].tolist() == case["labels"]
    assert rows.image_mask_BS[0].tolist() == case["image_mask"]
    assert sample.num_tokens == len(case["input_ids"])


@settings(max_examples=60, deadline=None)
@given(rows=rows_strategy, extra=st.integers(0, 5))
def test_positions_labels_and_padding(rows: list[list[EncodedSample]], extra: int) -> None:
    packed = pack_rows(rows, row_length(rows, extra))
    assert packed.num_samples == sum(map(len, rows))
    assert packed.num_labels == sum(len(sample.caption_ids) for row in rows for sample in row)
    for number, row in enumerate(rows):
        tokens: list[tuple[int, int, list[int], int]] = []
        for sample_id, sample in enumerate(row):
            gh, gw = sample.grid
            tokens += [(0, -100, [0, r, c], sample_id) for r in range(gh) for c in range(gw)]
            text = [*((i, -100) for i in sample.prompt_ids), *((i, i) for i in sample.caption_ids)]
            tokens += [(i, label, [max(gh, gw) + k] * 3, sample_id) for k, (i, label) in enumerate(text)]
        tokens += [(0, -100, [-1] * 3, -1)] * (packed.input_ids_BS.shape[1] - len(tokens))
        ids, labels, positions, sample_ids = map(list, zip(*tokens, strict=True))
        assert packed.input_ids_BS[number].tolist() == ids
        assert packed.labels_BS[number].tolist() == labels
        assert packed.position_ids_B3S[number].T.tolist() == positions
        assert packed.sample_ids_BS[number].tolist() == sample_ids


@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy, extra=st.integers(0, 70))
def test_packed_equals_alone(rows: list[list[EncodedSample]], extra: int) -> None:
    model = make_model()
    with torch.no_grad():
        packed = pack_rows(rows, row_length(rows, extra))
        logits = model.logits(packed)
        for segment, sample in zip(packed.segments_M4.tolist(), [s for row in rows for s in row], strict=True):
            row, start, _, length = segment
            alone = model.logits(pack_rows([[sample]], sample.num_tokens))[0]
            torch.testing.assert_close(logits[row, start : start + length], alone, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(samples=st.lists(samples_strategy, min_size=2, max_size=5), data=st.data())
def test_permuting_samples_permutes_outputs(samples: list[EncodedSample], data: st.DataObject) -> None:
    model = make_model()
    order = data.draw(st.permutations(range(len(samples))))
    length = row_length([samples])
    with torch.no_grad():
        before = model.hidden_BSD(pack_rows([samples], length))[0].split([s.num_tokens for s in samples])
        moved = [samples[i] for i in order]
        after = model.hidden_BSD(pack_rows([moved], length))[0].split([s.num_tokens for s in moved])
    for place, original in enumerate(order):
        torch.testing.assert_close(after[place], before[original], atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(sample=samples_strategy, other_text=st.lists(st.integers(0, VOCAB - 1), max_size=6))
def test_image_features_do_not_depend_on_text(sample: EncodedSample, other_text: list[int]) -> None:
    model = make_model()
    other = dataclasses.replace(sample, prompt_ids=other_text)
    num_image = len(sample.patches)
    with torch.no_grad():
        features = model.encode_image(sample.patches, sample.grid)
        for variant in (sample, other):
            hidden = model.hidden_BSD(pack_rows([[variant]], variant.num_tokens))[0, :num_image]
            torch.testing.assert_close(hidden, features, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy, data=st.data())
def test_the_loss_is_that_of_the_labelled_positions_and_of_no_other(
    rows: list[list[EncodedSample]], data: st.DataObject
) -> None:
    """For any choice of labels among the caption tokens."""
    packed = pack_rows(rows, row_length(rows, extra=2))
    places = packed.label_index_L.tolist()
    dropped = data.draw(st.lists(st.sampled_from(places), unique=True)) if places else []
    labels_BS = packed.labels_BS.clone()
    labels_BS.view(-1)[dropped] = -100
    chosen = PackedRows.from_tensors(
        packed.input_ids_BS,
        labels_BS,
        packed.position_ids_B3S,
        packed.sample_ids_BS,
        packed.image_mask_BS,
        packed.patches_NCPP,
        patch_size=2,
    )
    model = make_model()
    out = model(chosen)
    log_probs = model.logits(chosen).detach().flatten(0, 1).log_softmax(dim=-1)
    expected = -sum(log_probs[place - 1, packed.input_ids_BS.flatten()[place]] for place in {*places} - {*dropped})
    torch.testing.assert_close(out.loss_sum, torch.as_tensor(expected, dtype=torch.float32))
    assert int(out.num_labels) == len(places) - len(dropped)


def test_later_text_does_not_change_earlier_text() -> None:
    model = make_model()
    long = make_sample(1, (2, 3), 2, 6)
    short = dataclasses.replace(long, caption_ids=long.caption_ids[:3])
    with torch.no_grad():
        all_logits = model.logits(pack_rows([[long]], long.num_tokens))[0]
        first_logits = model.logits(pack_rows([[short]], short.num_tokens))[0]
    torch.testing.assert_close(all_logits[: short.num_tokens], first_logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(all_logits[short.num_tokens :], all_logits[: long.num_tokens - short.num_tokens])


def test_gradient_of_packed_rows_is_the_sum_of_single_gradients() -> None:
    samples = [make_sample(seed, (1 + seed, 2), seed % 2, 2 + 3 * seed) for seed in range(4)]

    def gradients(rows: PackedRows) -> torch.Tensor:
        model = make_model()
        model(rows).loss_sum.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    packed = gradients(pack_rows([samples[:3], samples[3:]], row_length([samples], extra=3)))
    single = sum(gradients(pack_rows([[sample]], sample.num_tokens)) for sample in samples)
    assert (packed - single).norm() < 1e-4 * packed.norm()


def test_padding_changes_nothing_and_float_patches_count_as_normalised() -> None:
    model, sample = make_model(), make_sample(3, (2, 2), 1, 4)
    normalised = (sample.patches.astype(np.float32) / 255 - 0.5) / 0.5
    tight = model(pack_rows([[sample]], sample.num_tokens))
    padded = model(pack_rows([[sample], []], sample.num_tokens + 9))
    as_float = model(pack_rows([[dataclasses.replace(sample, patches=normalised)]], sample.num_tokens))
    torch.testing.assert_close(padded.loss_sum, tight.loss_sum)
    torch.testing.assert_close(as_float.loss_sum, tight.loss_sum)
    assert int(padded.num_labels) == int(tight.num_labels) == 4


@pytest.mark.parametrize("rows", [[[]], [[make_sample(0, (1, 2), 2, 0)]]], ids=["no samples", "no captions"])
def test_without_labels_the_loss_is_zero_and_every_parameter_has_a_gradient(rows: list[list[EncodedSample]]) -> None:
    model = make_model().train()
    out = model(pack_rows(rows, 6))
    out.loss_sum.backward()
    assert out.loss_sum.item() == 0
    assert int(out.num_labels) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_from_tensors_equals_pack_rows() -> None:
    samples = [make_sample(seed, (2, 1 + seed), 1, 3) for seed in range(3)]
    packed = pack_rows([samples[:2], [], samples[2:]], 20)
    rebuilt = PackedRows.from_tensors(
        packed.input_ids_BS,
        packed.labels_BS,
        packed.position_ids_B3S,
        packed.sample_ids_BS,
        packed.image_mask_BS,
        packed.patches_NCPP,
        patch_size=2,
    )
    for name, value in vars(packed).items():
        assert torch.equal(torch.as_tensor(getattr(rebuilt, name)), torch.as_tensor(value)), name


def from_tensors(
    sample: list[int], is_image: list[bool], labels: list[int], num_patches: int, ids: list[int] | None = None
) -> PackedRows:
    sample_ids = torch.tensor([sample])
    return PackedRows.from_tensors(
        input_ids_BS=torch.tensor([ids or [0] * len(sample)]),
        labels_BS=torch.tensor([labels]),
        position_ids_B3S=torch.zeros(1, 3, len(sample), dtype=torch.int64),
        sample_ids_BS=sample_ids,
        image_mask_BS=torch.tensor([is_image]),
        pixel_values=torch.zeros(num_patches, 3, 2, 2),
        patch_size=2,
    )


def test_from_tensors_rejects_what_attention_cannot_do() -> None:
    none = [-100] * 3
    with pytest.raises(ModelError, match="before the text"):
        from_tensors([0, 0, 0], [False, True, False], none, 1)
    with pytest.raises(ModelError, match="1 image tokens but 2 patches"):
        from_tensors([0, 0, 0], [True, False, False], none, 2)
    with pytest.raises(ModelError, match="count 0, 1, 2"):
        from_tensors([1, 1, -1], [True, False, False], none, 1)
    with pytest.raises(ModelError, match="count 0, 1, 2"):
        from_tensors([0, -1, 0], [True, False, False], none, 1)
    with pytest.raises(ModelError, match="has a label"):
        from_tensors([0, 0, 1], [True, False, False], [-100, -100, 7], 1, ids=[0, 5, 7])


def test_from_tensors_rejects_labels_that_are_not_the_ids_and_negative_ids() -> None:
    assert from_tensors([0, 0], [True, False], [-100, 7], 1, ids=[0, 7]).num_labels == 1
    with pytest.raises(ModelError, match=r"label 8 at row 0, token 1 must be -100 or the id .* \(7\)"):
        from_tensors([0, 0], [True, False], [-100, 8], 1, ids=[0, 7])
    with pytest.raises(ModelError, match="row 0, token 1 must be"):
        from_tensors([0, 0], [True, True], [-100, 0], 2)
    with pytest.raises(ModelError, match="token id -200 is negative"):
        from_tensors([0, 0], [True, False], [-100, 7], 1, ids=[-200, 7])


def test_bad_samples_and_rows_are_refused() -> None:
    sample = make_sample(0, (2, 2), 1, 2)
    with pytest.raises(ModelError, match="row 1 has 14 tokens"):
        pack_rows([[sample], [sample, sample]], 13)
    with pytest.raises(ModelError, match="row 0 has 7 tokens in 1 samples but only 6 fit"):
        pack_rows([[sample]], 6)
    with pytest.raises(ModelError, match="0 rows"):
        pack_rows([], 13)
    with pytest.raises(ModelError, match="1 rows of 0 tokens"):
        pack_rows([[]], 0)
    with pytest.raises(ModelError, match="token id -1 is negative"):
        pack_rows([[dataclasses.replace(sample, caption_ids=[3, -1])]], 20)
    with pytest.raises(ModelError, match="grid"):
        dataclasses.replace(sample, grid=(2, 3))
    with pytest.raises(ModelError, match="uint8 or normalised float32"):
        dataclasses.replace(sample, patches=sample.patches.astype(np.float64))
    with pytest.raises(ModelError, match="share patch type"):
        pack_rows([[sample, dataclasses.replace(sample, patches=sample.patches.astype(np.float32))]], 20)


def test_pixels_that_are_no_finite_images_are_refused() -> None:
    sample = make_sample(0, (2, 1), 1, 2)
    with pytest.raises(ModelError, match="patches hold NaN or infinity"):
        dataclasses.replace(sample, patches=np.full((2, 3, 2, 2), np.nan, np.float32))
    rows = {name: value for name, value in vars(pack_rows([[sample]], 5)).items() if name.endswith(("BS", "B3S"))}
    for pixels, message in [
        (torch.full((2, 3, 2, 2), torch.inf), "hold NaN or infinity"),
        (torch.zeros(3, 4, 2), r"must be \[images or patches, C, height, width\], got \[3, 4, 2\]"),
        (torch.zeros(1, 3, 4, 3), "do not split into patches of 2 pixels"),
    ]:
        with pytest.raises(ModelError, match=message):
            PackedRows.from_tensors(**rows, pixel_values=pixels, patch_size=2)


def test_rows_that_do_not_fit_the_model_are_refused() -> None:
    model, sample = make_model(), make_sample(0, (1, 1), 0, 2)
    with pytest.raises(ModelError, match="token id 40"):
        model(pack_rows([[dataclasses.replace(sample, caption_ids=[VOCAB])]], 2))
    with pytest.raises(ModelError, match="do not fit a model"):
        model(pack_rows([[dataclasses.replace(sample, patches=np.zeros((1, 3, 4, 4), np.uint8))]], 3))
