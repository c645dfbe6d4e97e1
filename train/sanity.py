"""Checks before a run spends anything: equal weights on all ranks, a gradient for every parameter."""

import hashlib
from functools import partial
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import UserError
from train.engine import Ranks

_MAX_NAMES = 10


def check_equal_weights(model: nn.Module, ranks: Ranks) -> None:
    """Compare the ranks' weights, by a hash of each parameter. Before DeepSpeed divides them.

    Raises:
        UserError: They differ; the first such parameter is named.
    """
    if ranks.world_size == 1:
        return
    names = [name for name, _ in model.named_parameters()]
    hashes_P = torch.tensor([_hash(parameter) for parameter in model.parameters()], device=ranks.device)
    hashes_RP = [torch.empty_like(hashes_P) for _ in range(ranks.world_size)]
    dist.all_gather(hashes_RP, hashes_P)
    for rank, theirs_P in enumerate(hashes_RP):
        differs_P = theirs_P != hashes_RP[0]
        if differs_P.any():
            raise UserError(
                f"the initial weights of process {rank} are not those of process 0",
                where=f"parameter {names[int(differs_P.nonzero()[0])]}, of {int(differs_P.sum())} that differ",
                why="the processes run different code or packages, or read different files",
                next_step="compare the machines' environments; train.init_from must name the same files everywhere",
            )


def _hash(parameter: Tensor) -> int:
    values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return int.from_bytes(hashlib.sha256(values).digest()[:8], "little", signed=True)


class GradientCheck:
    """Notes in a block which parameters get a gradient, and whether it is finite. For the first step of a run.

    It looks at what the backward pass hands over, before DeepSpeed reduces and divides it, so it works in every stage.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._ranks = ranks
        self._names = [name for name, _ in parameters]
        self._is_missing_P = torch.ones(len(parameters), device=ranks.device)
        self._num_infinite_P = torch.zeros(len(parameters), device=ranks.device)
        self._handles = [
            parameter.register_hook(partial(self._note, index))  # type: ignore[no-untyped-call]
            for index, (_, parameter) in enumerate(parameters)
        ]

    def _note(self, index: int, gradient: Tensor) -> None:
        self._is_missing_P[index] = 0
        self._num_infinite_P[index] += ~gradient.isfinite().all()

    def __enter__(self) -> "GradientCheck":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def verify(self) -> None:
        """Judge what was noted on all ranks; every rank calls it.

        Raises:
            UserError: Parameters have no gradient on any rank, or one that is not finite; they are named.
        """
        dist.all_reduce(self._is_missing_P, op=dist.ReduceOp.MIN)
        dist.all_reduce(self._num_infinite_P)
        missing, infinite = self._chosen(self._is_missing_P), self._chosen(self._num_infinite_P)
        if missing:
            raise UserError(
                f"{len(missing)} parameters got no gradient in the first step",
                where=_listed(missing),
                why="the loss does not depend on them: they would only decay",
                next_step="take them out of the model, or freeze them",
            )
        if infinite:
            raise UserError(
                f"{len(infinite)} parameters got a gradient that is not finite in the first step",
                where=_listed(infinite),
                next_step="look at train.init_from and the first samples; genlip overfit RECIPE tries a single batch",
            )

    def _chosen(self, flags_P: Tensor) -> list[str]:
        return [name for name, flag in zip(self._names, flags_P.tolist(), strict=True) if flag]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
