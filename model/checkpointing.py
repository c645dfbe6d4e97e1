"""What a checkpointed block keeps for its backward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts, noop_context_fn

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]

# Matrix products and every kernel of attention: most of a block's time, and less than half of its memory.
EXPENSIVE = {
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
}


def checkpoint_contexts(recompute: Literal["all", "cheap"]) -> Contexts:
    """The `context_fn` of `torch.utils.checkpoint.checkpoint`: keep nothing of a block, or what is expensive."""
    if recompute == "all":
        return noop_context_fn
    return partial(create_selective_checkpoint_contexts, _policy)


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    # By name, because the variable-length kernel is registered only where it is used.
    is_expensive = operation.name() in EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if is_expensive else CheckpointPolicy.PREFER_RECOMPUTE
