"""Cross entropy of a large vocabulary without ever holding all logits.

Shape legend: L labelled tokens, D channels, V vocabulary entries.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# 512 MiB of float32 logits at a time.
LOGITS_PER_CHUNK = 2**27

Head = Callable[[Tensor], Tensor]


def cross_entropy(hidden_LD: Tensor, targets_L: Tensor, head: Head, vocab_size: int) -> Tensor:
    """-log P(target) of every token, float32 [L]; its sum is 0 with a gradient graph when there is no target.

    Longer inputs are cut into chunks whose logits are recomputed in the backward pass.
    """
    chunks = _chunks(hidden_LD, targets_L, vocab_size)
    if len(chunks) == 1:
        return _chunk_losses(*chunks[0], head)
    return torch.cat(
        [checkpoint(_chunk_losses, hidden, targets, head, use_reentrant=False) for hidden, targets in chunks]
    )


def token_log_probs(hidden_LD: Tensor, targets_L: Tensor, head: Head, vocab_size: int) -> Tensor:
    """log P(target) of every token, float32 [L]."""
    return -cross_entropy(hidden_LD, targets_L, head, vocab_size)


def _chunks(hidden_LD: Tensor, targets_L: Tensor, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    chunk_tokens = max(1, LOGITS_PER_CHUNK // vocab_size)
    return list(zip(torch.split(hidden_LD, chunk_tokens), torch.split(targets_L, chunk_tokens), strict=True))


def _chunk_losses(hidden_LD: Tensor, targets_L: Tensor, head: Head) -> Tensor:
    return F.cross_entropy(head(hidden_LD).float(), targets_L, reduction="none")
