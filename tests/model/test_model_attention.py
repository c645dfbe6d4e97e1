"""Attention over packed rows: every back end that runs here against the official masks and against dense attention."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_golden import load_case, row_cases, rows_of
from torch import Tensor

from model import (
    EncodedSample,
    GenLIP,
    GenLIPConfig,
    ModelError,
    PackedRows,
    attention_sdpa,
    attention_varlen,
    pack_rows,
)
from model.attention import Backend, choose_backend, plan_attention, prefix_attention
from model.attention_varlen import VarlenCall, VarlenPlan

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU = torch.device("cpu")
BACKENDS: list[Backend] = ["sdpa", "varlen", "flex"]
# Flex has no backward pass on a CPU.
WITH_BACKWARD: list[Backend] = ["sdpa", "varlen"]
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


def sequence_by_sequence(q_QHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, call: VarlenCall) -> Tensor:
    """What a flash kernel computes, with its demands on the bounds."""
    for bounds, num_tokens, longest in (
        (call.query_bounds, len(q_QHK), call.max_queries),
        (call.key_bounds, len(k_SHK), call.max_keys),
    ):
        assert bounds.dtype == torch.int32
        assert (bounds[0], bounds[-1]) == (0, num_tokens)
        assert bounds.diff().min() > 0
        assert bounds.diff().max() == longest
    sizes = [bounds.diff().tolist() for bounds in (call.query_bounds, call.key_bounds)]
    outputs = []
    for q, k, v in zip(q_QHK.split(sizes[0]), k_SHK.split(sizes[1]), v_SHK.split(sizes[1]), strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool)
        if call.is_causal:
            mask = mask.tril(len(k) - len(q))
        outputs.append(dense_attention(q, k, v, mask))
    return torch.cat(outputs)


@pytest.fixture(autouse=True)
def _kernel_on_a_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the CUDA kernel alone, in the tests on a CPU; the plan and the two calls are the real ones."""
    if "skipif" not in request.keywords:
        monkeypatch.setattr(attention_varlen, "flash_varlen", sequence_by_sequence)


def dense_attention(q_QHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, mask_QS: Tensor) -> Tensor:
    scores = torch.einsum("qhk,shk->hqs", q_QHK, k_SHK) / q_QHK.shape[-1] ** 0.5
    return torch.einsum("hqs,shk->qhk", scores.masked_fill(~mask_QS, -torch.inf).softmax(-1), v_SHK)


def dense_mask(segments_M4: Tensor, num_rows: int, row_tokens: int) -> Tensor:
    """[N, N], from the rule as it is written."""
    mask = torch.zeros(num_rows * row_tokens, num_rows * row_tokens, dtype=torch.bool)
    for row, start, num_image, length in segments_M4.tolist():
        query, key = torch.arange(length)[:, None], torch.arange(length)
        first = row * row_tokens + start
        is_seen = torch.where(query < num_image, key < num_image, key <= query)
        mask[first : first + length, first : first + length] = is_seen
    return mask


@st.composite
def segments_strategy(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Segments with samples of an image, a text or both; rows may be empty or padded."""
    num_rows = draw(st.integers(1, 3))
    sizes = st.tuples(st.integers(0, 6), st.integers(0, 9)).filter(any)
    rows = draw(st.lists(st.lists(sizes, max_size=4), min_size=num_rows, max_size=num_rows))
    row_tokens = max(1, *(sum(map(sum, row)) for row in rows)) + draw(st.integers(0, 3))
    segments = []
    for number, row in enumerate(rows):
        start = 0
        for num_image, num_text in row:
            segments.append((number, start, num_image, num_image + num_text))
            start += num_image + num_text
    return torch.tensor(segments, dtype=torch.int64).reshape(-1, 4), num_rows, row_tokens


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "case_name"), row_cases())
def test_every_backend_sees_exactly_the_official_mask(name: str, case_name: str, backend: Backend) -> None:
    """With equal scores and one-hot values the output row is the mask row divided by its sum."""
    case = load_case(name, case_name)
    rows = rows_of(name, case_name, case)
    num_rows, row_tokens = rows.input_ids_BS.shape
    num_tokens = num_rows * row_tokens
    plan = plan_attention(rows.segments_M4, num_rows, row_tokens, CPU, backend)
    zeros = torch.zeros(num_tokens, 1, num_tokens)
    weights = prefix_attention(zeros, zeros, torch.eye(num_tokens).unsqueeze(1), plan)[:, 0]
    expected = torch.block_diag(*case["out.attend"].float())
    assert torch.equal(weights > 0, expected > 0)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(rows=segments_strategy(), seed=st.integers(0, 99))
def test_every_backend_is_dense_attention_in_forward_and_backward(
    backend: Backend, rows: tuple[Tensor, int, int], seed: int
) -> None:
    segments, num_rows, row_tokens = rows
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = (torch.randn(num_rows * row_tokens, 2, 8, generator=generator) for _ in range(4))
    mask = dense_mask(segments, num_rows, row_tokens)
    is_real = mask.any(dim=1)
    has_backward = backend in WITH_BACKWARD
    inputs = [x.requires_grad_(has_backward) for x in (q, k, v)]

    plan = plan_attention(segments, num_rows, row_tokens, CPU, backend)
    with torch.set_grad_enabled(has_backward):
        actual = prefix_attention(q, k, v, plan)
    assert not actual[~is_real].any()
    # Padding sees itself here: a row of nothing but -inf has no gradient.
    expected = dense_attention(q, k, v, mask | torch.eye(len(mask), dtype=torch.bool))[is_real]
    torch.testing.assert_close(actual[is_real], expected, atol=1e-5, rtol=1e-4)
    if has_backward:
        # What padding passes back must not matter.
        gradients = torch.autograd.grad(actual, inputs, grad)
        wanted = torch.autograd.grad(expected, inputs, grad[is_real])
        for ours, reference in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def test_backward_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = torch.tensor([[0, 0, 7, 12], [0, 12, 7, 11], [1, 0, 7, 7]])
    inputs = [torch.randn(50, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def gradients() -> tuple[Tensor, ...]:
        out = prefix_attention(*inputs, plan_attention(segments, 2, 25, CPU))
        return torch.autograd.grad(out.pow(2).sum(), inputs)

    whole = gradients()
    for scores in (1, 30, 100):
        monkeypatch.setattr(attention_sdpa, "SCORES_PER_CHUNK", scores)
        for part, expected in zip(gradients(), whole, strict=True):
            torch.testing.assert_close(part, expected)


def test_operator_is_one_that_torch_can_compile_and_differentiate() -> None:
    plan = plan_attention(torch.tensor([[0, 0, 3, 5], [0, 5, 2, 6]]), 1, 12, CPU)
    assert isinstance(plan, attention_sdpa.SdpaPlan)
    q, k, v = (torch.randn(12, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    torch.library.opcheck(attention_sdpa.stacked_attention, (q, k, v, plan.index, plan.table))
    assert torch.autograd.gradcheck(plan.attend, (q, k, v))


def test_varlen_makes_no_call_without_tokens() -> None:
    def calls(*segments: tuple[int, int, int, int]) -> list[bool]:
        plan = plan_attention(torch.tensor(segments).reshape(-1, 4), 1, 20, CPU, "varlen")
        assert isinstance(plan, VarlenPlan)
        return [call.is_causal for call in plan.calls]

    assert calls() == []
    assert calls((0, 0, 4, 4), (0, 4, 3, 3)) == [False]
    assert calls((0, 0, 0, 4)) == [True]
    assert calls((0, 0, 4, 4), (0, 4, 3, 5)) == [False, True]


def test_cost_follows_squared_sample_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores computed for a row of 64 equal samples: about 1/64 of the row's square."""
    num_scores = 0
    real = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        nonlocal num_scores
        num_scores += q.shape[0] * q.shape[2] * k.shape[2]
        return real(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    samples, length = 64, 20
    segments = torch.tensor([[0, i * length, 12, length] for i in range(samples)])
    x = torch.randn(samples * length, 1, 4)
    prefix_attention(x, x, x, plan_attention(segments, 1, samples * length, CPU))
    assert 0 < num_scores <= samples * length**2


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "message"),
    [
        ("cpu", torch.bfloat16, 64, "needs a CUDA device, not cpu"),
        ("cuda", torch.float32, 64, "takes bfloat16 or float16, not torch.float32"),
        ("cuda", torch.bfloat16, 12, "multiple of 8"),
        ("cuda", torch.bfloat16, 264, "up to 256"),
    ],
)
def test_varlen_where_it_cannot_run(device: str, dtype: torch.dtype, head_dim: int, message: str) -> None:
    assert choose_backend("auto", torch.device(device), dtype, head_dim) == "sdpa"
    with pytest.raises(ModelError, match=message):
        choose_backend("varlen", torch.device(device), dtype, head_dim)


def test_varlen_needs_a_torch_with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert choose_backend("auto", torch.device("cuda"), torch.bfloat16, 64) == "sdpa"
    with pytest.raises(ModelError, match=r"torch of at least 2\.11 with flash attention"):
        choose_backend("varlen", torch.device("cuda"), torch.bfloat16, 64)


def test_unknown_backends_and_devices_are_refused() -> None:
    with pytest.raises(ModelError, match="choose one of auto, sdpa, varlen, flex"):
        choose_backend("flash", CPU, torch.float32, 64)
    with pytest.raises(ModelError, match="needs CUDA or a CPU, not mps"):
        choose_backend("flex", torch.device("mps"), torch.float32, 64)


def make_model(seed: int = 0) -> GenLIP:
    """A toy model with noise on every parameter, so that no branch is hidden by zeros or small LayerScale."""
    model = GenLIP(CONFIG).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def with_backend(model: GenLIP, backend: Backend) -> GenLIP:
    """The model on a back end that it would refuse on this device."""

    def packed_attend(rows: PackedRows) -> object:
        plan = plan_attention(rows.segments_M4, *rows.input_ids_BS.shape, CPU, backend)
        return partial(prefix_attention, plan=plan)

    model.packed_attend = packed_attend
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


def pack_one_row(samples: list[EncodedSample], extra: int = 0) -> PackedRows:
    return pack_rows([samples], sum(sample.num_tokens for sample in samples) + extra)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(samples=st.lists(samples_strategy, min_size=2, max_size=4), extra=st.integers(0, 9), data=st.data())
@torch.no_grad()
def test_packed_permuted_and_alone_are_the_same(
    backend: Backend, samples: list[EncodedSample], extra: int, data: st.DataObject
) -> None:
    model = with_backend(make_model(), backend)
    order = data.draw(st.permutations(range(len(samples))))
    moved = [samples[i] for i in order]
    lengths = [sample.num_tokens for sample in moved]
    hidden = model.hidden_BSD(pack_one_row(moved, extra))[0].split([*lengths, extra])
    for place, original in enumerate(order):
        alone = make_model().hidden_BSD(pack_one_row([samples[original]]))[0]
        torch.testing.assert_close(hidden[place], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_image_features_do_not_depend_on_text(backend: Backend) -> None:
    model, sample = with_backend(make_model(), backend), make_sample(1, (3, 2), 2, 5)
    features = model.encode_image(sample.patches, sample.grid)
    for prompt_ids in ((), (1,), (2, 30, 4)):
        variant = dataclasses.replace(sample, prompt_ids=prompt_ids)
        torch.testing.assert_close(model.hidden_BSD(pack_one_row([variant]))[0, :6], features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", WITH_BACKWARD)
@settings(max_examples=10, deadline=None)
@given(samples=st.lists(samples_strategy, min_size=2, max_size=4))
def test_gradient_of_packed_rows_is_the_weighted_sum_of_single_gradients(
    backend: Backend, samples: list[EncodedSample]
) -> None:
    """The mean over the rows' labels is the mean of the samples' means, weighted by their labels."""

    def mean_gradient(model: GenLIP, rows: PackedRows) -> Tensor:
        out = model(rows)
        (out.loss_sum / max(1, int(out.num_labels))).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    rows = pack_one_row(samples, extra=2)
    packed = mean_gradient(with_backend(make_model(), backend), rows)
    weights = [len(sample.caption_ids) / max(1, rows.num_labels) for sample in samples]
    singles = [mean_gradient(make_model(), pack_one_row([sample])) for sample in samples]
    expected = sum(weight * single for weight, single in zip(weights, singles, strict=True))
    assert (packed - expected).norm() <= 1e-4 * packed.norm()


@pytest.mark.parametrize("backend", WITH_BACKWARD)
def test_without_samples_every_parameter_has_a_zero_gradient(backend: Backend) -> None:
    model = with_backend(make_model(), backend)
    model(pack_rows([[], []], 6)).loss_sum.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_attention_of_the_model_is_chosen_by_its_attribute() -> None:
    model, sample = make_model(), make_sample(0, (2, 2), 1, 3)
    rows = pack_one_row([sample])
    expected = model(rows).loss_sum
    model.attention = "flex"
    with pytest.raises(ModelError, match="no backward pass on a CPU"):
        model(rows)
    with torch.no_grad():
        torch.testing.assert_close(model(rows).loss_sum, expected.detach())
    model.attention = "varlen"
    with pytest.raises(ModelError, match="needs a CUDA device"):
        model(rows)
