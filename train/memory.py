"""The memory that training takes on one device, by arithmetic, before anything is built.

Shape legend: N tokens of a micro-batch, P of them image tokens, L labelled tokens, D hidden width, t text width,
I feed-forward width, V vocabulary entries, W processes.
"""

from dataclasses import dataclass
from typing import Any, Literal

from model import GenLIPConfig
from model.loss import LOGITS_PER_CHUNK
from train.deepspeed_config import deepspeed_config
from train.recipe import TrainSpec

Checkpointing = Literal["none", "selective", "full"]
Attention = Literal["sdpa", "varlen"]

FP32_BYTES = 4
_ROW_BYTES_PER_TOKEN = 8 + 8 + 3 * 8 + 8 + 1
"""Of `PackedRows`: id, label, three positions, sample id, image mask."""
_INDEX_BYTES = 8
_BYTES_PER_LOGIT = 12
"""Log-softmax, its gradient and the loss's, all in float32."""
_MAX_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default: weights that stage 3 keeps gathered, those that it fetches ahead included."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of one process gets."""

    num_tokens: int
    """Padding included."""
    num_image_tokens: int
    num_labels: int


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device at the largest moment, the backward pass of the last block."""

    parameters: int
    gradients: int
    optimizer: int
    buckets: int
    """Of DeepSpeed's communication."""
    activations: int
    logits: int
    rows: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def value_bytes(spec: TrainSpec) -> int:
    """Of a weight or an activation."""
    return 2 if spec.precision == "bf16" else FP32_BYTES


def predict_memory(
    config: GenLIPConfig, num_parameters: int, spec: TrainSpec, batch: MicroBatch, world_size: int
) -> DeviceMemory:
    """What a GPU will hold. The allocator's fragments and the CUDA context, some 5 to 10 %, come on top.

    Args:
        config: Of the model.
        num_parameters: Of the model.
        spec: ZeRO, precision, checkpointing.
        batch: Of one process.
        world_size: W.
    """
    attention: Attention = "varlen" if spec.precision == "bf16" else "sdpa"
    kept = kept_bytes(config, batch, spec.gradient_checkpointing, attention, value_bytes(spec))
    working = block_bytes(config, batch, "none", attention, value_bytes(spec))
    chunk_tokens = min(batch.num_labels, LOGITS_PER_CHUNK // config.vocab_size)
    return DeviceMemory(
        **_state_bytes(num_parameters, spec, world_size),
        activations=kept + (working if spec.gradient_checkpointing != "none" else 0),
        logits=chunk_tokens * config.vocab_size * _BYTES_PER_LOGIT,
        rows=batch.num_tokens * _ROW_BYTES_PER_TOKEN
        + batch.num_image_tokens * (_patch_values(config) + _INDEX_BYTES)
        + batch.num_labels * _INDEX_BYTES,
    )


def kept_bytes(
    config: GenLIPConfig, batch: MicroBatch, checkpointing: Checkpointing, attention: Attention, num_bytes: int
) -> int:
    """What autograd keeps of a forward pass for the backward pass, but for the logits.

    Around the blocks: normalised patches (P × values of a patch) and their embedding (P × D), text before its
    projection (N × t where t ≠ D), cosines and sines (2 × N × K), and of the labelled tokens input and output of the
    last norm (2 × L × D) and, where t ≠ D, the input of the head (L × t).

    Args:
        config: Of the model.
        batch: Its tokens.
        checkpointing: Of every block.
        attention: Back end.
        num_bytes: Of one value.
    """
    d, t = config.hidden_size, config.text_embed_dim
    edges = batch.num_image_tokens * (_patch_values(config) + d)
    edges += 2 * batch.num_tokens * config.head_dim
    edges += 2 * batch.num_labels * d
    if t != d:
        edges += (batch.num_tokens + batch.num_labels) * t
    blocks = config.num_hidden_layers * block_bytes(config, batch, checkpointing, attention, num_bytes)
    return edges * num_bytes + blocks


def block_bytes(
    config: GenLIPConfig, batch: MicroBatch, checkpointing: Checkpointing, attention: Attention, num_bytes: int
) -> int:
    """What one block keeps. Per token, D wide:

    none: input and output of both norms (4), q, k, v and the attention's output (4), the gate and the gated output
    (2), the inputs of both LayerScales (2); I wide: both branches, silu and product (4; 2 without SwiGLU). The varlen
    back end keeps q, k and v as gathered for its two calls, in which image keys and values stand twice, and its output
    also as scattered back.

    selective: the block's input (1) and all matrix products: query and gate, k, v, attention's output and projection,
    second feed-forward matrix (7; the sdpa back end computes attention again, 6), both branches (2 × I).

    full: the block's input.
    """
    d, i = config.hidden_size, config.intermediate_size
    num_tokens, num_image = batch.num_tokens, batch.num_image_tokens
    if checkpointing == "full":
        return num_tokens * d * num_bytes
    gate = 1 if config.gated_attention else 0
    branches = 2 if config.use_swiglu_ffn else 1
    if checkpointing == "selective":
        width = (6 + gate + (attention == "varlen")) * d + branches * i
        return num_tokens * width * num_bytes
    scales = 2 if config.has_layer_scale else 0
    values = num_tokens * ((8 + 2 * gate + scales) * d + 2 * branches * i)
    if attention == "varlen":
        values += (num_tokens + 2 * num_image) * d
    return values * num_bytes


def _state_bytes(num_parameters: int, spec: TrainSpec, world_size: int) -> dict[str, int]:
    """Weights, gradients, AdamW's state and buffers, after section 3 of the ZeRO paper and as DeepSpeed does it.

    AdamW has two moments and, but for stage 0, a master copy of the weights, all in fp32: 12 bytes a parameter.
    Gradients are summed in fp32; in stage 1 on bf16 weights besides those of the backward pass. What is reduced at a
    time is copied into a bucket: in stage 3 one in fp32, else two, as wide as the weights, that take turns; stage 1 on
    bf16 weights has none.
    """
    stage, size = spec.zero.stage, value_bytes(spec)
    own = -(-num_parameters // world_size)
    zero: dict[str, Any] = deepspeed_config(spec, world_size, on_gpu=True)["zero_optimization"]
    on_host = spec.zero.offload != "none"
    parameters = num_parameters * size
    if stage == 3:
        live = min(num_parameters, int(zero.get("stage3_max_live_parameters", _MAX_LIVE_PARAMETERS)))
        parameters = live * size + (0 if spec.zero.offload == "all" else own * size)
    if stage >= 2:
        gradients = 0 if on_host else own * FP32_BYTES
    elif size == FP32_BYTES or on_host:
        gradients = num_parameters * size
    else:
        gradients = num_parameters * (FP32_BYTES + size)
    optimizer = num_parameters * 2 * FP32_BYTES if stage == 0 else own * 3 * FP32_BYTES
    has_two_buckets = stage == 2 or (stage == 1 and (size == FP32_BYTES or on_host))
    bytes_in_buckets = FP32_BYTES if stage == 3 else 2 * size if has_two_buckets else 0
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": 0 if on_host else optimizer,
        "buckets": int(zero["reduce_bucket_size"]) * bytes_in_buckets,
    }


def _patch_values(config: GenLIPConfig) -> int:
    return config.num_channels * config.patch_size**2
