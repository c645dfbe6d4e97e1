"""The training loop, for every stage and objective: it knows the loss sum of a micro-batch and the plan's counts."""

import logging
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from train.checkpoints import Checkpoints, TrainState
from train.data.loader import Loader, StepBatch
from train.engine import Ranks
from train.evaluation.during import HeldoutEvaluation
from train.faults import HangWatch, SpikeGuard, StopRequest, check_refusals, record_refusal
from train.meter import Meter, PhaseTimer
from train.metrics import StepMetrics
from train.profiler import ProfileWindow
from train.recipe import TrainSpec
from train.sanity import GradientCheck
from train.schedule import learning_rate

OnLog = Callable[[StepMetrics], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What came of a step; the same on all ranks."""

    loss: float
    """Of the global batch, per labelled token or per sample, as the objective counts it."""
    grad_norm: float
    """Before clipping; infinite or NaN where the loss or a gradient is not finite."""
    is_applied: bool
    """False: the step was refused, and neither weights nor moments have changed."""
    asks_to_stop: bool
    """Whether any rank was asked to stop."""


def train_step(
    engine: Any,
    batch: StepBatch,
    lr: float,
    ranks: Ranks,
    seed: int,
    meter: Meter | None = None,
    max_loss: float = math.inf,
    stop: bool = False,
) -> StepResult:
    """One optimiser step on one global batch.

    The loss is the sum of the losses of the global batch over its number of labelled tokens or, where the objective
    counts so, of samples, whatever the number of ranks and micro-batches. DropPath draws from (seed, lane), so it is
    the same too on any number of ranks, and nothing random is state.

    A step is refused where the loss is not finite or above `max_loss`, or the gradient norm is not finite. The first
    two become the third: the last micro-batch's loss is scaled by NaN, on the device, and the engine discards the
    gradients of a step whose norm is not finite. So all ranks agree, and none waits for its device before the step.

    Args:
        engine: From `build_engine`.
        batch: This rank's part. Its micro-batches are taken once, each dropped before the next.
        lr: Of this step.
        ranks: This process's place.
        seed: Of DropPath in this step.
        meter: Times the parts of the step, and adds up the losses of the sources.
        max_loss: A larger loss is refused.
        stop: Whether this process was asked to stop.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    # DeepSpeed averages over ranks and micro-batches; this turns its average back into the sum.
    divisor = batch.num_labels if engine.module.loss_per == "label" else batch.num_samples
    scale = torch.full((), ranks.world_size * batch.num_micro_batches / divisor, device=ranks.device)
    sums_2 = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # of the losses, and of requests to stop
    sums_2[1] += stop
    timer = meter.timer if meter else PhaseTimer(ranks.device)
    micro_batches = iter(batch.micro_batches)
    for number in range(batch.num_micro_batches):
        rows = next(micro_batches).to(ranks.device)
        torch.manual_seed(seed * 65_537 + batch.first_lane + number * len(rows.input_ids_BS))
        with timer("forward"):
            output = engine(rows)
            sums_2[0] += output.loss_sum.detach()
            if meter and output.token_losses_L is not None:
                meter.losses.add(rows, output.token_losses_L, batch.sources[number])
            if number == batch.num_micro_batches - 1:
                dist.all_reduce(sums_2)
                is_good = sums_2[0].isfinite() & (sums_2[0] <= max_loss * divisor)
                scale = torch.where(is_good, scale, math.nan)
        with timer("backward"):
            engine.backward(output.loss_sum * scale)
        del rows, output
        with timer("optimiser"):
            engine.step()
    loss_sum, num_stops = sums_2.tolist()
    norm = float(engine.get_global_grad_norm())
    return StepResult(loss_sum / divisor, norm, engine.was_step_applied(), num_stops > 0)


class Trainer:
    """Trains one rank's part of a run."""

    def __init__(
        self,
        engine: Any,
        loader: Loader,
        checkpoints: Checkpoints,
        spec: TrainSpec,
        ranks: Ranks,
        run_dir: Path,
        seed: int,
        on_log: OnLog,
        evaluation: HeldoutEvaluation | None = None,
        is_preempted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args:
        engine: From `build_engine`.
        loader: This rank's data.
        checkpoints: Where the state is saved, on the way and at the end.
        spec: Schedule, batch, faults.
        ranks: This process's place.
        run_dir: Where faults are written down.
        seed: Of DropPath.
        on_log: Called with each logged step, on every rank.
        evaluation: Measures on the way, where the recipe says so.
        is_preempted: Whether the launcher knows that this process will be taken away; all ranks stop then.
        """
        self._engine, self._loader, self._checkpoints, self._spec = engine, loader, checkpoints, spec
        self._ranks, self._run_dir, self._seed, self._on_log = ranks, run_dir, seed, on_log
        self._evaluation, self._is_preempted = evaluation, is_preempted

    def fit(self, state: TrainState) -> TrainState:
        """Train until `length` samples are seen, or until a rank is asked to stop; either way a checkpoint is there.

        Args:
            state: Where to begin; engine and loader stand there.

        Returns:
            The state at the end, with fewer samples than `length` where the run was asked to stop.

        Raises:
            RuntimeError: The loader stands elsewhere than the state.
            UserError: Too many steps were refused, a parameter gets no gradient, or checkpoints cannot be saved.
        """
        if state.step and self._loader.state_dict() != state.stream:
            raise RuntimeError("the checkpoint's stream state was not loaded into the loader")
        spec, ranks = self._spec, self._ranks
        guard = SpikeGuard(spec.faults.spike, state.recent_losses)
        meter = Meter(self._loader, spec, ranks, state.samples_seen)
        window = ProfileWindow(self._run_dir, spec.profile, ranks)
        watch = HangWatch(self._run_dir, ranks.rank, spec.faults.hang_s)
        request = StopRequest(self._run_dir, ranks, self._is_preempted)
        with request as stop, watch, closing(iter(self._loader)) as steps:
            is_last = state.samples_seen >= spec.length
            while not is_last:
                with window.step(state.step + 1):
                    batch = next(steps)
                    lr = learning_rate(state.samples_seen, spec.length, spec.optim)
                    result = self._step(batch, lr, state.step, meter, guard.max_loss, bool(stop))
                before, state = state, self._after(state, batch, result, guard)
                is_last = result.asks_to_stop or state.samples_seen >= spec.length
                meter.add(batch)
                if is_last or (state.step % spec.log_every == 0 and result.is_applied):
                    self._on_log(meter.read(state.step, result.loss, result.grad_norm, lr))
                watch.progress()
                if self._evaluation and self._evaluation.is_due(before, state):
                    with meter.timer("evaluation"):
                        self._evaluation(self._engine, state)
                    watch.progress()
                if is_last or _passed(spec.checkpoint.every, before, state):
                    meter.add_stall(self._checkpoints.save(self._engine, state))
                    watch.progress()
            watch.pause()
            self._checkpoints.wait(is_last=True)
        return state

    def _step(
        self, batch: StepBatch, lr: float, steps_before: int, meter: Meter, max_loss: float, stop: bool
    ) -> StepResult:
        seed = self._seed * 1_000_003 + steps_before
        if steps_before:
            return train_step(self._engine, batch, lr, self._ranks, seed, meter, max_loss, stop)
        with GradientCheck(self._engine.module, self._ranks) as check:
            result = train_step(self._engine, batch, lr, self._ranks, seed, meter, max_loss, stop)
        check.verify()
        return result

    def _after(self, state: TrainState, batch: StepBatch, result: StepResult, guard: SpikeGuard) -> TrainState:
        """The state after a step. The samples of a refused one count as seen: the stream goes on behind them."""
        refused_steps = state.refused_steps
        if result.is_applied:
            guard.add(result.loss)
        else:
            refused_steps += 1
            self._refuse(batch, result, guard.max_loss, refused_steps)
        return TrainState(
            step=state.step + 1,
            samples_seen=state.samples_seen + batch.num_samples,
            flops=state.flops + batch.flops,
            stream=self._loader.state_dict(),
            refused_steps=refused_steps,
            recent_losses=guard.recent,
        )

    def _refuse(self, batch: StepBatch, result: StepResult, max_loss: float, refused_steps: int) -> None:
        """Write down a step that was not taken, and rewind if the recipe says so."""
        faults = self._spec.faults
        is_spike = max_loss < result.loss < math.inf
        if is_spike:
            reason = f"its loss of {result.loss:.4g} was a spike, above {max_loss:.4g}"
        elif math.isfinite(result.loss):
            reason = f"its gradient norm was {result.grad_norm}"
        else:
            reason = f"its loss was {result.loss}"
        record_refusal(self._run_dir, self._ranks, batch, reason)
        if self._ranks.is_first:
            _log.warning("step %d was refused: %s", batch.step, reason)
        check_refusals(refused_steps, faults, self._run_dir, reason)
        if is_spike and faults.spike.action == "rewind":
            # Clock and stream go on, so the audit sees a run like any other; and a run that is killed behind the spike
            # resumes from the same checkpoint, comes to the same spike and does the same.
            self._checkpoints.wait()
            self._checkpoints.restore(self._engine)


def _passed(every: int, before: TrainState, after: TrainState) -> bool:
    """Whether a multiple of so many samples was passed."""
    return after.samples_seen // every > before.samples_seen // every
