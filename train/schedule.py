"""Learning rate on the clock of samples seen."""

import math

from train.recipe import OptimSpec


def learning_rate(samples_seen: int, length: int, spec: OptimSpec) -> float:
    """Linear warm-up from 0, then cosine decay to `min_lr` (spec §10 of the GenLIP recipe, in samples for steps).

    Args:
        samples_seen: Before the step that this rate is for.
        length: Samples of the whole run.
        spec: Peak, floor and warm-up.
    """
    if samples_seen < spec.warmup:
        return spec.lr * samples_seen / spec.warmup
    progress = min(1.0, (samples_seen - spec.warmup) / max(1, length - spec.warmup))
    return spec.min_lr + (spec.lr - spec.min_lr) * (1 + math.cos(math.pi * progress)) / 2
