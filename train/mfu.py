"""Model FLOP utilisation: how much of what the devices can do goes into the model's own arithmetic."""

import torch

# Device (a part of its name in torch; the first that fits), TFLOP/s in bf16 and in fp32, without sparsity. Data sheets
# give bf16 with 2:4 sparsity from Hopper on: twice this. fp32 is that of the plain units, since torch multiplies
# fp32 matrices exactly unless told otherwise. None: the sheets disagree.
# A100: nvidia.com, "A100 Tensor Core GPU" data sheet, 2021. H100, H200: "H100" and "H200 Tensor Core GPU" data
# sheets, 2024. L40S: "L40S" data sheet, 2023. B200, GB200: "Blackwell Architecture Technical Brief", 2024, HGX B200
# and GB200 for one GPU. MI300X: amd.com, "Instinct MI300X" data sheet, 2023.
_PEAK_TFLOPS: tuple[tuple[str, float, float | None], ...] = (
    ("GB200", 2500, None),
    ("B200", 2250, None),
    ("GH200", 989.5, 67),
    ("H200 NVL", 835.5, 60),
    ("H200", 989.5, 67),
    ("H100 NVL", 835.5, 60),
    ("H100 PCIe", 756.5, 51),
    ("H100", 989.5, 67),
    ("A100", 312, 19.5),
    ("L40S", 362, 91.6),
    ("MI300X", 1307.4, 163.4),
)


def device_name() -> str:
    """The name of this process's device in torch; `cpu` where there is no GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_flops_per_s(device: str, precision: str, peak_tflops: float) -> float | None:
    """What one device can do.

    Args:
        device: Its name in torch.
        precision: bf16 or fp32.
        peak_tflops: The recipe's number, which goes before the table's; 0 where it gives none.

    Returns:
        FLOP/s; None where they are not known, as for a slice of a GPU.
    """
    if peak_tflops:
        return peak_tflops * 1e12
    if "MIG" in device:
        return None
    for name, bf16, fp32 in _PEAK_TFLOPS:
        if name in device:
            known = bf16 if precision == "bf16" else fp32
            return known and known * 1e12
    return None


def mfu_lines(flops_per_sample: float, world_size: int, device: str, precision: str, peak_tflops: float) -> list[str]:
    """The arithmetic behind the log's MFU, to be said once before training.

    Args:
        flops_per_sample: Mean over the plan, by `model.flops_per_sample`.
        world_size: Processes, each with a device of its own.
        device: Its name in torch.
        precision: bf16 or fp32.
        peak_tflops: The recipe's `train.log.peak_tflops`.
    """
    peak = peak_flops_per_s(device, precision, peak_tflops)
    if peak is None:
        return [
            f"mfu        none is claimed: nothing is known of what {device} can do in {precision}"
            " (train.log.peak_tflops says it)"
        ]
    whence = "train.log.peak_tflops" if peak_tflops else f"data sheet of {device}, {precision} without sparsity"
    return [
        f"mfu        {flops_per_sample / 1e9:,.2f} GFLOP a sample × samples/s ÷ ({world_size:,} devices"
        f" × {peak / 1e12:,.1f} TFLOP/s; {whence})",
        f"           100 % would be {world_size * peak / flops_per_sample:,.0f} samples/s; forward + backward,"
        " nothing that is computed twice",
    ]
