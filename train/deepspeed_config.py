"""The recipe as a DeepSpeed configuration. The recipe owns the numbers; `train.deepspeed` may add the rest."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.section import lay_over

if TYPE_CHECKING:
    from train.recipe import TrainSpec, ZeroSpec

_LOSS = "no key: the loss is normalised over the global batch"
_TRAINER = "no key: the trainer depends on it"

OWNED = {
    "train_batch_size": "train.lanes",
    "train_micro_batch_size_per_gpu": "train.micro_rows",
    "gradient_accumulation_steps": "train.lanes, train.micro_rows",
    "managed_gradient_accumulation": _TRAINER,
    "gradient_clipping": "train.optim.clip",
    "optimizer": "train.optim",
    "scheduler": "train.optim",
    "zero_optimization.stage": "train.zero.stage",
    "zero_optimization.offload_optimizer": "train.zero.offload",
    "zero_optimization.offload_param": "train.zero.offload",
    "zero_optimization.compute_grad_norm": _TRAINER,
    "zero_allow_untested_optimizer": _TRAINER,
    "zero_force_ds_cpu_optimizer": _TRAINER,
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "communication_data_type": "train.precision",
    "gradient_allreduce_op": _LOSS,
    "prescale_gradients": _LOSS,
    "gradient_predivide_factor": _LOSS,
    "activation_checkpointing": "train.gradient_checkpointing",
    "steps_per_print": "train.log_every",
}
"""DeepSpeed's keys that the recipe or the trainer decides, and who: a raw section may not hold them."""


def owned_keys(raw: Mapping[str, Any]) -> list[str]:
    """What a raw section decides although the recipe does: one line of text for each such key."""
    return [f"{key} (decided by {OWNED[key]})" for key in _paths(raw) if key in OWNED]


def _paths(raw: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Every key of nested mappings, dotted."""
    for key, value in raw.items():
        yield f"{at}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{at}{key}.")


def deepspeed_config(spec: "TrainSpec", world_size: int, on_gpu: bool) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    Args:
        spec: Batch, precision, clipping, ZeRO and the raw section.
        world_size: Divides the lanes together with `micro_rows`.
        on_gpu: Reduce gradients on a stream of their own, beside the backward pass.
    """
    config = {
        "train_batch_size": spec.lanes,
        "train_micro_batch_size_per_gpu": spec.micro_rows,
        "gradient_accumulation_steps": spec.lanes // (world_size * spec.micro_rows),
        "gradient_clipping": spec.optim.clip,
        "zero_optimization": _zero(spec.zero, on_gpu),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW runs on a CPU too, and needs no compiler
        "bf16": {"enabled": spec.precision == "bf16"},
        # Gradients are summed in fp32 over micro-batches and over processes; the default is the model's bf16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 1 << 62,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU at every step, and our log has the rates
    }
    return lay_over(config, spec.deepspeed)


def _zero(spec: "ZeroSpec", on_gpu: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": spec.stage,
        "overlap_comm": on_gpu,
        # Copies each gradient into a bucket, for the overlap alone: 2 to 8 % of a small model's step on a CPU.
        "contiguous_gradients": on_gpu,
        # The default of 500 M holds a whole L/16: nothing would be reduced before the backward pass ends.
        "reduce_bucket_size": 50_000_000,
    }
    host = {"device": "cpu", "pin_memory": on_gpu}
    if spec.offload != "none":
        zero["offload_optimizer"] = host
    if spec.offload == "all":
        zero["offload_param"] = host
    return zero
