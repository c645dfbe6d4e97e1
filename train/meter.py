"""What a training loop measures between two lines of its log.

Shape legend: M samples, L labelled tokens, S sources.
"""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from model import PackedRows
from train.data.loader import Loader, StepBatch
from train.engine import Ranks
from train.metrics import StepMetrics
from train.mfu import device_name, peak_flops_per_s
from train.recipe import TrainSpec

Clock = Callable[[], float]


class PhaseTimer:
    """Seconds in the named parts of a step: `with timer("forward"): …`.

    A GPU works behind the host's back, so its parts are timed by events in its own queue; they are read, and waited
    for, only when a line is logged. The names also mark the parts in a profiler's trace.
    """

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self._on_gpu = device.type == "cuda"
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what happens inside to a part."""
        start = _record_event() if self._on_gpu else None
        began_s = self._clock()
        with torch.profiler.record_function(name):
            yield
        if start:
            self._events.append((name, start, _record_event()))
        else:
            self._add(name, self._clock() - began_s)

    def read(self) -> dict[str, float]:
        """Seconds in each part since the last call."""
        for name, start, end in self._events:
            end.synchronize()
            self._add(name, start.elapsed_time(end) / 1000)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class SourceLosses:
    """The loss of each source's samples, added up on the device."""

    def __init__(self, num_sources: int, device: torch.device) -> None:
        self.totals_S2 = torch.zeros(num_sources, 2, dtype=torch.float64, device=device)
        """Sum of the token losses and number of tokens, of each source."""

    def add(self, rows: PackedRows, token_losses_L: Tensor, sources: Sequence[int]) -> None:
        """Add a micro-batch.

        Args:
            rows: As the model had them, on the device.
            token_losses_L: Of the model's output.
            sources: Number of the source of each sample that is in `rows`, in their order.

        Raises:
            ValueError: There are more or fewer sources than samples.
        """
        if len(sources) != rows.num_samples:
            raise ValueError(f"{len(sources)} sources were named for {rows.num_samples} samples")
        if len(self.totals_S2) == 1 or not len(token_losses_L):
            return
        row_M, start_M = rows.segments_M4[:, 0], rows.segments_M4[:, 1]
        first_token_M = (row_M * rows.input_ids_BS.shape[1] + start_M).to(token_losses_L.device)
        sample_L = torch.searchsorted(first_token_M, rows.label_index_L, right=True) - 1
        source_L = torch.tensor(sources, device=token_losses_L.device)[sample_L]
        losses_L2 = torch.stack([token_losses_L.double(), torch.ones_like(token_losses_L, dtype=torch.float64)], dim=1)
        self.totals_S2.index_add_(0, source_L, losses_L2)


class Meter:
    """Turns what a loop tells it into the metrics of a logged step."""

    def __init__(
        self, loader: Loader, spec: TrainSpec, ranks: Ranks, samples_before: int, clock: Clock = time.perf_counter
    ) -> None:
        """Args:
        loader: This rank's; its counters are read.
        spec: Length, precision and `log`.
        ranks: This process's place.
        samples_before: Samples that earlier lives of the run have seen.
        clock: In seconds; tests bring their own.
        """
        self.timer = PhaseTimer(ranks.device, clock)
        self._sources = list(loader.passes())
        self._loader, self._length, self._ranks, self._clock = loader, spec.length, ranks, clock
        self._peak_flops_per_s = peak_flops_per_s(device_name(), spec.precision, spec.log.peak_tflops)
        self._start_s = clock()
        # The first step compiles, allocates and waits for the first data: it says nothing of the ones to come.
        self._warm: tuple[float, int] | None = None
        self._samples_seen = samples_before
        self._begin_line()

    def _begin_line(self) -> None:
        self._since_s = self._clock()
        self._wait_before_s = self._loader.wait_s
        self._samples = self._tokens = self._flops = 0
        self._stall_s = 0.0
        self.losses = SourceLosses(len(self._sources), self._ranks.device)

    def add(self, batch: StepBatch) -> None:
        """Count a step that was taken."""
        self._samples += batch.num_samples
        self._tokens += batch.num_tokens
        self._flops += batch.flops
        self._samples_seen += batch.num_samples
        if self._warm is None:
            self._warm = (self._clock(), self._samples_seen)

    def add_stall(self, seconds: float) -> None:
        """Count the time that the loop stood still for a checkpoint."""
        self._stall_s += seconds

    def read(self, step: int, loss: float, grad_norm: float, lr: float) -> StepMetrics:
        """The metrics since the last call. Called by every rank, because some are added up over all."""
        now_s = self._clock()
        elapsed_s = max(now_s - self._since_s, 1e-9)
        flops_per_s = self._flops / elapsed_s
        source_losses, num_bad_samples = self._over_all_ranks()
        peak = self._peak_flops_per_s and self._peak_flops_per_s * self._ranks.world_size
        metrics = StepMetrics(
            step=step,
            samples=self._samples_seen,
            passes=self._loader.passes(),
            loss=loss,
            source_losses=source_losses,
            grad_norm=grad_norm,
            lr=lr,
            samples_per_s=self._samples / elapsed_s,
            tokens_per_s=self._tokens / elapsed_s,
            flops_per_s=flops_per_s,
            mfu=flops_per_s / peak if peak else None,
            time_shares=self._time_shares(elapsed_s),
            checkpoint_stall_s=self._stall_s,
            num_bad_samples=num_bad_samples,
            read=self._loader.bytes_read(),
            memory_gib=memory_gib(),
            uptime_s=now_s - self._start_s,
            unix_s=time.time(),
            eta_s=self._eta_s(now_s),
        )
        self._begin_line()
        return metrics

    def _time_shares(self, elapsed_s: float) -> dict[str, float]:
        phases = self.timer.read()
        seconds = {"data": self._loader.wait_s - self._wait_before_s}
        seconds |= {name: phases.get(name, 0.0) for name in ("forward", "backward", "optimiser", "evaluation")}
        seconds["checkpoint"] = self._stall_s
        # On a GPU the parts may overlap: it can work while the host waits for data.
        seconds["rest"] = max(0.0, elapsed_s - sum(seconds.values()))
        return {name: one / elapsed_s for name, one in seconds.items()}

    def _eta_s(self, now_s: float) -> float:
        remaining = max(0, self._length - self._samples_seen)
        warm_s, warm_samples = self._warm or (self._start_s, self._samples_seen)
        if self._samples_seen > warm_samples:
            return remaining * (now_s - warm_s) / (self._samples_seen - warm_samples)
        return remaining * (now_s - self._start_s) / max(1, self._samples)

    def _over_all_ranks(self) -> tuple[dict[str, float], int]:
        """Loss of each source, none for one that gave no labelled token; and the number of bad samples."""
        totals = torch.cat([self.losses.totals_S2.flatten(), self.losses.totals_S2.new_zeros(1)])
        totals[-1] = self._loader.num_bad_samples
        if self._ranks.world_size > 1:
            dist.all_reduce(totals)
        *flat, num_bad_samples = totals.tolist()
        pairs = zip(self._sources, flat[::2], flat[1::2], strict=True)
        return {name: loss / tokens for name, loss, tokens in pairs if tokens}, int(num_bad_samples)


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def memory_gib() -> float:
    """The largest so far: of the device, or of the process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
