"""The training log: a JSON object per logged step in RUN/metrics.jsonl, one per evaluation in RUN/eval.jsonl, and the
lines that a person reads."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train.jsonl import append_line, read_lines

METRICS = "metrics.jsonl"
EVALUATIONS = "eval.jsonl"
REFUSED_STEPS = "refused-steps.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """What is known after a logged step; rates and shares are averages since the line before."""

    step: int
    samples: int
    passes: dict[str, float]
    """How often each source has been read."""
    loss: float
    """Of the global batch, in the unit of the objective: `train.network.LOSS_UNITS`."""
    source_losses: dict[str, float]
    """The same for the samples of each source since the line before; empty with one source, and where the loss is not
    a sum over tokens."""
    grad_norm: float
    """Before clipping."""
    lr: float
    samples_per_s: float
    tokens_per_s: float
    flops_per_s: float
    """Model FLOPs of all processes, by the formula of the objective."""
    mfu: float | None
    """Those over what the devices can do; None where that is not known."""
    time_shares: dict[str, float]
    """Of the first process: `data` (waiting for it), `forward`, `backward`, `optimiser`, `checkpoint`,
    `evaluation`, `rest`."""
    checkpoint_stall_s: float
    """Seconds that the loop stood still for checkpoints."""
    num_bad_samples: int
    """Unreadable ones so far, all processes, since the run began or was resumed."""
    read: dict[str, dict[str, int]]
    """What the first process has read of each source, by `ShardReader.counters`."""
    memory_gib: float
    """Largest so far: of the device, or of the process where there is no GPU."""
    uptime_s: float
    """Since the run began or was resumed: where it falls, the run was resumed."""
    unix_s: float
    """Time of day, in seconds since 1970."""
    eta_s: float
    """Remaining samples over the rate since the run began or was resumed."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured on held-out images on the way."""

    step: int
    samples: int
    unix_s: float
    """Time of day, in seconds since 1970."""
    flops: int
    """Spent on training so far, by the formula of the objective."""
    metrics: dict[str, float]
    """By the names that `genlip eval` uses: TASK/METRIC."""


def log_metrics(run_dir: Path, metrics: StepMetrics) -> None:
    append_line(run_dir / METRICS, asdict(metrics))


def log_evaluation(run_dir: Path, evaluation: Evaluation) -> None:
    append_line(run_dir / EVALUATIONS, asdict(evaluation))


def iter_metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The logged steps one by one, in order, so that the log of a long run need not fit into memory.

    A line that a kill cut short is left out; a run without a log has none.
    """
    path = run_dir / METRICS
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        yield from _parsed(stream)


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """All evaluations of a run, in order; those whose line a kill cut short are left out."""
    return [Evaluation(**entry) for entry in read_lines(run_dir / EVALUATIONS)]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All logged steps, in order."""
    return list(iter_metrics(run_dir))


class LogTail:
    """The lines that a growing log gains, each handed out once, without reading the whole log again."""

    def __init__(self, run_dir: Path, name: str = METRICS) -> None:
        self._path = run_dir / name
        self._file, self._offset, self._step = 0, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Whole lines since the last call; steps that a resumed run takes again are not new."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            file = os.fstat(stream.fileno()).st_ino
            if file != self._file:  # `forget_after` wrote another
                self._file, self._offset = file, 0
            stream.seek(self._offset)
            body = stream.read()
        whole = body[: body.rfind(b"\n") + 1]
        self._offset += len(whole)
        new = [entry for entry in _parsed(whole.decode().splitlines()) if entry["step"] > self._step]
        self._step = max([self._step, *(entry["step"] for entry in new)])
        return new


def forget_after(run_dir: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run takes again."""
    for path in (run_dir / METRICS, run_dir / EVALUATIONS):
        if not path.exists():
            continue
        temporary = path.with_name(f".{path.name}.tmp")
        with path.open(encoding="utf-8") as lines, temporary.open("w", encoding="utf-8") as stream:
            for entry in _parsed(lines):
                if entry["step"] <= step:
                    stream.write(json.dumps(entry) + "\n")
        temporary.replace(path)


def render(metrics: StepMetrics, length: int) -> str:
    """The line of the log."""
    passes = ", ".join(f"{name} {number:.2f}" for name, number in metrics.passes.items())
    by_source = ", ".join(f"{name} {loss:.4f}" for name, loss in metrics.source_losses.items())
    speed = f"{metrics.flops_per_s / 1e12:.3f} TFLOP/s" if metrics.mfu is None else f"MFU {metrics.mfu:.1%}"
    bad = f" · bad samples {metrics.num_bad_samples:,}" if metrics.num_bad_samples else ""
    stall = f" · checkpoint {metrics.checkpoint_stall_s:.1f} s" if metrics.checkpoint_stall_s else ""
    return (
        f"step {metrics.step:,} · samples {metrics.samples:,}/{length:,} ({metrics.samples / length:.1%})"
        f" · passes {passes}"
        f" · loss {metrics.loss:.4f}{f' ({by_source})' if by_source else ''}"
        f" · gnorm {metrics.grad_norm:.2f} · lr {metrics.lr:.2e}"
        f" · {metrics.samples_per_s:,.1f} samples/s · {metrics.tokens_per_s:,.0f} tokens/s · {speed}"
        f" · data-wait {metrics.time_shares['data']:.1%}{stall}{bad}"
        f" · mem {metrics.memory_gib:.2f} GiB · eta {_short_duration(metrics.eta_s)}"
    )


def render_evaluation(evaluation: Evaluation) -> str:
    """The line of the log."""
    numbers = " · ".join(f"{name} {value:.4f}" for name, value in evaluation.metrics.items())
    return f"step {evaluation.step:,} · samples {evaluation.samples:,} · held-out: {numbers}"


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _short_duration(seconds: float) -> str:
    """12s, 3m05s, 2h07m, 2d14h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, days = minutes // 60, minutes // 1440
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
