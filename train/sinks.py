"""Where a run's numbers go: RUN/metrics.jsonl and eval.jsonl always, TensorBoard and Weights & Biases by option."""

import json
import uuid
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.engine import Ranks
from train.metrics import Evaluation, StepMetrics, forget_after, log_evaluation, log_metrics
from train.recipe import RECIPE_FILE, LogSpec

TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb-id.txt"


class Sink(Protocol):
    """One more place for the numbers of a run."""

    def log(self, samples: int, unix_s: float, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """All places that the recipe names; of the processes only the first writes."""

    def __init__(self, run_dir: Path, spec: LogSpec, ranks: Ranks, step: int, samples: int) -> None:
        """Opens them, and forgets what a killed life of the run has logged behind its checkpoint.

        Args:
            run_dir: The run folder.
            spec: Of the recipe.
            ranks: This process's place.
            step: Of the checkpoint that training goes on from; 0 where there is none.
            samples: Of that checkpoint.

        Raises:
            UserError: A package is missing, or Weights & Biases refuses the run.
        """
        self._run_dir = run_dir
        self._is_first = ranks.is_first
        self._sinks: list[Sink] = []
        if ranks.is_first:
            forget_after(run_dir, step)
            opened: dict[str, Callable[[], Sink]] = {
                "tensorboard": lambda: _TensorBoard(run_dir, samples),
                "wandb": lambda: _Wandb(run_dir, spec.wandb_project),
            }
            self._sinks = [opened[name]() for name in spec.to]

    def log(self, metrics: StepMetrics) -> None:
        """Write a step down."""
        if self._is_first:
            log_metrics(self._run_dir, metrics)
        for sink in self._sinks:
            sink.log(metrics.samples, metrics.unix_s, scalars(metrics))

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Write down what was measured on held-out images."""
        if self._is_first:
            log_evaluation(self._run_dir, evaluation)
        numbers = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        for sink in self._sinks:
            sink.log(evaluation.samples, evaluation.unix_s, numbers)

    def close(self) -> None:
        """Write what is still buffered."""
        for sink in self._sinks:
            sink.close()


def scalars(metrics: StepMetrics) -> dict[str, float]:
    """The numbers of a step under the names that trackers show, grouped by what stands before the slash."""
    named: dict[str, float | None] = {
        "train/step": metrics.step,
        "train/loss": metrics.loss,
        "train/grad_norm": metrics.grad_norm,
        "train/lr": metrics.lr,
        "speed/samples_per_s": metrics.samples_per_s,
        "speed/tokens_per_s": metrics.tokens_per_s,
        "speed/tflops_per_s": metrics.flops_per_s / 1e12,
        "speed/mfu": metrics.mfu,
        "speed/memory_gib": metrics.memory_gib,
        "speed/checkpoint_stall_s": metrics.checkpoint_stall_s,
        "data/num_bad_samples": metrics.num_bad_samples,
    }
    named |= {f"loss/{name}": loss for name, loss in metrics.source_losses.items()}
    named |= {f"passes/{name}": number for name, number in metrics.passes.items()}
    named |= {f"time/{name}": share for name, share in metrics.time_shares.items()}
    return {name: value for name, value in named.items() if value is not None}


class _TensorBoard:
    """Event files over samples seen."""

    def __init__(self, run_dir: Path, samples: int) -> None:
        package = _import("tensorboardX", "tensorboard")
        # A file of its own for each life, named after where it begins; what the one before it wrote from there on is
        # hidden.
        self._writer = package.SummaryWriter(
            str(run_dir / TENSORBOARD_FOLDER), purge_step=samples + 1, filename_suffix=f".{samples}"
        )

    def log(self, samples: int, unix_s: float, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, samples, walltime=unix_s)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases under the name of the run folder; a run that is resumed goes on with it."""

    def __init__(self, run_dir: Path, project: str) -> None:
        package = _import("wandb", "wandb")
        try:
            self._run: Any = package.init(
                project=project,
                id=_tracker_id(run_dir),
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=json.loads((run_dir / RECIPE_FILE).read_text(encoding="utf-8")),
                resume="allow",
            )
        except package.Error as error:
            raise UserError(
                "Weights & Biases does not take the run",
                where="train.log.to",
                why=str(error),
                next_step="run: wandb login; or set WANDB_MODE=offline, or take wandb out of train.log.to",
                exit_code=EXIT_ENVIRONMENT,
            ) from error
        # The axis is samples seen, not the count of calls: lines that a resumed run logs again fall on their places.
        self._run.define_metric("*", step_metric="train/samples")

    def log(self, samples: int, unix_s: float, numbers: Mapping[str, float]) -> None:
        self._run.log({"train/samples": samples, **numbers})

    def close(self) -> None:
        self._run.finish()


def _tracker_id(run_dir: Path) -> str:
    """Drawn once for a run folder: others may have runs of the same name in the project."""
    path = run_dir / WANDB_ID_FILE
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _import(package: str, sink: str) -> ModuleType:
    """A package that only this sink needs."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"the log goes to {sink}, which needs {package}",
            where="train.log.to",
            why=str(error),
            next_step=f"run: pip install {package}; or take {sink} out of train.log.to",
            exit_code=EXIT_ENVIRONMENT,
        ) from error
