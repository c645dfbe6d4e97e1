"""The training log: its file, its line, its arithmetic."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from train.metrics import METRICS, LogTail, StepMetrics, forget_after, iter_metrics, log_metrics, read_metrics, render
from train.mfu import mfu_lines, peak_flops_per_s

LINE = StepMetrics(
    step=1_234,
    samples=3_000,
    passes={"web": 1.5},
    loss=2.25,
    source_losses={},
    grad_norm=0.5,
    lr=1e-3,
    samples_per_s=1_500.0,
    tokens_per_s=400_000.0,
    flops_per_s=2e12,
    mfu=None,
    time_shares={"data": 0.01, "forward": 0.3, "backward": 0.6, "optimiser": 0.05, "checkpoint": 0.0, "rest": 0.04},
    checkpoint_stall_s=0.0,
    num_bad_samples=0,
    read={},
    memory_gib=1.25,
    uptime_s=10.0,
    unix_s=1.7e9,
    eta_s=93_784.0,
)


def test_a_log_that_a_kill_cut_short_is_read_and_gone_on_with(tmp_path: Path) -> None:
    for step in range(1, 6):
        log_metrics(tmp_path, replace(LINE, step=step))
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[:-30])
    assert [entry["step"] for entry in iter_metrics(tmp_path)] == [1, 2, 3, 4]
    forget_after(tmp_path, 2)
    log_metrics(tmp_path, replace(LINE, step=3))
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]
    assert StepMetrics(**read_metrics(tmp_path)[-1]) == replace(LINE, step=3)


def test_a_run_without_a_log_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    forget_after(tmp_path, 0)
    assert read_metrics(tmp_path) == []


def test_the_tail_hands_out_each_step_once_over_cut_lines_and_resumes(tmp_path: Path) -> None:
    tail = LogTail(tmp_path)
    assert tail.read() == []
    for step in (1, 2):
        log_metrics(tmp_path, replace(LINE, step=step))
    path = tmp_path / METRICS
    half = (json.dumps(asdict(replace(LINE, step=3))) + "\n").encode()
    with path.open("ab") as stream:
        stream.write(half[:50])
    assert [entry["step"] for entry in tail.read()] == [1, 2]
    with path.open("ab") as stream:
        stream.write(half[50:])
    assert [entry["step"] for entry in tail.read()] == [3]
    forget_after(tmp_path, 1)
    for step in (2, 3, 4):
        log_metrics(tmp_path, replace(LINE, step=step))
    assert [entry["step"] for entry in tail.read()] == [4]
    assert tail.read() == []


def test_the_line_says_what_a_person_looks_for() -> None:
    line = render(LINE, 6_000)
    parts = [
        "step 1,234",
        "samples 3,000/6,000 (50.0%)",
        "loss 2.2500",
        "gnorm 0.50",
        "lr 1.00e-03",
        "1,500.0 samples/s",
        "2.000 TFLOP/s",
        "data-wait 1.0%",
        "mem 1.25 GiB",
        "eta 1d02h",
    ]
    places = [line.index(part) for part in parts]
    assert places == sorted(places)
    assert "MFU" not in line
    assert "bad samples" not in line
    assert "checkpoint" not in line


def test_the_line_says_more_where_there_is_more() -> None:
    line = render(
        replace(LINE, source_losses={"web": 2.5, "books": 2.0}, mfu=0.512, num_bad_samples=7, checkpoint_stall_s=3.25),
        6_000,
    )
    assert "loss 2.2500 (web 2.5000, books 2.0000)" in line
    assert "MFU 51.2%" in line
    assert "TFLOP/s" not in line
    assert "bad samples 7" in line
    assert "checkpoint 3.2 s" in line


@pytest.mark.parametrize(("eta_s", "words"), [(9.4, "9s"), (185, "3m05s"), (7_620, "2h07m"), (223_200, "2d14h")])
def test_the_remaining_time_is_short_to_read(eta_s: float, words: str) -> None:
    assert render(replace(LINE, eta_s=eta_s), 6_000).endswith(f"eta {words}")


def test_every_number_of_the_line_is_json() -> None:
    assert json.loads(json.dumps(asdict(LINE))) == asdict(LINE)


@pytest.mark.parametrize(
    ("device", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA B200", "bf16", 2250),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_data_sheet(device: str, precision: str, tflops: float) -> None:
    assert peak_flops_per_s(device, precision, 0) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "fp32"), ("NVIDIA B200", "fp32"), ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "bf16")]
)
def test_no_utilisation_is_claimed_without_a_known_peak(device: str, precision: str) -> None:
    assert peak_flops_per_s(device, precision, 0) is None
    (line,) = mfu_lines(1e12, 8, device, precision, 0)
    assert "none is claimed" in line
    assert peak_flops_per_s(device, precision, 100) == 1e14


def test_the_arithmetic_of_utilisation_adds_up() -> None:
    lines = " ".join(mfu_lines(500e9, 8, "NVIDIA H200", "bf16", 0))
    assert "500.00 GFLOP a sample" in lines
    assert "8 devices × 989.5 TFLOP/s" in lines
    assert "15,832 samples/s" in lines  # 8 × 989.5e12 ÷ 500e9
