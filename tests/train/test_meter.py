"""What the loop measures, by clocks that the tests turn, and on real rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from groups import forks
from hypothesis import given, settings
from hypothesis import strategies as st

from model import EncodedSample, GenLIP, GenLIPConfig, PackedRows, pack_rows
from train.data.loader import Loader, StepBatch
from train.engine import Ranks
from train.meter import Meter, PhaseTimer, SourceLosses
from train.recipe import LogSpec, OptimSpec, TrainSpec

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SPEC = TrainSpec(length=1_000, optim=OptimSpec(warmup=0), precision="fp32", log=LogSpec(peak_tflops=1e-9))


@dataclass
class Clock:
    """Seconds that a test moves on."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Reads:
    """The counters of a loader."""

    names: tuple[str, ...] = ("web",)
    wait_s: float = 0.0
    num_bad_samples: int = 0

    def passes(self) -> dict[str, float]:
        return dict.fromkeys(self.names, 0.5)

    def bytes_read(self) -> dict[str, dict[str, int]]:
        return {}


def batch(num_samples: int) -> StepBatch:
    """A step as the meter sees it."""
    fields = {"num_samples": num_samples, "num_tokens": 10 * num_samples, "flops": 100 * num_samples}
    return cast(StepBatch, type("Batch", (), fields)())


def make_meter(reads: Reads, clock: Clock, samples_before: int = 0, ranks: Ranks = ALONE) -> Meter:
    return Meter(cast(Loader, reads), SPEC, ranks, samples_before, clock)


def test_rates_and_shares_are_of_the_time_since_the_line_before() -> None:
    clock, reads = Clock(), Reads()
    meter = make_meter(reads, clock)
    for _ in range(2):
        clock.now_s += 1  # waits for data
        reads.wait_s += 1
        for phase, seconds in (("forward", 2), ("backward", 4), ("optimiser", 1)):
            with meter.timer(phase):
                clock.now_s += seconds
        meter.add(batch(40))
        meter.add_stall(1)
        clock.now_s += 2  # one of them the checkpoint's
        metrics = meter.read(1, 2.0, 0.5, 1e-3)
        assert metrics.samples_per_s == pytest.approx(4)
        assert metrics.tokens_per_s == pytest.approx(40)
        assert metrics.flops_per_s == pytest.approx(400)
        assert metrics.mfu == pytest.approx(400 / 1e3)
        expected = {"data": 0.1, "forward": 0.2, "backward": 0.4, "optimiser": 0.1, "checkpoint": 0.1, "rest": 0.1}
        expected["evaluation"] = 0.0
        assert metrics.time_shares == pytest.approx(expected)
        assert metrics.checkpoint_stall_s == 1
    assert metrics.samples == 80
    assert metrics.uptime_s == pytest.approx(20)


def test_the_remaining_time_is_by_the_rate_of_this_life_after_its_first_step() -> None:
    clock = Clock()
    meter = make_meter(Reads(), clock, samples_before=500)
    clock.now_s += 60  # starts up and compiles
    meter.add(batch(100))
    assert meter.read(1, 2.0, 0.5, 1e-3).eta_s == pytest.approx(400 * 60 / 100)  # nothing better is known yet
    for _ in range(2):
        clock.now_s += 5
        meter.add(batch(50))
    assert meter.read(3, 2.0, 0.5, 1e-3).eta_s == pytest.approx(300 / 10)


def test_a_run_at_its_end_has_no_time_remaining() -> None:
    clock = Clock()
    meter = make_meter(Reads(), clock, samples_before=990)
    clock.now_s += 1
    meter.add(batch(20))
    assert meter.read(1, 2.0, 0.5, 1e-3).eta_s == 0


def test_parts_add_up_until_they_are_read() -> None:
    clock = Clock()
    timer = PhaseTimer(CPU, clock)
    for _ in range(3):
        with timer("forward"):
            clock.now_s += 2
    assert timer.read() == {"forward": 6}
    assert timer.read() == {}


CONFIG = GenLIPConfig.preset("nano8", vocab_size=32, num_hidden_layers=1)


def sample(seed: int) -> EncodedSample:
    rng = np.random.default_rng(seed)
    caption = tuple(rng.integers(3, 32, rng.integers(0, 5)).tolist())
    return EncodedSample(rng.integers(0, 256, (4, 3, 8, 8), np.uint8), (2, 2), (1, 2), caption)


def pack(rows: list[list[int]]) -> PackedRows:
    return pack_rows([[sample(seed) for seed in row] for row in rows], 40)


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 50), max_size=3), min_size=1, max_size=3), st.data())
def test_the_loss_of_a_source_is_that_of_its_samples_alone(rows: list[list[int]], data: st.DataObject) -> None:
    model = GenLIP(CONFIG).eval()
    seeds = [seed for row in rows for seed in row]
    sources = data.draw(st.lists(st.integers(0, 2), min_size=len(seeds), max_size=len(seeds)))
    losses = SourceLosses(3, CPU)
    with torch.no_grad():
        packed = pack(rows)
        losses.add(packed, model(packed).token_losses_L, sources)
        for source in range(3):
            own = model(pack([[], *([seed] for seed, of in zip(seeds, sources, strict=True) if of == source)]))
            loss_sum, num_tokens = losses.totals_S2[source].tolist()
            assert num_tokens == int(own.num_labels)
            assert loss_sum == pytest.approx(float(own.loss_sum), rel=1e-4, abs=1e-4)


def test_sources_that_do_not_fit_the_samples_are_refused() -> None:
    rows = pack([[1, 2], [3]])
    with pytest.raises(ValueError, match="2 sources were named for 3 samples"):
        SourceLosses(2, CPU).add(rows, torch.zeros(rows.num_labels), [0, 1])


def test_one_source_has_no_losses_of_its_own() -> None:
    meter = make_meter(Reads(), Clock())
    rows = pack([[1, 2], [3]])
    meter.losses.add(rows, torch.ones(rows.num_labels), [0, 0, 0])
    meter.add(batch(3))
    assert meter.read(1, 2.0, 0.5, 1e-3).source_losses == {}


def test_losses_and_bad_samples_are_those_of_all_processes(tmp_path: Path) -> None:
    """The first rank reads only from `web`, the second also from `books`; nobody reads `rare`."""
    with forks.Pool(2) as pool:
        results = pool.starmap(_measure, [(rank, f"file://{tmp_path}/group") for rank in range(2)])
    for source_losses, num_bad_samples in results:
        assert source_losses == pytest.approx({"web": (1.0 * 8 + 2.0 * 4) / 12, "books": 2.0})
        assert num_bad_samples == 3


def _measure(rank: int, init_method: str) -> tuple[dict[str, float], int]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method, rank=rank, world_size=2)
    meter = make_meter(Reads(("web", "books", "rare"), num_bad_samples=rank + 1), Clock(), ranks=Ranks(rank, 2, CPU))
    four = EncodedSample(np.zeros((4, 3, 8, 8), np.uint8), (2, 2), (1,), (3, 4, 5, 6))
    rows = pack_rows([[four, four]], 40)
    meter.losses.add(rows, torch.full((8,), rank + 1.0), [0, rank])
    meter.add(batch(4))
    metrics = meter.read(1, 2.0, 0.5, 1e-3)
    dist.destroy_process_group()
    return metrics.source_losses, metrics.num_bad_samples
