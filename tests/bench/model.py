"""Benchmark: the training step and the scoring of captions, against the official GenLIP code and open_clip's GenLIP.

On a CPU, or with --cuda the speed, memory and FLOP utilisation of the large presets.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import model_gpu, model_score
from tests.bench.harness import BenchError, Metric, Peer, Result, rounds
from tests.bench.model_inputs import StepSetup

VOCAB_SIZE = 32_768
LARGE_VOCAB_SIZE = 151_936
"""Of the published models."""
ROW_TOKENS = 3_968
"""Holds 15 samples and 1.3 % padding, nearly as little as the trainer's rows of 16,384."""
NUM_STEPS = 2
LOSS_TOLERANCE = 1e-3
MIB = 2**20

STEP_METRICS = (
    Metric("packed_step_samples_per_s", "samples/CPU s", "higher"),
    Metric("packed_step_peak_memory", "MiB", "lower"),
)
LOSS_METRICS = (Metric("loss_peak_memory", "MiB", "lower"),)


def run(arguments: Sequence[str]) -> list[Result]:
    """Measures the step against each peer that is pointed at, then the loss and the scoring against plain ways.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench model")
    parser.add_argument("--official", default="", metavar="FOLDER", help="checkout of YanFangCS/GenLIP")
    parser.add_argument("--open-clip", default="", metavar="FOLDER", help="checkout of mlfoundations/open_clip")
    parser.add_argument("--preset", help="default s16; with --cuda l16, so16 and g16")
    parser.add_argument("--cuda", action="store_true", help="speed, MFU and memory of a GPU instead")
    parser.add_argument("--peak-flops", type=float, help="bfloat16 FLOP/s of the GPU; known for some")
    options = parser.parse_args(arguments)
    if options.cuda:
        presets = [options.preset] if options.preset else model_gpu.PRESETS
        return model_gpu.run(presets, options.official, options.peak_flops, run_side)
    setup = StepSetup("ours", options.preset or "s16", VOCAB_SIZE, 1, ROW_TOKENS, NUM_STEPS)
    results: list[Result] = []
    peers = [("official", options.official, "--official"), ("open_clip", options.open_clip, "--open-clip")]
    for side, folder, option in peers:
        peer = _peer(setup, replace(setup, side=side, folder=folder), option)
        results += rounds("model", STEP_METRICS, partial(_measure_step, setup), peer)
    results += _compare_loss_memory(setup)
    return results + model_score.compare(setup)


def run_side(setup: StepSetup) -> dict[str, Any]:
    """One side in a fresh process; see `model_side` for the answer.

    Raises:
        BenchError: it failed.
    """
    command = [sys.executable, "-m", "tests.bench.model_side", json.dumps(asdict(setup))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{setup.side} failed, so there is nothing to compare; its last words: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def check_agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float) -> None:
    """Two sides that compute the same have the same loss and the same norm of the gradient.

    Raises:
        BenchError: they have not.
    """
    for name in ("loss", "grad_norm"):
        difference = abs(theirs[name] - ours[name]) / abs(ours[name])
        if not difference <= tolerance:
            raise BenchError(
                f"{theirs['name']}: {name} {theirs[name]} instead of {ours[name]}, so it does not compute what ours"
                " does and its speed compares with nothing; its code may have changed: adapt tests/bench"
            )


def _peer(setup: StepSetup, peer_setup: StepSetup, option: str) -> Peer:
    """The peer, checked against ours before anything is timed."""
    if not peer_setup.folder:
        return Peer(f"{peer_setup.side}: pass {option} FOLDER", None)
    ours, theirs = (run_side(replace(each, num_steps=0)) for each in (setup, peer_setup))
    check_agreement(ours, theirs, LOSS_TOLERANCE)
    agreement = ", ".join(f"{name} {ours[name]:.6f} and {theirs[name]:.6f}" for name in ("loss", "grad_norm"))
    versions = f"{theirs['versions']}, {theirs['threads']} threads, {theirs['num_samples']} samples a step"
    print(f"model, ours and {theirs['name']}: {agreement}; {versions}", file=sys.stderr, flush=True)
    return Peer(theirs["name"], partial(_measure_step, peer_setup))


def _measure_step(setup: StepSetup) -> dict[str, float]:
    answer = run_side(setup)
    return {
        "packed_step_samples_per_s": answer["num_samples"] / answer["step_s"],
        "packed_step_peak_memory": answer["peak_bytes"] / MIB,
    }


def _compare_loss_memory(setup: StepSetup) -> list[Result]:
    """Our loss against one that holds [tokens x vocabulary] logits at once."""
    chunked = replace(setup, side="loss", vocab_size=LARGE_VOCAB_SIZE, num_steps=0)
    whole = replace(chunked, side="loss_whole")
    check_agreement(run_side(chunked), run_side(whole), LOSS_TOLERANCE)

    def measure(side: StepSetup) -> dict[str, float]:
        return {"loss_peak_memory": run_side(side)["peak_bytes"] / MIB}

    return rounds("model", LOSS_METRICS, partial(measure, chunked), Peer("all logits at once", partial(measure, whole)))
