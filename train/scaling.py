"""How a step's time changes with the number of devices, on paper."""

from collections.abc import Mapping
from dataclasses import dataclass

from train.memory import FP32_BYTES, value_bytes
from train.recipe import TrainSpec

NODE_DEVICES = 8
NVLINK_GB_PER_S = 450.0
"""Of one H100 or H200 in one direction: NVIDIA's H100 data sheet, 900 GB/s in both."""
NETWORK_GBIT_PER_S: Mapping[str, float] = {"InfiniBand 8 × 400 Gb/s": 3200.0, "Ethernet 100 Gb/s": 100.0}
"""Of one node, all its adapters together: a DGX H100 has an adapter for each GPU; a plain server has one."""
REACHED = 0.8
"""Share of a link's nominal speed that large collectives reach."""
BACKWARD_SHARE = 2 / 3
"""Of a step's computing."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in one step."""

    hidden: float
    """While the device computes, as far as there is time for it."""
    exposed: float
    """While it waits."""
    window: float
    """Share of the computing beside which `hidden` runs."""

    @property
    def total(self) -> float:
        return self.hidden + self.exposed


def step_traffic(num_parameters: int, spec: TrainSpec, world_size: int) -> Traffic:
    """What the collectives of a step come to, for Ψ parameters on W processes with A micro-batches a step.

    A ring sends (W - 1) / W of the data for a reduce-scatter or an all-gather and twice that for an all-reduce, which
    is both (Rajbhandari et al., "ZeRO", 2020, section 7). With gradients of 4 bytes and weights of w bytes:

        stage 0     2 × 4Ψ                  after the backward pass
        stage 1     2 × 4Ψ + wΨ             the same, and the stepped weights are gathered
        stage 2     A × 2 × 4Ψ + wΨ         every micro-batch reduces, beside its backward pass
        stage 3     A × (4Ψ + 2 × wΨ)       weights are gathered for every pass, beside the one before

    The paper has a reduce-scatter in stages 1 and 2; DeepSpeed reduces everywhere and keeps its part.
    """
    stage = spec.zero.stage
    accumulation = max(1, spec.lanes // (world_size * spec.micro_rows))
    ring = (world_size - 1) / world_size * num_parameters
    gradients, weights = ring * FP32_BYTES, ring * value_bytes(spec)
    if stage == 3:
        return Traffic(accumulation * (gradients + 2 * weights), 0, 1)
    if stage == 2:
        return Traffic(accumulation * 2 * gradients, weights, BACKWARD_SHARE)
    return Traffic(0, 2 * gradients + (weights if stage == 1 else 0), 0)


def link_bytes_per_s(world_size: int, network_gbit_per_s: float) -> float:
    """What each process of a ring can send: rings run through every node, so the node's adapters bound them."""
    nvlink = NVLINK_GB_PER_S * 1e9
    network = network_gbit_per_s * 1e9 / 8
    return REACHED * (nvlink if world_size <= NODE_DEVICES else min(nvlink, network))


def efficiency(traffic: Traffic, compute_s: float, bytes_per_s: float) -> float:
    """Share of a step in which the devices compute: compute ÷ (compute + what they wait for).

    Args:
        traffic: Of the step.
        compute_s: Of the step on one of the devices.
        bytes_per_s: Of the slowest link.
    """
    left_over_s = max(0.0, traffic.hidden / bytes_per_s - traffic.window * compute_s)
    return compute_s / (compute_s + left_over_s + traffic.exposed / bytes_per_s)
