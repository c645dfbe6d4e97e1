"""Benchmark: training end to end from the store, against loops around open_clip's and the official model; on a CPU."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

from tests.bench.harness import BenchError, Metric, Peer, Result, rounds
from tests.bench.trainer_inputs import TrainerSetup, make_bench_run, set_train
from train.data.stream import Position
from train.setup import set_up

BENCH = "trainer"
MAX_VOCAB_SIZE = 32_768
ROW_TOKENS = 3_968
"""As in the model benchmark."""
COMPILED_WARMUP = 4
"""The second step, with another number of samples, compiles again."""
NUM_SLOWEST = 3
PRODUCTS = ("matrix products", "attention")

SPEED = Metric("train_samples_per_cpu_s", "samples/CPU s", "higher")
OVERHEAD = Metric("deepspeed_step", "CPU s", "lower")


def run(arguments: Sequence[str]) -> list[Result]:
    """Trains with each side in turn, then takes one step of ours apart.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench trainer")
    parser.add_argument("--official", default="", metavar="FOLDER", help="checkout of YanFangCS/GenLIP")
    parser.add_argument("--open-clip", default="", metavar="FOLDER", help="checkout of mlfoundations/open_clip")
    parser.add_argument("--preset", default="s16")
    parser.add_argument("--steps", type=int, default=3, help="timed in each round, after one to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="every side by torch.compile")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as work:
        run_dir, vocab_size = make_bench_run(Path(work), options.preset, MAX_VOCAB_SIZE, ROW_TOKENS)
        ours = TrainerSetup("ours", options.preset, vocab_size, 1, ROW_TOKENS, options.steps, run_dir=str(run_dir))
        if options.compile:
            set_train(run_dir, compile=True)
            ours = replace(ours, num_warmup=COMPILED_WARMUP, compile=True)
        results: list[Result] = []
        data_waits: list[float] = []
        for side, folder in (("open_clip", options.open_clip), ("official", options.official)):
            peer = make_peer(replace(ours, side=side, folder=folder))
            results += rounds(BENCH, [SPEED], partial(measure, ours, data_waits), peer, options.rounds)
        wait = max(data_waits)
        answer = run_module("trainer_engine", ours)
        bounds = [bound(answer, result) for result in results if result.peer_value]
        results.append(Result(BENCH, "data_wait", wait, "of the time, largest", "", None, None))
        return results + bounds + take_apart(answer)


def make_peer(setup: TrainerSetup) -> Peer:
    """The peer, without a measurement where its code is not pointed at."""
    if not setup.folder:
        return Peer(f"{setup.side}: pass --{setup.side.replace('_', '-')} FOLDER", None)
    return Peer(setup.side, partial(measure, setup, []))


def measure(setup: TrainerSetup, data_waits: list[float]) -> dict[str, float]:
    """One run in a fresh process; ours in a fresh run folder, which it would otherwise resume.

    Args:
        setup: Of the side.
        data_waits: Gets the share of its time in which ours waited for data.
    """
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as folder:
        run_dir = copytree(setup.run_dir, Path(folder) / "run")
        set_train(run_dir, length=_samples_of(setup))
        answer = run_module("trainer_side", replace(setup, run_dir=str(run_dir)))
    shares = ", ".join(f"{name} {share:.1%}" for name, share in answer["shares"].items())
    print(
        f"{BENCH}, {answer['name']}: {answer['samples_per_step']:.1f} samples a step,"
        f" {answer['samples_per_s']:.3g} samples/s of wall time; {shares or 'one loop'}; {answer['versions']}",
        file=sys.stderr,
        flush=True,
    )
    if setup.side == "ours":
        data_waits.append(answer["shares"]["data"])
    return {SPEED.name: answer["samples_per_cpu_s"]}


def _samples_of(setup: TrainerSetup) -> int:
    """Samples of the steps that are timed and those before: of a row, no fewer than it holds at the longest."""
    stream, at, seen = set_up(Path(setup.run_dir)).stream, Position(), 0
    for _ in range(setup.num_steps + setup.num_warmup):
        step = stream.step(at)
        seen, at = seen + step.totals.num_samples, step.after
    return seen


def bound(answer: Mapping[str, Any], measured: Result) -> Result:
    """What our speed would be if nothing but matrix products and attention, which a peer has too, took time."""
    share = sum(answer["parts"][part] for part in PRODUCTS)
    speed = answer["num_samples"] / (answer["engine"] * share)
    peer_speed = measured.peer_value or 0.0
    return Result(BENCH, "bound_by_products", speed, SPEED.unit, measured.peer, peer_speed, speed / peer_speed)


def take_apart(answer: Mapping[str, Any]) -> list[Result]:
    """DeepSpeed's overhead, and the slowest parts of a step with their shares."""
    engine, plain = answer["engine"], answer["plain"]
    parts: Mapping[str, float] = answer["parts"]
    slowest = list(parts.items())[:NUM_SLOWEST]
    return [
        Result(BENCH, OVERHEAD.name, engine, OVERHEAD.unit, "a plain PyTorch loop", plain, plain / engine),
        *(
            Result(BENCH, f"part_{name.replace(' ', '_')}", share, "of a step", "", None, None)
            for name, share in slowest
        ),
    ]


def run_module(module: str, setup: TrainerSetup) -> dict[str, Any]:
    """One side in a fresh process.

    Raises:
        BenchError: it failed.
    """
    command = [sys.executable, "-m", f"tests.bench.{module}", json.dumps(asdict(setup))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{setup.side} failed, so there is nothing to compare; its last words: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
