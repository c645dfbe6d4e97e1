"""The training log: one JSON object per logged step in RUN/metrics.jsonl, and the line a person reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train.jsonl import append_line, read_lines

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """What is known after a logged step; rates are averages since the line before."""

    step: int
    samples: int
    passes: dict[str, float]
    """How often each source has been read."""
    loss: float
    """Nats per labelled token of the global batch."""
    grad_norm: float
    """Before clipping."""
    lr: float
    samples_per_s: float
    tokens_per_s: float
    flops_per_s: float
    """Model FLOPs of this batch, all processes, by the formula of `model.flops_per_sample`."""
    data_wait: float
    """Share of the time in which the first process waited for data."""
    read: dict[str, dict[str, int]]
    """What the first process has read of each source, by `ShardReader.counters`."""
    memory_gib: float
    """Largest so far: of the device, or of the process where there is no GPU."""
    eta_s: float


def log_metrics(run_dir: Path, metrics: StepMetrics) -> None:
    append_line(run_dir / METRICS, asdict(metrics))


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All logged steps, in order; a last line that a kill cut short is left out."""
    return read_lines(run_dir / METRICS)


def forget_after(run_dir: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run takes again."""
    kept = [entry for entry in read_metrics(run_dir) if entry["step"] <= step]
    temporary = run_dir / f".{METRICS}.tmp"
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    temporary.replace(run_dir / METRICS)


def render(metrics: StepMetrics, length: int) -> str:
    """The line of the log."""
    passes = ", ".join(f"{name} {number:.2f}" for name, number in metrics.passes.items())
    return (
        f"step {metrics.step:,} · samples {metrics.samples:,}/{length:,} ({metrics.samples / length:.1%})"
        f" · passes {passes}"
        f" · loss {metrics.loss:.4f} · gnorm {metrics.grad_norm:.2f} · lr {metrics.lr:.2e}"
        f" · {metrics.samples_per_s:,.1f} samples/s · {metrics.flops_per_s / 1e12:.3f} TFLOP/s"
        f" · data-wait {metrics.data_wait:.1%} · mem {metrics.memory_gib:.2f} GiB · eta {metrics.eta_s:,.0f} s"
    )
