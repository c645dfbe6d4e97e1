"""What a resumed run needs besides weights and optimiser."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainState:
    """Where a run stands. Nothing random is in it: every draw is a function of the seed, the step and the lane."""

    step: int = 0
    samples_seen: int = 0
    flops: int = 0
    """Spent so far, by the formula of the objective; refused steps count too."""
    stream: dict[str, Any] = field(default_factory=dict)
    """The loader's, from `Loader.state_dict`; empty where nothing was read yet."""
    refused_steps: int = 0
    """Steps that were left out: their loss or gradient was not finite, or their loss a spike."""
    recent_losses: tuple[float, ...] = ()
    """Those that the next spike is measured against; see `train.faults.SpikeGuard`."""
