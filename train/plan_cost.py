"""What a run will cost, as lines of the plan: memory, traffic, scaling and device-hours, each with its arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from train.memory import FP32_BYTES, DeviceMemory, MicroBatch, predict_memory, value_bytes
from train.metrics import iter_metrics
from train.mfu import device_name, peak_flops_per_s
from train.network import Network
from train.recipe import TrainSpec
from train.scaling import NETWORK_GBIT_PER_S, REACHED, efficiency, link_bytes_per_s, step_traffic

_WORLD_SIZES = (8, 16, 32, 64, 128, 256, 512)
_ASSUMED_DEVICE = "H100"
"""Where the plan is made on a machine without a GPU that is known."""


@dataclass(frozen=True)
class StepCost:
    """What the plan knows of a step of the whole batch."""

    tokens: float
    """Padding excluded."""
    image_tokens: float
    labels: float
    flops: float
    samples: float


@dataclass(frozen=True)
class Speed:
    """What one device does in a second."""

    peak_flops_per_s: float
    mfu: float
    whence: str
    """Where the two numbers are from."""
    is_measured: bool

    @property
    def flops_per_s(self) -> float:
        return self.peak_flops_per_s * self.mfu


def cost_lines(
    network: Network, spec: TrainSpec, step: StepCost, world_size: int, run_dir: Path | None = None
) -> list[str]:
    """Memory, traffic, scaling and device-hours.

    Args:
        network: That is trained.
        spec: Of the run.
        step: Mean over the plan.
        world_size: Processes that are planned for.
        run_dir: Whose metrics say how fast the devices are, if it has any.
    """
    speed = _speed(spec, run_dir)
    return [
        *memory_lines(network, spec, step, world_size),
        *_traffic_lines(network, spec, world_size),
        *_scaling_lines(network, spec, step, speed),
        _hours_line(spec, step, speed, world_size),
    ]


def device_memory_gib(spec: TrainSpec) -> float:
    """Of one device: the recipe's, or the GPU's at hand; 0 where neither is known."""
    if not spec.devices.memory_gib and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / 2**30)
    return spec.devices.memory_gib


def memory_lines(network: Network, spec: TrainSpec, step: StepCost, world_size: int) -> list[str]:
    """What a device must hold, and what to change where it is too much."""
    memory = _memory(network, spec, step, world_size)
    parts = " + ".join(f"{name} {_gib(size)}" for name, size in vars(memory).items() if size)
    lines = [
        f"memory     {parts} = {_gib(memory.total)} GiB a device (ZeRO stage {spec.zero.stage}, offload"
        f" {spec.zero.offload}, gradient checkpointing {spec.gradient_checkpointing}, {spec.precision}), and some 10 %"
        " of the allocator's own"
    ]
    if network.name != "genlip":
        lines.append("           activations are the backbone's; text tower or decoder, and similarities, come on top")
    available = device_memory_gib(spec) * 2**30
    if available and 1.1 * memory.total <= available:
        lines.append(f"           1.1 × {_gib(memory.total)} of {_gib(available)} GiB: fits")
    elif available:
        ways = "; ".join(_ways_to_save(network, spec, step, world_size, memory)) or "a smaller model or more devices"
        lines.append(
            f"           1.1 × {_gib(memory.total)} of {_gib(available)} GiB: DOES NOT FIT, the dry run will refuse it;"
            f" try {ways}"
        )
    return lines


def _memory(network: Network, spec: TrainSpec, step: StepCost, world_size: int) -> DeviceMemory:
    share = spec.micro_rows / spec.lanes
    num_tokens, num_image_tokens = spec.micro_rows * spec.row_tokens, round(step.image_tokens * share)
    num_labels = round(step.labels * share)
    if network.name != "genlip":  # its backbone sees images alone, of which MAE hides a part
        is_seen = 1 - network.objective.mask_ratio if network.name == "mae" else 1
        num_tokens = round(num_image_tokens * is_seen)
        num_labels = num_labels if network.name == "cappa" else 0
    batch = MicroBatch(num_tokens, num_image_tokens, num_labels)
    return predict_memory(network.config, network.num_parameters, spec, batch, world_size)


def _ways_to_save(
    network: Network, spec: TrainSpec, step: StepCost, world_size: int, memory: DeviceMemory
) -> Iterator[str]:
    """Settings that need less, one change at a time."""
    zero = spec.zero
    changes: list[tuple[str, dict[str, object]]] = [
        ("train.micro_rows=1", {"micro_rows": 1}),
        ("train.gradient_checkpointing=selective", {"gradient_checkpointing": "selective"}),
        ("train.gradient_checkpointing=full", {"gradient_checkpointing": "full"}),
        ("train.zero.stage=2", {"zero": zero.model_copy(update={"stage": max(2, zero.stage)})}),
        ("train.zero.offload=optimizer", {"zero": zero.model_copy(update={"offload": "optimizer"})}),
    ]
    for text, update in changes:
        other = _memory(network, spec.model_copy(update=update), step, world_size)
        if other.total < memory.total:
            yield f"{text} ({_gib(other.total)} GiB)"


def _traffic_lines(network: Network, spec: TrainSpec, world_size: int) -> list[str]:
    if world_size == 1:
        return []
    traffic = step_traffic(network.num_parameters, spec, world_size)
    accumulation = spec.lanes // (world_size * spec.micro_rows)
    gradients, weights = f"{FP32_BYTES} B", f"{value_bytes(spec)} B"
    formula, when = {
        0: (f"2 × {gradients}", "after the backward pass"),
        1: (f"2 × {gradients} + {weights}", "after the backward pass"),
        2: (f"{accumulation} × 2 × {gradients} + {weights}", "gradients beside the backward pass"),
        3: (f"{accumulation} × ({gradients} + 2 × {weights})", "beside the computing"),
    }[spec.zero.stage]
    return [
        f"traffic    {world_size - 1}/{world_size} × ({formula}) × {network.num_parameters:,} parameters"
        f" = {traffic.total / 1e9:.2f} GB sent by each process in a step, {when} (ZeRO stage {spec.zero.stage})"
    ]


def _scaling_lines(network: Network, spec: TrainSpec, step: StepCost, speed: Speed) -> list[str]:
    """Predicted efficiency on more and more devices, with the same global batch."""
    sizes = [size for size in _WORLD_SIZES if spec.lanes % (size * spec.micro_rows) == 0]
    if not sizes:
        return []
    own = spec.devices.network_gbit_per_s
    networks = {f"a network of {own:g} Gb/s a node": own} if own else NETWORK_GBIT_PER_S
    lines = [
        f"scaling    computing {step.flops:.3g} FLOP ÷ devices ÷ ({speed.whence}); the network at {REACHED:.0%} of its"
        " speed; efficiency = computing ÷ (computing + traffic that it does not hide)"
    ]
    for name, gbit_per_s in networks.items():
        shares = [f"{size}: {_efficiency(network, spec, step, speed, size, gbit_per_s):.0%}" for size in sizes]
        lines.append(f"           {name} between nodes of 8, devices: {', '.join(shares)}")
    return lines


def _efficiency(
    network: Network, spec: TrainSpec, step: StepCost, speed: Speed, world_size: int, network_gbit_per_s: float
) -> float:
    traffic = step_traffic(network.num_parameters, spec, world_size)
    compute_s = step.flops / world_size / speed.flops_per_s
    return efficiency(traffic, compute_s, link_bytes_per_s(world_size, network_gbit_per_s))


def _hours_line(spec: TrainSpec, step: StepCost, speed: Speed, world_size: int) -> str:
    flops = spec.length * step.flops / step.samples
    hours = flops / speed.flops_per_s / 3600
    without = "" if speed.is_measured else ", at an efficiency of 100 %"
    return (
        f"hours      {flops:.3g} FLOP ÷ ({speed.whence}) = {hours:,.2f} device-hours"
        f" = {hours / world_size / 24:,.2f} days on {world_size:,}{without}"
    )


def _speed(spec: TrainSpec, run_dir: Path | None) -> Speed:
    """A measured MFU counts only beside the peak that it is a share of."""
    peak = peak_flops_per_s(device_name(), spec.precision, spec.log.peak_tflops)
    if peak is None:
        assumed = peak_flops_per_s(_ASSUMED_DEVICE, spec.precision, 0)
        assert assumed is not None
        what = f"{_ASSUMED_DEVICE}, assumed, {assumed / 1e12:,.1f} TFLOP/s × MFU {spec.devices.mfu:.0%}, assumed"
        return Speed(assumed, spec.devices.mfu, what, is_measured=False)
    measured = [line["mfu"] for line in iter_metrics(run_dir)] if run_dir else []
    # The first line holds the start.
    if shares := [mfu for mfu in measured[1:] if mfu]:
        mfu = median(shares)
        what = f"{peak / 1e12:,.1f} TFLOP/s × MFU {mfu:.1%}, the median of {len(shares):,} lines of metrics.jsonl"
        return Speed(peak, mfu, what, is_measured=True)
    what = f"{peak / 1e12:,.1f} TFLOP/s × MFU {spec.devices.mfu:.0%}, assumed"
    return Speed(peak, spec.devices.mfu, what, is_measured=False)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f}" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.1f}"
