"""The plan's numbers against each other, and what is refused before anything starts."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from train.checkpoints import Checkpoints, TrainState
from train.data.loader import Loader
from train.engine import Ranks
from train.loop import Trainer
from train.metrics import METRICS
from train.plan import plan_lines
from train.setup import check_world_size, set_up, world_sizes


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_arithmetic_is_right(make_run: Callable[..., Path]) -> None:
    setup = set_up(make_run("train.length=5000"))
    lines = "\n".join(plan_lines(setup, world_size=2))
    passes = re.search(r"demo: ([\d,]+) samples in (\d+) shards; 5,000 samples ÷ ([\d,]+) = ([\d.]+) passes", lines)
    assert passes
    assert number(passes[1]) == number(passes[3]) == setup.sources[0].dataset.num_samples
    assert number(passes[4]) == pytest.approx(5000 / number(passes[1]), abs=0.01)
    rows = re.search(r"([\d,]+) samples × ([\d.]+) tokens ÷ ([\d,]+) rows of 160 tokens: ([\d.]+)% full", lines)
    assert rows
    samples, mean, num_rows, fill = map(number, rows.groups())
    assert samples * mean / (num_rows * 160) == pytest.approx(fill / 100, rel=2e-3)  # the mean is rounded
    assert fill > 90
    steps = re.search(r"length +5,000 samples ÷ ([\d.]+) ≈ ([\d,]+) steps", lines)
    assert steps
    assert number(steps[1]) == pytest.approx(2 * samples / num_rows, abs=0.05)
    assert number(steps[2]) == pytest.approx(5000 / number(steps[1]), rel=0.02)
    assert "2 lanes = 2 processes × 1 rows × 1 accumulated" in lines


def test_the_plan_says_how_good_the_shuffle_is_and_how_large_the_state(make_run: Callable[..., Path]) -> None:
    lines = "\n".join(plan_lines(set_up(make_run()), world_size=1))
    order = re.search(r"blocks of 32 shards; ([\d.]+) different shards in 64 samples, ([\d.]+)% of neighbours", lines)
    assert order
    num_shards = set_up(make_run()).sources[0].dataset.num_shards
    assert num_shards - 1 < number(order[1]) <= num_shards
    assert number(order[2]) == pytest.approx(100 / num_shards, abs=8)
    state = re.search(r"state +(\d+) bytes", lines)
    assert state
    assert number(state[1]) < 300


def test_fewer_processes_are_allowed_where_they_divide_the_lanes(make_run: Callable[..., Path]) -> None:
    setup = set_up(make_run("train.lanes=12"))
    assert world_sizes(setup, largest=6, smallest=2) == [6, 4, 3, 2]
    assert world_sizes(setup, largest=6, smallest=0) == [6]
    with pytest.raises(UserError, match=r"next: +use one of these numbers of processes: 1, 2, 3, 4, 6, 12"):
        world_sizes(setup, largest=6, smallest=5)
    lines = "\n".join(plan_lines(setup, world_size=6, min_world_size=3))
    assert "elastic    the same 12 lanes as 4 × 1 × 3 or 3 × 1 × 4 when nodes are lost" in lines
    assert "elastic" not in "\n".join(plan_lines(setup, world_size=6))


def test_a_contrastive_run_cannot_go_on_with_fewer_processes(make_run: Callable[..., Path]) -> None:
    setup = set_up(make_run("objective=clip"))
    with pytest.raises(UserError, match=r"run\.min_workers"):
        world_sizes(setup, largest=2, smallest=1)


def test_lanes_that_cannot_be_dealt_are_refused_with_the_numbers_that_can() -> None:
    check_world_size(lanes=12, micro_rows=2, world_size=3)
    with pytest.raises(UserError, match=r"next: +use one of these numbers of processes: 1, 2, 3, 6"):
        check_world_size(lanes=12, micro_rows=2, world_size=4)


def test_a_sample_longer_than_a_row_is_refused(make_run: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"a sample has \d+ tokens, a row 24(.|\n)*train.row_tokens; .*shard-\d+.tar key \w+"
    ):
        set_up(make_run("train.row_tokens=24"))


def test_the_step_before_is_named(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run()
    (run_dir / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="genlip tokenizer RECIPE"):
        set_up(run_dir)
    with pytest.raises(UserError, match="genlip train RECIPE"):
        set_up(tmp_path)


def test_a_checkpoint_whose_stream_state_was_not_loaded_is_an_error(make_run: Callable[..., Path]) -> None:
    run_dir = make_run()
    setup = set_up(run_dir)
    loader = Loader(setup, run_dir)
    state = TrainState(step=3, samples_seen=24, stream=loader.state_dict() | {"step": 3, "row": 6})
    spec, ranks = setup.job.train, Ranks(0, 1, torch.device("cpu"))
    checkpoints = Checkpoints(run_dir, spec.checkpoint, ranks)
    with pytest.raises(RuntimeError, match="stream state was not loaded"):
        Trainer(
            engine=None,
            loader=loader,
            checkpoints=checkpoints,
            spec=spec,
            ranks=ranks,
            run_dir=run_dir,
            seed=0,
            on_log=lambda metrics: None,
        ).fit(state)


def cost_of(make_run: Callable[..., Path], *overrides: str, world_size: int = 1, run_dir: Path | None = None) -> str:
    name = f"name=run-{hashlib.sha256(repr(overrides).encode()).hexdigest()[:8]}"  # other overrides, other run
    return "\n".join(plan_lines(set_up(make_run(*overrides, name)), world_size, run_dir))


def test_memory_is_a_sum_that_is_compared_with_the_device(make_run: Callable[..., Path]) -> None:
    parts = re.search(r"memory +(.+) = ([\d.]+) GiB a device", cost_of(make_run, "train.micro_rows=2"))
    assert parts
    assert sum(float(part.split()[1]) for part in parts[1].split(" + ")) == pytest.approx(float(parts[2]), abs=0.05)
    big = ("model.preset=l16", "model.image_px=224", "train.row_tokens=16384", "train.precision=bf16")
    assert re.search(r"1.1 × [\d.]+ of 80.0 GiB: fits", cost_of(make_run, *big, "train.devices.memory_gib=80"))
    assert "the dry run will refuse" not in cost_of(make_run, *big)


def test_what_does_not_fit_is_said_with_settings_that_need_less(make_run: Callable[..., Path]) -> None:
    big = ("model.preset=l16", "model.image_px=224", "train.row_tokens=16384", "train.precision=bf16")
    lines = cost_of(make_run, *big, "train.devices.memory_gib=16")
    refused = re.search(r"1.1 × ([\d.]+) of 16.0 GiB: DOES NOT FIT, the dry run will refuse it; try (.+)", lines)
    assert refused
    ways = dict(re.findall(r"train\.([\w.]+=\w+) \(([\d.]+) GiB\)", refused[2]))
    assert {"gradient_checkpointing=selective", "gradient_checkpointing=full"} <= ways.keys()
    assert all(number(gib) < number(refused[1]) for gib in ways.values())
    other = cost_of(make_run, *big, "train.gradient_checkpointing=full")
    assert f"= {ways['gradient_checkpointing=full']} GiB a device" in other


def test_traffic_and_efficiency_are_for_the_numbers_of_devices_that_divide_the_lanes(
    make_run: Callable[..., Path],
) -> None:
    lines = cost_of(make_run, "train.lanes=64", "train.zero.stage=2", world_size=16)
    traffic = re.search(r"traffic +15/16 × \(4 × 2 × 4 B \+ 4 B\) × ([\d,]+) parameters = ([\d.]+) GB", lines)
    assert traffic
    assert number(traffic[2]) == pytest.approx(15 / 16 * 36 * number(traffic[1]) / 1e9, abs=0.01)
    shown = re.findall(r"between nodes of 8, devices: (.+)", lines)
    assert len(shown) == 2
    for line in shown:
        assert [int(one.split(":")[0]) for one in line.split(", ")] == [8, 16, 32, 64]
    own = cost_of(make_run, "train.lanes=64", "train.devices.network_gbit_per_s=25")
    assert len(re.findall(r"a network of 25 Gb/s a node between", own)) == 1
    assert "scaling" not in cost_of(make_run)  # of two lanes there are no eight parts


def test_hours_follow_the_assumed_speed_until_a_run_has_measured_it(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    pattern = r"hours +([\d.e+]+) FLOP ÷ \((.+)\) = ([\d,.]+) device-hours"
    known = ("train.length=1B samples", "train.log.peak_tflops=100")
    assumed = re.search(pattern, cost_of(make_run, *known, "train.devices.mfu=0.3"))
    assert assumed
    assert "100.0 TFLOP/s × MFU 30%, assumed" in assumed[2]
    assert number(assumed[3]) == pytest.approx(float(assumed[1]) / 30e12 / 3600, rel=0.01)
    (tmp_path / METRICS).write_text("".join(json.dumps({"mfu": mfu}) + "\n" for mfu in (0.01, 0.5, 0.6, 0.7)))
    measured = re.search(pattern, cost_of(make_run, *known, run_dir=tmp_path))
    assert measured
    assert "MFU 60.0%, the median of 3 lines of metrics.jsonl" in measured[2]
    assert number(measured[3]) == pytest.approx(number(assumed[3]) / 2, rel=0.01)
    # A measured share of a peak that is not known says nothing.
    unknown = re.search(pattern, cost_of(make_run, "train.length=1B samples", run_dir=tmp_path))
    assert unknown
    assert "H100, assumed" in unknown[2]
