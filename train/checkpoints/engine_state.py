"""Master weights and the optimiser's tensors in and out of a DeepSpeed engine, whole and by name, at any ZeRO stage.

| stage | master weights live in |
|---|---|
| 0 | the parameters themselves, which are fp32 |
| 1, 2 | a flat fp32 tensor for each group, cut into one piece for each rank |
| 3 | flat fp32 tensors of pieces: every parameter is cut, one piece for each rank |

DeepSpeed's tensor-fragment functions gather and set them at stages 1–3. What has to come before and after setting is
done here: moments that exist before the first step, and the weights of the forward pass made from the master weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

WEIGHT = "weight"
"""The master weight, among what belongs to one parameter."""


class EngineState:
    """Whole tensors of one engine. `read`, `write` and `finish` are called by all ranks together."""

    def __init__(self, engine: Any) -> None:
        import deepspeed.utils  # takes seconds, so only where there is an engine

        self._fragments = deepspeed.utils
        self._stage = engine.zero_optimization_stage()
        self._zero = engine.optimizer
        self._adam = engine.basic_optimizer
        self.parameters: dict[str, Parameter] = {
            name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad
        }
        self.shapes = {
            name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in self.parameters.items()
        }
        """Whole, in the module's order."""
        if not self._adam.state:
            self._begin_moments()
        if self._stage in (1, 2):
            # DeepSpeed links moments to parameters after the step of the first group, when others have none (0.19.8).
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()
        master, state = next(iter(self._adam.state.items()))
        self.kinds = (WEIGHT, *(key for key, value in state.items() if key != "step" and value.shape == master.shape))
        """What belongs to one parameter: the master weight, and the optimiser's tensors (moments, an average) by their
        names there."""

    @property
    def num_steps(self) -> int:
        """Updates that Adam has made."""
        return max(int(state["step"]) for state in self._adam.state.values())

    def read(self, name: str) -> dict[str, Tensor]:
        """What belongs to a parameter by kind, whole, fp32. They may be the engine's own memory."""
        parameter = self.parameters[name]
        if self._stage == 0:
            state, zeros = self._adam.state[parameter], torch.zeros_like(parameter)
            # A parameter that never had a gradient has no moments.
            return {WEIGHT: parameter.detach(), **{kind: state.get(kind, zeros) for kind in self.kinds[1:]}}
        of_state = {kind: self._fragments.safe_get_full_optimizer_state(parameter, kind) for kind in self.kinds[1:]}
        return {WEIGHT: self._fragments.safe_get_full_fp32_param(parameter), **of_state}

    @torch.no_grad()
    def write(self, name: str, values: dict[str, Tensor]) -> None:
        """Put back what `read` gave; `finish` must follow when all are written."""
        parameter = self.parameters[name]
        for kind, value in values.items():
            if self._stage == 0:
                (parameter if kind == WEIGHT else self._adam.state[parameter][kind]).copy_(value)
            elif self._stage == 3:
                self._write_piece(parameter, kind, value)
            elif kind == WEIGHT:
                self._fragments.safe_set_full_fp32_param(parameter, value)
            else:
                self._fragments.safe_set_full_optimizer_state(parameter, value, kind)

    @torch.no_grad()
    def finish(self, num_steps: int) -> None:
        """Set Adam's step counters, and make the weights that the forward pass uses from the master weights."""
        for state in self._adam.state.values():
            state["step"].fill_(num_steps)
        if self._stage == 3:
            # As DeepSpeed's own step ends, without the update.
            self._zero._partition_all_parameters()
            for number in range(len(self._zero.fp16_groups)):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
            self._zero._post_step(set())
        elif self._stage:
            self._zero.update_lp_params()

    def _write_piece(self, parameter: Any, kind: str, value: Tensor) -> None:
        """Set this rank's piece at stage 3. Pieces are of one size, and the last is padded.

        DeepSpeed's setter of whole values fails where the number of ranks does not divide a parameter (0.19.8).
        """
        size, rank = parameter.ds_tensor.numel(), self._zero._get_param_partition_rank(parameter)
        piece = value.flatten()[rank * size : (rank + 1) * size]
        piece = F.pad(piece, (0, size - piece.numel()))
        if kind == WEIGHT:
            self._fragments.safe_set_local_fp32_param(parameter, piece)
        else:
            self._fragments.safe_set_local_optimizer_state(parameter, piece, kind)

    def _begin_moments(self) -> None:
        """Adam makes its moments in the first step: let it take one without gradient and without a learning rate."""
        groups = self._adam.param_groups
        if self._stage == 3:
            masters = self._zero.fp32_partitioned_groups_flat
        else:
            masters = [master for group in groups for master in group["params"]]
        gradients = [master.grad for master in masters]
        for master in masters:
            master.grad = torch.zeros_like(master)
        self._adam.param_groups = [{**groups[0], "params": masters, "lr": 0.0}]
        self._adam.step()
        self._adam.param_groups = groups
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        for state in self._adam.state.values():
            state["step"].zero_()
