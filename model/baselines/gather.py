"""Samples of all processes in one tensor, with gradients.

Shape legend: M samples of this process, R processes, G samples of all processes, E values of a sample.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_samples(x_ME: Tensor) -> tuple[Tensor, int]:
    """The samples of all processes in order of rank, [G, E], and the place of this process's first.

    Numbers of samples may differ. The gradient of a sample is the sum of what all processes' losses have for it.
    Without a process group, or alone in one: the same tensor. All processes must call it, with and without gradients
    alike, and run its backward pass if one does.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x_ME, 0
    num_own_1 = torch.tensor([len(x_ME)], device=x_ME.device)
    num_samples_R1 = [torch.empty_like(num_own_1) for _ in range(dist.get_world_size())]
    dist.all_gather(num_samples_R1, num_own_1)
    num_samples_R: list[int] = torch.cat(num_samples_R1).tolist()
    x_GE: Tensor = _Gather.apply(x_ME, num_samples_R)  # type: ignore[no-untyped-call]
    return x_GE, sum(num_samples_R[: dist.get_rank()])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ME: Tensor, num_samples_R: list[int]) -> Tensor:
        rank = dist.get_rank()
        ctx.first, ctx.num_own = sum(num_samples_R[:rank]), num_samples_R[rank]
        # Collectives want equal shapes: every process sends as many lines as the largest one has.
        sent = x_ME.new_zeros(max(num_samples_R), x_ME.shape[1])
        sent[: len(x_ME)] = x_ME
        received = [torch.empty_like(sent) for _ in num_samples_R]
        dist.all_gather(received, sent)
        return torch.cat([part[:count] for part, count in zip(received, num_samples_R, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad_GE = grads[0].contiguous()
        dist.all_reduce(grad_GE)
        return grad_GE[ctx.first : ctx.first + ctx.num_own], None
