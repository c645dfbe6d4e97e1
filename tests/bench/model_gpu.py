"""Tokens per second, FLOP utilisation and peak memory of the large presets on a GPU."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from model import flops_per_sample
from tests.bench.harness import BenchError, Metric, Peer, Result, rounds
from tests.bench.model_inputs import StepSetup, make_rows

PRESETS = ("l16", "so16", "g16")
ATTENTIONS = ("varlen", "flex")
VOCAB_SIZE = 151_936
NUM_ROWS, ROW_TOKENS = 16, 16_384
NUM_STEPS = 5
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12}
"""Dense bfloat16 FLOP/s of the SXM boards, by a part of torch's name of the device."""
GIB = 2**30

RunSide = Callable[[StepSetup], dict[str, Any]]


def run(presets: Sequence[str], official: str, peak_flops: float | None, run_side: RunSide) -> list[Result]:
    """Every preset with each back end, with and without activation checkpointing, in bfloat16.

    Args:
        presets: names of architectures.
        official: folder of the official code, or nothing.
        peak_flops: of the GPU; looked up by its name where None.
        run_side: runs one side in a process of its own.

    Raises:
        BenchError: no GPU, or one whose peak is unknown.
    """
    if not torch.cuda.is_available():
        raise BenchError("--cuda needs an NVIDIA GPU and a torch build for it; leave it out to measure the CPU")
    peak = peak_flops or find_peak_flops(torch.cuda.get_device_name())
    results: list[Result] = []
    for preset in presets:
        ours = StepSetup("ours", preset, VOCAB_SIZE, NUM_ROWS, ROW_TOKENS, NUM_STEPS, "", "cuda", "bfloat16")
        for setup in variants(ours, ATTENTIONS):
            results += measure(setup, official, peak, run_side)
    return results


def find_peak_flops(device_name: str) -> float:
    """Peak of a known GPU."""
    for part, flops in PEAK_FLOPS.items():
        if part in device_name:
            return flops
    raise BenchError(f"the peak of {device_name} is not known; pass its dense bfloat16 FLOP/s with --peak-flops")


def variants(setup: StepSetup, attentions: Sequence[str]) -> Iterator[StepSetup]:
    """Each back end, with and without activation checkpointing."""
    for attention in attentions:
        for is_checkpointed in (False, True):
            yield replace(setup, attention=attention, gradient_checkpointing=is_checkpointed)


def count_step(setup: StepSetup) -> tuple[int, int]:
    """(tokens, FLOPs) of one step's samples: padding and recomputation do not count, as is usual for MFU."""
    samples = [sample for row in make_rows(setup) for sample in row]
    num_texts = [len(sample.prompt_ids) + len(sample.caption_ids) for sample in samples]
    flops = [
        flops_per_sample(setup.config, len(sample.patches), num_text, len(sample.caption_ids))
        for sample, num_text in zip(samples, num_texts, strict=True)
    ]
    return sum(sample.num_tokens for sample in samples), sum(flops)


def measure(setup: StepSetup, official: str, peak_flops: float, run_side: RunSide) -> list[Result]:
    """Three results of one variant; none where it does not fit the GPU's memory."""
    num_tokens, num_flops = count_step(setup)
    variant = f"{setup.preset}_{setup.attention}" + ("_checkpointed" if setup.gradient_checkpointing else "")
    metrics = [
        Metric(f"{variant}_tokens_per_s", "tokens/s", "higher"),
        Metric(f"{variant}_mfu", "of peak", "higher"),
        Metric(f"{variant}_peak_memory", "GiB", "lower"),
    ]

    def run_once(side: StepSetup) -> dict[str, float]:
        answer = run_side(side)
        if "out_of_memory" in answer:
            raise BenchError(answer["out_of_memory"])
        step_s = answer["step_s"]
        mfu = num_flops / step_s / peak_flops
        print(
            f"model {variant}, {answer['name']}: loss {answer['loss']:.4f};"
            f" mfu = {num_flops:.4g} FLOP / {step_s:.4g} s / {peak_flops:.4g} FLOP/s = {mfu:.3f}",
            file=sys.stderr,
            flush=True,
        )
        return dict(zip((m.name for m in metrics), (num_tokens / step_s, mfu, answer["peak_bytes"] / GIB), strict=True))

    try:
        ours = run_once(setup)
    except BenchError as error:
        print(f"model {variant}: no result, {error}", file=sys.stderr, flush=True)
        return []
    peer = Peer("official: pass --official FOLDER", None)
    if official:
        peer = _official(lambda: run_once(replace(setup, side="official", folder=official)))
    return rounds("model", metrics, lambda: ours, peer, num_rounds=1)


def _official(run_once: Callable[[], dict[str, float]]) -> Peer:
    """Its figures, or why there are none."""
    try:
        figures = run_once()
    except BenchError as error:
        return Peer(f"official GenLIP failed: {str(error).strip().splitlines()[-1][:200]}", None)
    return Peer("official GenLIP", lambda: figures)
