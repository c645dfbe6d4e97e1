"""AdamW over the model's parameters, and which of them decay."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from model import GenLIP, GenLIPConfig
from train.recipe import OptimSpec, UndecayedKind


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


def parameter_groups(model: GenLIP, spec: OptimSpec) -> list[ParameterGroup]:
    """The parameters that decay, then those of a kind in `no_decay`; without the second where there are none."""
    decayed, undecayed = ParameterGroup(spec.weight_decay), ParameterGroup(0.0)
    for name, parameter, kinds in _parameters(model):
        group = undecayed if kinds & set(spec.no_decay) else decayed
        group.names.append(name)
        group.parameters.append(parameter)
    return [group for group in (decayed, undecayed) if group.parameters]


def _parameters(model: GenLIP) -> Iterator[tuple[str, nn.Parameter, set[UndecayedKind]]]:
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
            yield f"{module_name}.{own_name}", parameter, kinds


def build_optimizer(model: GenLIP, spec: OptimSpec) -> torch.optim.AdamW:
    """AdamW in one fused pass over each parameter, on a GPU as on a CPU. The trainer sets the rate at every step."""
    groups = [
        {"params": group.parameters, "weight_decay": group.weight_decay} for group in parameter_groups(model, spec)
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


def decay_lines(config: GenLIPConfig, spec: OptimSpec) -> list[str]:
    """For the plan: how many parameters decay by how much."""
    with torch.device("meta"):
        groups = parameter_groups(GenLIP(config), spec)
    return [
        f"decay      {group.weight_decay:g} on {group.num_values:,} parameters in {len(group.parameters):,} tensors"
        + (f" ({', '.join(spec.no_decay)})" if spec.no_decay and group is groups[-1] else "")
        for group in groups
    ]
