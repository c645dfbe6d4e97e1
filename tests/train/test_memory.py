"""The memory that the plan foretells against the tensors that autograd keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker

from model import GenLIP, GenLIPConfig, PackedRows, count_parameters, pack_rows
from model.attention_varlen import plan_varlen
from tests.bench.model_inputs import StepSetup, make_rows
from train.deepspeed_config import deepspeed_config
from train.engine import join_group
from train.memory import Checkpointing, MicroBatch, block_bytes, kept_bytes, predict_memory
from train.recipe import TrainSpec

CPU = torch.device("cpu")
ROW_TOKENS = 910


def rows_of(config: GenLIPConfig) -> tuple[PackedRows, MicroBatch]:
    """A row of captioned images, and its counts."""
    setup = StepSetup("ours", "nano8", config.vocab_size, 1, ROW_TOKENS, 1)
    rows = pack_rows(make_rows(setup), ROW_TOKENS)
    return rows, MicroBatch(rows.input_ids_BS.numel(), len(rows.patches_NCPP), rows.num_labels)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", [{}, {"text_embed_dim": 96, "gated_attention": False, "use_swiglu_ffn": False}])
def test_what_a_forward_pass_keeps_is_foretold(
    checkpointing: Checkpointing, precision: str, change: dict[str, object]
) -> None:
    config = GenLIPConfig.preset("nano8", vocab_size=512, **change)
    rows, batch = rows_of(config)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = GenLIP(config).to(dtype).train()
    model.gradient_checkpointing = checkpointing != "none"
    model.recompute = "cheap" if checkpointing == "selective" else "all"
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        before = _current(tracker)
        loss = model(rows).loss_sum
        kept = _current(tracker) - before
    assert loss.requires_grad
    log_softmax = batch.num_labels * config.vocab_size * 4
    foretold = kept_bytes(config, batch, checkpointing, "sdpa", dtype.itemsize) + log_softmax
    assert kept == pytest.approx(foretold, rel=0.03)


def test_what_a_block_keeps_with_flash_attention_is_foretold() -> None:
    """By shapes alone: the kernels need a GPU."""
    config = GenLIPConfig.preset("l16", num_hidden_layers=2)
    num_tokens, num_image, length = 4096, 196, 256
    segments_M4 = torch.tensor([[0, start, num_image, length] for start in range(0, num_tokens, length)])
    with torch.device("meta"):
        model = GenLIP(config).to(torch.bfloat16).train()
        x_ND = torch.zeros(num_tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        positions_B3S = torch.zeros(1, 3, num_tokens, dtype=torch.int64)
    plan = plan_varlen(segments_M4, num_tokens, torch.device("meta"))
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    weights = {one.untyped_storage()._cdata for one in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out_ND = model.run_blocks(x_ND, positions_B3S, [plan.attend] * 2)
    assert out_ND.requires_grad
    batch = MicroBatch(num_tokens, num_tokens // length * num_image, 0)
    assert sum(kept.values()) == pytest.approx(2 * block_bytes(config, batch, "none", "varlen", 2), rel=0.05)


def _current(tracker: MemTracker) -> int:
    return tracker.get_tracker_snapshot("current")[CPU]["Total"]


CONFIG = GenLIPConfig.preset("l16")
PARAMETERS = count_parameters(CONFIG)
BATCH = MicroBatch(16_384, 12_000, 4_000)


def per_parameter(world_size: int, stage: int, precision: str = "bf16", offload: str = "none") -> tuple[float, ...]:
    """Bytes of weights, gradients and optimiser for each parameter."""
    content = {"length": 1, "lanes": 64, "precision": precision, "zero": {"stage": stage, "offload": offload}}
    memory = predict_memory(CONFIG, PARAMETERS, TrainSpec.model_validate(content), BATCH, world_size)
    return tuple(size / PARAMETERS for size in (memory.parameters, memory.gradients, memory.optimizer))


def test_states_are_divided_as_the_stages_say() -> None:
    assert per_parameter(1, 0, "fp32") == pytest.approx((4, 4, 8))
    assert per_parameter(1, 1) == pytest.approx((2, 6, 12))
    assert per_parameter(64, 1) == pytest.approx((2, 6, 12 / 64), rel=1e-6)
    assert per_parameter(64, 2) == pytest.approx((2, 4 / 64, 12 / 64), rel=1e-6)
    assert per_parameter(64, 2, offload="optimizer") == pytest.approx((2, 0, 0))


@pytest.mark.parametrize(
    ("stage", "precision"), [(1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
)
def test_buckets_are_those_that_the_engine_allocates(
    stage: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket_size = 123_457
    content = {"length": 1, "lanes": 1, "precision": precision, "zero": {"stage": stage}}
    content["deepspeed"] = {"zero_optimization": {"reduce_bucket_size": bucket_size}}
    spec = TrainSpec.model_validate(content)
    ranks = join_group()
    import deepspeed

    allocated = 0

    def empty(*size: Any, **options: Any) -> Tensor:
        nonlocal allocated
        made = plain_empty(*size, **options)
        allocated += made.nbytes * (made.shape == (bucket_size,))
        return made

    plain_empty = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    model = torch.nn.Linear(3, 5)
    config = deepspeed_config(spec, ranks.world_size, on_gpu=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
    engine.backward(engine(torch.ones(2, 3, dtype=next(engine.module.parameters()).dtype)).float().sum())
    assert predict_memory(CONFIG, PARAMETERS, spec, BATCH, 1).buckets == allocated


def test_checkpointing_and_smaller_micro_batches_need_less() -> None:
    totals = [
        predict_memory(CONFIG, PARAMETERS, TrainSpec.model_validate(content), batch, 1).total
        for content, batch in [
            ({"length": 1, "micro_rows": 2}, MicroBatch(32_768, 24_000, 8_000)),
            ({"length": 1}, BATCH),
            ({"length": 1, "gradient_checkpointing": "selective"}, BATCH),
            ({"length": 1, "gradient_checkpointing": "full"}, BATCH),
        ]
    ]
    assert totals == sorted(totals, reverse=True)
