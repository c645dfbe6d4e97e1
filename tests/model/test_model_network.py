"""The network around the layout: names, initialisation, DropPath, chunked loss, counting, config."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import (
    EncodedSample,
    GenLIP,
    GenLIPConfig,
    ModelError,
    count_parameters,
    flops_per_sample,
    list_presets,
    loss,
    pack_rows,
)
from model.layers import DropPath

GOLDEN = Path(os.environ.get("GENLIP_GOLDEN", Path(__file__).parents[1] / "golden" / "genlip"))


def official_shapes(d: int, inner: int, t: int, num_layers: int) -> dict[str, list[int]]:
    """The state dict of the official classes, from the published listing."""
    shapes = {
        "vision_embeddings.patch_embedding.weight": [d, 3, 16, 16],
        "vision_embeddings.patch_embedding.bias": [d],
        "ln_post.weight": [d],
        "ln_post.bias": [d],
        "embeddings.weight": [151936, t],
        "lm_head.weight": [151936, t],
    }
    if t != d:
        shapes |= {"in_proj.weight": [d, t], "in_proj.bias": [d], "proj.weight": [t, d], "proj.bias": [t]}
    linears = {"self_attn.q_proj": [2 * d, d], "self_attn.k_proj": [d, d], "self_attn.v_proj": [d, d]}
    linears |= {"self_attn.out_proj": [d, d], "mlp.fc1": [inner, d], "mlp.gate_fc": [inner, d], "mlp.fc2": [d, inner]}
    for i in range(num_layers):
        block = f"visual.layers.{i}"
        for name, shape in linears.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{block}.{norm}.weight": [d], f"{block}.{norm}.bias": [d]}
        shapes |= {f"{block}.layer_scale1.lambda1": [d], f"{block}.layer_scale2.lambda1": [d]}
    return shapes


@pytest.mark.parametrize(
    ("preset", "shape", "num_parameters"),
    [
        ("l16", (1024, 2816, 1024, 24), 645_831_680),
        ("l16_repo", (1152, 2752, 1024, 24), 702_392_832),
        ("so16", (1152, 3072, 1152, 27), 817_301_376),
        ("g16", (1536, 4096, 1024, 40), 1_543_396_352),
    ],
)
def test_state_dict_and_size_are_official(preset: str, shape: tuple[int, int, int, int], num_parameters: int) -> None:
    config = GenLIPConfig.preset(preset)
    with torch.device("meta"):
        model = GenLIP(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == official_shapes(*shape)
    assert count_parameters(config) == num_parameters


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("switches", [{}, {"gated_attention": False}, {"use_swiglu_ffn": False, "ls_init_value": 0.0}])
def test_counted_parameters_are_the_parameters(preset: str, switches: dict[str, bool | float]) -> None:
    config = GenLIPConfig.preset(preset, **switches)
    with torch.device("meta"):
        model = GenLIP(config)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("preset", "teraflops"), [("l16", 0.62), ("l16_repo", 0.72), ("so16", 0.85), ("g16", 2.10)])
def test_flops_of_a_stage_1_sample(preset: str, teraflops: float) -> None:
    """196 patches, 6 prompt and 68 labelled tokens; expected values counted on the official model."""
    assert flops_per_sample(GenLIPConfig.preset(preset), 196, 74, 68) / 1e12 == pytest.approx(teraflops, abs=0.01)


def official_statistics() -> list[dict[str, dict[str, Any]]]:
    """What the official classes drew, per model of the golden folder: name of a tensor to shape, mean, std, absmax."""
    logs = json.loads((GOLDEN / "log.json").read_text()).values()
    return [stats for log in logs for key, stats in log.items() if key.startswith("init_stats")]


@pytest.mark.parametrize("statistics", official_statistics())
def test_initialisation_statistics_are_official(statistics: dict[str, dict[str, Any]]) -> None:
    shapes = {name: stats["shape"] for name, stats in statistics.items()}
    config = GenLIPConfig(
        hidden_size=shapes["ln_post.weight"][0],
        intermediate_size=shapes["visual.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=shapes["embeddings.weight"][0],
        text_embed_dim=shapes["embeddings.weight"][1],
        patch_size=shapes["vision_embeddings.patch_embedding.weight"][2],
        gated_attention=shapes["visual.layers.0.self_attn.q_proj.weight"][0] > shapes["ln_post.weight"][0],
        use_swiglu_ffn="visual.layers.0.mlp.gate_fc.weight" in shapes,
        ls_init_value=statistics.get("visual.layers.0.layer_scale1.lambda1", {"mean": 0.0})["mean"],
    )
    state = GenLIP(config).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes
    for name, expected in statistics.items():
        tolerance = 5 * expected["std"] / state[name].numel() ** 0.5
        assert state[name].mean().item() == pytest.approx(expected["mean"], abs=tolerance + 1e-5), name
        # Without SwiGLU the official feed-forward biases are drawn too, with a deviation of 1e-6; ours are 0.
        assert state[name].std().item() == pytest.approx(expected["std"], rel=0.03, abs=1e-5), name
        if "self_attn" in name:
            assert state[name].abs().max().item() == pytest.approx(expected["absmax"], rel=0.01), name


def test_a_plain_feed_forward_is_drawn_by_xaviers_rule() -> None:
    """Which the official code does for it alone: with SwiGLU all three matrices are normal."""
    config = GenLIPConfig.preset("nano8", vocab_size=64, num_hidden_layers=1, use_swiglu_ffn=False)
    mlp = GenLIP(config).visual.layers[0].mlp
    bound = (6 / (config.hidden_size + config.intermediate_size)) ** 0.5
    for linear in (mlp.fc1, mlp.fc2):
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_initialisation_is_a_function_of_the_seed() -> None:
    config = GenLIPConfig.preset("nano8", vocab_size=64)
    first, second = GenLIP(config), GenLIP(config)
    first.init_weights(seed=3)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
    second.init_weights(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_drop_path_draws_are_independent_between_samples() -> None:
    """Two samples of a row share their fate as often as chance says, kept branches are scaled up."""
    torch.manual_seed(0)
    num_rows, rate = 8000, 0.3
    groups = torch.arange(2 * num_rows)
    kept = (DropPath(rate)(torch.ones(2 * num_rows, 1), groups) > 0).view(num_rows, 2).float()
    assert kept.mean().item() == pytest.approx(1 - rate, abs=0.02)
    assert kept.prod(dim=1).mean().item() == pytest.approx((1 - rate) ** 2, abs=0.02)


def test_drop_path_does_nothing_in_evaluation() -> None:
    x = torch.randn(6, 2)
    assert torch.equal(DropPath(0.9).eval()(x, torch.arange(6)), x)


def test_drop_path_statistics_per_sample() -> None:
    torch.manual_seed(0)
    num_groups, tokens_per_group, rate = 4000, 3, 0.3
    groups = torch.arange(num_groups).repeat_interleave(tokens_per_group)
    out = DropPath(rate)(torch.ones(len(groups), 2), groups).view(num_groups, -1)
    assert torch.equal(out.min(dim=1).values, out.max(dim=1).values)
    torch.testing.assert_close(out.max(), torch.tensor(1 / (1 - rate)))
    assert (out[:, 0] == 0).float().mean().item() == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize("per", ["sample", "row"])
def test_drop_path_of_packed_samples(per: str) -> None:
    """With a rate near 1 a sample whose branches are all dropped keeps its embedding; which ones depends on `per`."""
    config = GenLIPConfig.preset("nano8", vocab_size=32, num_hidden_layers=1, drop_path_rate=0.5)
    model = GenLIP(config).train()
    model.drop_path_per = per
    patches = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8)
    rows = pack_rows([[EncodedSample(patches, (1, 1), (1,), (2,))] * 40] * 3, 120)
    torch.manual_seed(1)
    changed = (model.hidden_BSD(rows) - model.ln_post(model.embed_rows(rows)).view(3, 120, -1)).abs().sum(-1) > 0
    by_sample = changed.view(3, 40, 3)
    assert torch.equal(by_sample.all(-1), by_sample.any(-1))
    kept_per_row = by_sample.all(-1).sum(dim=1)
    if per == "row":
        assert set(kept_per_row.tolist()) <= {0, 40}
    else:
        # Both branches are dropped with probability 1/4.
        assert ((kept_per_row > 15) & (kept_per_row < 40)).all()


def test_checkpointing_changes_neither_loss_nor_gradient_with_drop_path() -> None:
    config = GenLIPConfig.preset("nano8", vocab_size=32, num_hidden_layers=2, drop_path_rate=0.5)
    patches = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    rows = pack_rows([[EncodedSample(patches, (2, 2), (1,), (2, 3))] * 3], 30)
    results = []
    for checkpointing in (False, True):
        model = GenLIP(config).train()
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(7)
        out = model(rows)
        out.loss_sum.backward()
        results.append([out.loss_sum.detach(), *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("logits_per_chunk", [1, 40, 2**27])
def test_chunked_loss_is_cross_entropy(monkeypatch: pytest.MonkeyPatch, logits_per_chunk: int) -> None:
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", logits_per_chunk)
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 11, bias=False)
    hidden, targets = torch.randn(7, 5, requires_grad=True), torch.randint(11, (7,))
    expected = F.cross_entropy(head(hidden), targets, reduction="sum")
    expected_grads = torch.autograd.grad(expected, (hidden, head.weight))
    actual = loss.cross_entropy(hidden, targets, head, vocab_size=11).sum()
    torch.testing.assert_close(actual, expected)
    for a, b in zip(torch.autograd.grad(actual, (hidden, head.weight)), expected_grads, strict=True):
        torch.testing.assert_close(a, b)
    log_probs = loss.token_log_probs(hidden, targets, head, vocab_size=11)
    torch.testing.assert_close(-log_probs.sum(), expected)


def test_loss_never_holds_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward pass and in the backward pass, which computes them again."""
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 40)
    weight = torch.randn(11, 5, requires_grad=True)
    sizes: list[int] = []

    def head(hidden_LD: torch.Tensor) -> torch.Tensor:
        logits_LV = hidden_LD @ weight.T
        sizes.append(logits_LV.numel())
        return logits_LV

    loss.cross_entropy(torch.randn(10, 5), torch.randint(11, (10,)), head, vocab_size=11).sum().backward()
    assert sizes[:4] == [33, 33, 33, 11]
    assert sorted(sizes[4:]) == [11, 33, 33, 33]


def test_only_labelled_positions_reach_the_head_and_the_loss() -> None:
    """Prompt ids change what is predicted, but their own prediction is nowhere in the loss."""
    config = GenLIPConfig.preset("nano8", vocab_size=32, num_hidden_layers=1)
    model = GenLIP(config).eval()
    patches = np.zeros((4, 3, 8, 8), np.uint8)
    rows = pack_rows(
        [[EncodedSample(patches, (2, 2), (1, 2), (3, 4, 5))], [EncodedSample(patches, (2, 2), (6,), (7,))]], 12
    )
    num_seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: num_seen.append(len(inputs[0])))
    out = model(rows)
    assert num_seen == [4]
    log_probs = model.logits(rows).log_softmax(dim=-1)
    expected = -sum(log_probs[0, 5 + i, token] for i, token in enumerate((3, 4, 5))) - log_probs[1, 4, 7]
    torch.testing.assert_close(out.loss_sum, expected)


def test_no_images_have_no_features() -> None:
    assert GenLIP(GenLIPConfig.preset("nano8", vocab_size=32, num_hidden_layers=1)).encode_images([]) == []


@pytest.mark.parametrize("preset", list_presets())
def test_config_round_trip_through_json(preset: str) -> None:
    config = GenLIPConfig.preset(preset)
    assert GenLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_config_reads_official_files() -> None:
    official = {
        **GenLIPConfig.preset("so16").to_dict(),
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
        "use_liger_kernel": True,
        "tokens_per_second": 2,
    }
    del official["text_embed_dim"], official["layer_norm_eps"]
    assert GenLIPConfig.from_dict(official) == GenLIPConfig.preset("so16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 192 must split into 5 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": 10.5}, "vocab_size"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate"),
        ({"mrope_section": (1, 2)}, "mrope_section"),
        ({"gated_attention": 1}, "gated_attention"),
    ],
)
def test_config_refuses_bad_values(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(GenLIPConfig.preset("nano8"), **change)


def test_config_refuses_what_it_does_not_implement_or_know() -> None:
    values = GenLIPConfig.preset("nano8").to_dict()
    with pytest.raises(ModelError, match="only tie_word_embeddings=False"):
        GenLIPConfig.from_dict({**values, "tie_word_embeddings": True})
    with pytest.raises(ModelError, match="missing vocab_size"):
        GenLIPConfig.from_dict({key: value for key, value in values.items() if key != "vocab_size"})
    with pytest.raises(ModelError, match="did you mean 'drop_path_rate'"):
        GenLIPConfig.from_dict({**{k: v for k, v in values.items() if k != "drop_path_rate"}, "droppath_rate": 0.2})
    with pytest.raises(ModelError, match="choose one of"):
        GenLIPConfig.preset("h14")
    with pytest.raises(ModelError, match="vocabsize is not a field"):
        GenLIPConfig.preset("nano8", vocabsize=10)
