"""The training loop."""

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model import ImageProcessor, Tokenizer
from pipeline.errors import UserError
from train.checkpoint import TrainState, save_checkpoint
from train.engine import Ranks
from train.loader import Loader, StepBatch
from train.metrics import StepMetrics
from train.recipe import TrainSpec
from train.schedule import learning_rate

OnLog = Callable[[StepMetrics], None]


def fit(
    engine: Any,
    loader: Loader,
    state: TrainState,
    spec: TrainSpec,
    ranks: Ranks,
    run_dir: Path,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    seed: int,
    on_log: OnLog,
) -> TrainState:
    """Train until `spec.length` samples are seen; checkpoints on the way and at the end.

    Args:
        engine: From `build_engine`, restored to `state`.
        loader: This rank's data, with `state.stream` loaded.
        state: Where to begin.
        spec: Schedule, batch, checkpoints.
        ranks: This process's place.
        run_dir: Where checkpoints go.
        tokenizer: Exported with each checkpoint, as is `processor`.
        processor: Exported with each checkpoint.
        seed: Of DropPath.
        on_log: Called on the first rank with each logged step.

    Raises:
        RuntimeError: The loader stands elsewhere than the state.
    """
    if state.step and loader.state_dict() != state.stream:
        raise RuntimeError("the checkpoint's stream state was not loaded into the loader")

    def save(state: TrainState) -> None:
        save_checkpoint(engine, state, run_dir, ranks, tokenizer, processor, spec.checkpoint.keep_last)

    meter = _Meter(loader, spec.length, state.samples_seen)
    steps = iter(loader)
    while state.samples_seen < spec.length:
        batch = next(steps)
        lr = learning_rate(state.samples_seen, spec.length, spec.optim)
        loss = train_step(engine, batch, lr, ranks, seed * 1_000_003 + state.step)
        before = state
        state = TrainState(state.step + 1, state.samples_seen + batch.num_samples, loader.state_dict())
        done = state.samples_seen >= spec.length
        meter.add(batch)
        if state.step % spec.log_every == 0 or done:
            metrics = meter.read(state, loss, float(engine.get_global_grad_norm() or 0.0), lr)
            if ranks.is_first:
                on_log(metrics)
        if done or state.samples_seen // spec.checkpoint.every > before.samples_seen // spec.checkpoint.every:
            save(state)
    steps.close()
    return state


def train_step(engine: Any, batch: StepBatch, lr: float, ranks: Ranks, seed: int) -> float:
    """One optimiser step on one global batch.

    The loss is the sum of the token losses of the global batch over its number of labelled tokens, whatever the
    number of ranks and micro-batches. DropPath draws from (seed, lane), so it is the same too on any number of ranks,
    and nothing random is state.

    Returns:
        That loss, the same on all ranks.

    Raises:
        UserError: The loss is not finite; the weights have not been touched.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    # DeepSpeed averages over ranks and micro-batches; this turns its average back into the sum.
    scale = ranks.world_size * batch.num_micro_batches / batch.num_labels
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for number, rows in enumerate(batch.micro_batches, start=1):
        lane = batch.first_lane + (number - 1) * len(rows.input_ids_BS)
        torch.manual_seed(seed * 65_537 + lane)
        loss_sum = engine(rows.to(ranks.device)).loss_sum
        engine.backward(loss_sum * scale)
        total += loss_sum.detach()
        if number == batch.num_micro_batches:
            dist.all_reduce(total)
            _refuse_non_finite(total, batch)
        engine.step()
    return float(total) / batch.num_labels


def _refuse_non_finite(total: torch.Tensor, batch: StepBatch) -> None:
    if not math.isfinite(float(total)):
        raise UserError(
            f"the loss is {float(total)} at step {batch.step:,}; the step was not taken",
            why=f"samples on this rank: {', '.join(batch.keys[:20])}",
            next_step="lower train.optim.lr, or look at these samples; the last checkpoint is intact",
        )


class _Meter:
    """Rates between two log lines."""

    def __init__(self, loader: Loader, length: int, samples_before: int) -> None:
        self._loader = loader
        self._length = length
        self._start_s = time.perf_counter()
        self._samples_before = samples_before
        self._reset()

    def _reset(self) -> None:
        self._since_s = time.perf_counter()
        self._wait_before_s = self._loader.wait_s
        self._samples = self._tokens = self._flops = 0

    def add(self, batch: StepBatch) -> None:
        self._samples += batch.num_samples
        self._tokens += batch.num_tokens
        self._flops += batch.flops

    def read(self, state: TrainState, loss: float, grad_norm: float, lr: float) -> StepMetrics:
        now = time.perf_counter()
        elapsed_s = now - self._since_s
        rate = (state.samples_seen - self._samples_before) / (now - self._start_s)
        metrics = StepMetrics(
            step=state.step,
            samples=state.samples_seen,
            passes=self._loader.passes(),
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            samples_per_s=self._samples / elapsed_s,
            tokens_per_s=self._tokens / elapsed_s,
            flops_per_s=self._flops / elapsed_s,
            read=self._loader.bytes_read(),
            data_wait=(self._loader.wait_s - self._wait_before_s) / elapsed_s,
            memory_gib=_memory_gib(),
            eta_s=max(0, self._length - state.samples_seen) / rate,
        )
        self._reset()
        return metrics


def _memory_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
