"""What the recipe's optimiser and engine sections make of a model: decay, precision, offload; and what is refused."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_steps import CONFIG, batch
from torch import Tensor

from model import GenLIP, GenLIPConfig
from model.baselines import build_model
from pipeline.errors import UserError
from train.checkpoints.engine_state import WEIGHT, EngineState
from train.deepspeed_config import OWNED, deepspeed_config
from train.engine import build_engine, join_group
from train.loop import train_step
from train.network import Network
from train.optimizer import decay_lines, parameter_groups
from train.recipe import OptimSpec, TrainSpec

LR = 1e-2


def make_spec(**content: Any) -> TrainSpec:
    return TrainSpec.model_validate({"length": 1000, "lanes": 2, "precision": "fp32"} | content)


def train(num_steps: int = 2, **content: Any) -> tuple[Any, list[float]]:
    """An engine after a few steps, and their losses."""
    ranks = join_group()
    model = GenLIP(CONFIG)
    model.init_weights(0)
    engine = build_engine(model, make_spec(**content), ranks.world_size)
    return engine, [train_step(engine, batch(step), LR, ranks, seed=step).loss for step in range(num_steps)]


def weights(engine: Any) -> dict[str, Tensor]:
    """The fp32 master weights."""
    state = EngineState(engine)
    return {name: state.read(name)[WEIGHT].clone().view(shape) for name, shape in state.shapes.items()}


def refusal(**content: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        make_spec(**content)
    return str(caught.value)


# ---------------------------------------------------------------- weight decay


def test_every_parameter_decays_unless_its_kind_is_named() -> None:
    model = GenLIP(CONFIG)
    (everything,) = parameter_groups(model, OptimSpec())
    assert everything.names == [name for name, _ in model.named_parameters()]
    decayed, undecayed = parameter_groups(model, OptimSpec(no_decay=("norms", "biases")))
    assert undecayed.weight_decay == 0
    assert sorted(decayed.names + undecayed.names) == sorted(everything.names)
    assert {name for name in undecayed.names if not name.endswith(".bias")} == {
        "visual.layers.0.layer_norm1.weight",
        "visual.layers.0.layer_norm2.weight",
        "ln_post.weight",
    }
    assert "embeddings.weight" in decayed.names
    _, scales = parameter_groups(model, OptimSpec(no_decay=("layer_scales", "embeddings")))
    assert {name.rsplit(".", 1)[-1] for name in scales.names} == {"lambda1", "weight"}
    assert "lm_head.weight" not in scales.names


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_step_decays_what_the_recipe_says(stage: int) -> None:
    plain = {"weight_decay": 0.0, "clip": 1e9}
    decaying = {"weight_decay": 0.5, "clip": 1e9, "no_decay": ["biases", "norms"]}
    engine, _ = train(1, optim=plain, zero={"stage": stage})
    without = weights(engine)
    engine, _ = train(1, optim=decaying, zero={"stage": stage})
    _, undecayed = parameter_groups(GenLIP(CONFIG), OptimSpec(no_decay=("norms", "biases")))
    found, initial = weights(engine), GenLIP(CONFIG)
    initial.init_weights(0)
    for name, parameter in initial.named_parameters():
        expected = without[name] - (0 if name in undecayed.names else LR * 0.5) * parameter.detach()
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0)


def test_the_plan_counts_what_decays() -> None:
    model = GenLIP(CONFIG)
    num_biases = sum(one.numel() for name, one in model.named_parameters() if name.endswith(".bias"))
    total = sum(one.numel() for one in model.parameters())
    (line,) = decay_lines(Network(CONFIG), OptimSpec())
    assert f"0.01 on {total:,} parameters" in line
    decayed, undecayed = decay_lines(Network(CONFIG), OptimSpec(no_decay=("biases",)))
    assert f"0.01 on {total - num_biases:,}" in decayed
    assert f"0 on {num_biases:,}" in undecayed
    assert undecayed.endswith("(biases)")


# ---------------------------------------------------------------- stages, precision, memory


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "none"), (1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")]
)
def test_no_stage_and_no_offload_changes_what_is_trained(stage: int, offload: str) -> None:
    expected_engine, expected = train(zero={"stage": 0})
    engine, losses = train(zero={"stage": stage, "offload": offload})
    assert losses == pytest.approx(expected, rel=1e-6)
    theirs = weights(expected_engine)
    for name, ours in weights(engine).items():
        torch.testing.assert_close(ours, theirs[name], atol=1e-4, rtol=0)  # Adam makes rounding as large as a step


@pytest.mark.parametrize(("stage", "offload"), [(1, "none"), (1, "optimizer"), (2, "none"), (3, "none")])
def test_bf16_computes_in_bf16_and_keeps_fp32_master_weights(stage: int, offload: str) -> None:
    _, expected = train(zero={"stage": 0})
    engine, losses = train(precision="bf16", zero={"stage": stage, "offload": offload})
    assert {parameter.dtype for parameter in engine.module.parameters()} == {torch.bfloat16}
    assert losses == pytest.approx(expected, rel=0.02)
    masters = weights(engine)
    assert {one.dtype for one in masters.values()} == {torch.float32}
    assert any((one != one.bfloat16().float()).any() for one in masters.values())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_summed_and_reduced_in_fp32(stage: int) -> None:
    engine, _ = train(1, precision="bf16", zero={"stage": stage})
    assert engine.communication_data_type == torch.float32
    assert engine.get_data_types() == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("stage", [1, 3])
def test_checkpoints_in_the_blocks_change_nothing(kind: str, stage: int) -> None:
    _, expected = train(zero={"stage": stage})
    _, losses = train(zero={"stage": stage}, gradient_checkpointing=kind)
    assert losses == expected


def test_a_compiled_block_is_the_same_to_rounding() -> None:
    _, expected = train()
    _, losses = train(compile=True)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_without_a_compiler_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no no-such-compiler here"):
        train(compile=True)


def test_other_objectives_are_not_compiled_and_the_error_says_so() -> None:
    ranks = join_group()
    with pytest.raises(UserError, match="for the objective genlip, not clip"):
        build_engine(build_model(CONFIG, "clip"), make_spec(compile=True), ranks.world_size)


# ---------------------------------------------------------------- refusals, and the raw section


def test_features_that_exclude_each_other_are_refused_with_the_reason() -> None:
    assert "no fp32 master weights" in refusal(precision="bf16", zero={"stage": 0})
    assert "needs stage 1, 2 or 3" in refusal(zero={"stage": 0, "offload": "optimizer"})
    assert "needs whole weights" in refusal(zero={"stage": 3}, compile=True)
    assert "needs stage 3" in refusal(zero={"stage": 2, "offload": "all"})
    assert "does not divide train.lanes 2" in refusal(micro_rows=3)
    assert "min_lr 0.1 is above lr 0.001" in refusal(optim={"min_lr": 0.1})


def nested(dotted: str) -> dict[str, Any]:
    content: Any = 1
    for part in reversed(dotted.split(".")):
        content = {part: content}
    return dict(content)


@pytest.mark.parametrize("key", sorted(OWNED))
def test_a_raw_key_that_the_recipe_decides_is_refused_with_its_owner(key: str) -> None:
    message = refusal(deepspeed=nested(key))
    assert f"{key} (decided by {OWNED[key]})" in message


def test_the_configuration_holds_no_key_that_a_raw_section_could_contradict() -> None:
    ours = deepspeed_config(make_spec(zero={"stage": 3, "offload": "all"}), 1, on_gpu=True)
    free = {f"zero_optimization.{key}" for key in ("overlap_comm", "contiguous_gradients", "reduce_bucket_size")}
    free.add("timers.throughput")
    for key, value in ours.items():
        for dotted in [f"{key}.{below}" for below in value] if isinstance(value, dict) else [key]:
            assert dotted in OWNED or dotted.partition(".")[0] in OWNED or dotted in free, dotted


def test_a_raw_section_adds_keys_and_replaces_defaults() -> None:
    raw = {"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": True}}
    config = deepspeed_config(make_spec(deepspeed=raw), 2, on_gpu=False)
    assert config["wall_clock_breakdown"] is True
    assert config["zero_optimization"]["stage"] == 1
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["zero_optimization"]["overlap_comm"] is True
    assert config["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_parameters_larger_than_a_bucket_are_reduced_too(stage: int) -> None:
    _, expected = train(zero={"stage": stage})
    raw = {"zero_optimization": {"reduce_bucket_size": 1000, "contiguous_gradients": True}}
    engine, losses = train(zero={"stage": stage}, deepspeed=raw)
    assert engine.zero_reduce_bucket_size() == 1000
    assert losses == pytest.approx(expected, rel=1e-6)


def test_a_model_of_the_official_sizes_can_be_counted_without_memory() -> None:
    assert len(decay_lines(Network(GenLIPConfig.preset("g16")), OptimSpec(no_decay=("norms",)))) == 2
