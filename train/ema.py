"""An exponential moving average of the fp32 master weights, kept where the optimiser keeps its moments.

The average is one more tensor in the optimiser's state, beside Adam's moments and of their shape. So ZeRO cuts it into
the pieces of the ranks as it cuts them, at any stage; it stays on the host with an offloaded optimiser; and whoever
gathers, saves or restores a parameter's moments by name does the same for `EMA`.
"""

from typing import Any

import torch

EMA = "ema"
"""Its name in the optimiser's state."""


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Have an optimiser average the weights that it makes, in every step that it takes.

    The first steps keep less, min(decay, (1 + steps) / (10 + steps)) of the average, so that the initial weights are
    soon forgotten (the rule for `num_updates` of tf.train.ExponentialMovingAverage).

    Args:
        optimizer: Adam or a kin of it, whose state counts steps; before it is given to DeepSpeed.
        decay: Share of the average that a step keeps, later on.
    """
    optimizer.register_step_post_hook(lambda stepped, args, kwargs: _update(stepped, decay))


@torch.no_grad()
def _update(optimizer: torch.optim.Optimizer, decay: float) -> None:
    for weights in [one for group in optimizer.param_groups for one in group["params"]]:
        if weights.grad is None:  # it was not updated
            continue
        state: dict[str, Any] = optimizer.state[weights]
        if EMA in state:
            # A fused optimiser counts its steps on the GPU; the host must not wait for that.
            steps = torch.as_tensor(state["step"], dtype=torch.float32, device=weights.device)
            state[EMA].lerp_(weights, (9 / (10 + steps)).clamp(min=1 - decay))
        else:
            state[EMA] = weights.detach().clone()
