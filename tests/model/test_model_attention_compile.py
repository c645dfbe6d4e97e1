"""`torch.compile` of the block on packed rows: no graph breaks, the numbers of eager mode, few compilations."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model import EncodedSample, GenLIP, GenLIPConfig, PackedRows, pack_rows
from model.attention import plan_attention, prefix_attention
from model.rope import rope_cos_sin

CONFIG = GenLIPConfig.preset("nano8", vocab_size=32, num_hidden_layers=3, drop_path_rate=0.2)
ROW_TOKENS = 120


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def num_compiled_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def random_rows(seed: int, samples_per_row: tuple[int, ...]) -> PackedRows:
    """Two rows of samples whose grids and texts differ."""
    rng = np.random.default_rng(seed)

    def sample() -> EncodedSample:
        gh, gw = (int(n) for n in rng.integers(1, 4, 2))
        patches = rng.integers(0, 256, (gh * gw, 3, 8, 8), dtype=np.uint8)
        return EncodedSample(patches, (gh, gw), (1,), rng.integers(2, 32, rng.integers(1, 7)).tolist())

    return pack_rows([[sample() for _ in range(count)] for count in samples_per_row], ROW_TOKENS)


PACKINGS = [(2, 3), (1, 2), (4, 4), (0, 2), (3, 3), (5, 2), (1, 0), (2, 6)]


def loss_and_gradients(model: GenLIP, rows: PackedRows) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(0)  # the same DropPath
    out = model(rows)
    out.loss_sum.backward()
    return [out.loss_sum.detach(), *(p.grad.clone() for p in model.parameters())]


def test_the_block_compiles_as_a_whole() -> None:
    model, rows = GenLIP(CONFIG).eval(), random_rows(0, (2, 3))
    block = model.visual.layers[0]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    cos, sin = (x.flatten(0, 1) for x in rope_cos_sin(rows.position_ids_B3S, CONFIG, torch.float32))
    attend = model.packed_attend(rows)

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        x = model.embed_rows(rows).detach().requires_grad_()
        out = function(x, cos, sin, attend, None)
        return [out, *torch.autograd.grad(out.pow(2).sum(), [x, *block.parameters()])]

    for ours, expected in zip(run(compiled), run(block), strict=True):
        torch.testing.assert_close(ours, expected)
    assert num_compiled_graphs() == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_train_like_eager_ones_on_any_packing(checkpointing: bool) -> None:
    eager, compiled = GenLIP(CONFIG).train(), GenLIP(CONFIG).train()
    compiled.compile_blocks(backend="aot_eager")
    for model in (eager, compiled):
        model.gradient_checkpointing = checkpointing
    for seed, packing in enumerate(PACKINGS):
        rows = random_rows(seed, packing)
        results = (loss_and_gradients(model, rows) for model in (compiled, eager))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)
    # One graph for all layers; the sizes that turn out to change are freed one after the other.
    assert 1 <= num_compiled_graphs() <= 4
    assert not torch._dynamo.utils.counters["graph_break"]


def test_evaluation_stays_eager() -> None:
    model, rows = GenLIP(CONFIG), random_rows(0, (2, 1))
    expected = model.eval()(rows).loss_sum
    model.compile_blocks(backend="aot_eager")
    assert torch.equal(model.eval()(rows).loss_sum, expected)
    assert num_compiled_graphs() == 0


def test_the_flash_calls_compile_once_for_many_packings() -> None:
    """The graphs with torch's own kernel are traced, not run, as that needs CUDA: an image call, then a causal one."""
    block = GenLIP(CONFIG).eval().bfloat16().visual.layers[0]
    calls_per_graph: list[list[tuple[bool, list[int]]]] = []

    def trace_only(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        calls = [node.args for node in graph.graph.nodes if "varlen_attn" in str(node.target)]
        calls_per_graph.append([(args[7], list(args[9])) for args in calls])  # is_causal, window_size
        return lambda *_: (torch.zeros(1),)

    compiled = torch.compile(block, fullgraph=True, backend=trace_only)
    num_tokens = 2 * ROW_TOKENS
    x, cos = torch.zeros(num_tokens, CONFIG.hidden_size).bfloat16(), torch.ones(num_tokens, CONFIG.head_dim).bfloat16()
    for seed, packing in enumerate(PACKINGS):
        plan = plan_attention(random_rows(seed, packing).segments_M4, 2, ROW_TOKENS, x.device, "varlen")
        compiled(x, cos, cos, lambda q, k, v, plan=plan: prefix_attention(q, k, v, plan), None)
    assert all(calls == [(False, [-1, -1]), (True, [-1, 0])] for calls in calls_per_graph)
    assert 1 <= len(calls_per_graph) <= 6


def test_compiling_changes_no_parameter_name() -> None:
    model = GenLIP(CONFIG)
    names = list(model.state_dict())
    model.compile_blocks(backend="aot_eager")
    assert list(model.state_dict()) == names
