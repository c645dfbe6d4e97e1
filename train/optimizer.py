"""AdamW over the model's parameters, and which of them decay."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from train.network import Network
from train.recipe import OptimSpec, UndecayedKind

_NEVER_DECAYED = {"logit_scale", "logit_bias"}
"""Of the contrastive objectives: decay would draw the scale to 1 (CLIP, Radford et al. 2021, section 2.5)."""


@dataclass
class ParameterGroup:
    """Parameters with one weight decay."""

    weight_decay: float
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)

    @property
    def num_values(self) -> int:
        """Numbers in all its tensors."""
        return sum(parameter.numel() for parameter in self.parameters)


def parameter_groups(model: nn.Module, spec: OptimSpec) -> list[ParameterGroup]:
    """The parameters that decay, then those of a kind in `no_decay`, with scale and bias of the similarities.

    A group that would be empty is left out.
    """
    decayed, undecayed = ParameterGroup(spec.weight_decay), ParameterGroup(0.0)
    for name, parameter, kinds in _parameters(model):
        is_undecayed = kinds & set(spec.no_decay) or _own_name(name) in _NEVER_DECAYED
        group = undecayed if is_undecayed else decayed
        group.names.append(name)
        group.parameters.append(parameter)
    return [group for group in (decayed, undecayed) if group.parameters]


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, set[UndecayedKind]]]:
    """Name, parameter and kinds: a norm's bias is of two, a matrix of none."""
    for module_name, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            kinds: set[UndecayedKind] = set()
            if own_name == "bias":
                kinds.add("biases")
            if isinstance(module, nn.LayerNorm):
                kinds.add("norms")
            if isinstance(module, nn.Embedding):
                kinds.add("embeddings")
            if own_name == "lambda1":
                kinds.add("layer_scales")
            yield f"{module_name}.{own_name}".removeprefix("."), parameter, kinds


def _own_name(name: str) -> str:
    """In its module."""
    return name.rsplit(".", 1)[-1]


def build_optimizer(model: nn.Module, spec: OptimSpec) -> torch.optim.AdamW:
    """AdamW in one fused pass over each parameter, on a GPU as on a CPU. The trainer sets the rate at every step."""
    groups = [
        {"params": group.parameters, "weight_decay": group.weight_decay} for group in parameter_groups(model, spec)
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


def decay_lines(network: Network, spec: OptimSpec) -> list[str]:
    """For the plan: how many parameters decay by how much."""
    lines = []
    for group in parameter_groups(network.skeleton(), spec):
        undecayed = [*spec.no_decay, *(name for name in map(_own_name, group.names) if name in _NEVER_DECAYED)]
        which = f" ({', '.join(undecayed)})" if group.weight_decay == 0 and undecayed else ""
        lines.append(
            f"decay      {group.weight_decay:g} on {group.num_values:,} parameters in {len(group.parameters):,}"
            f" tensors{which}"
        )
    return lines
