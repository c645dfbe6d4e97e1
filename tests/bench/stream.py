"""Benchmark: from shards to training batches, ours against four loaders and against the floor. No model runs.

Every number is of a fresh process. The sides take turns; the least of the rounds counts, because whatever else the
machine does only adds CPU time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import NUM_ROUNDS, BenchError, Result
from tests.bench.stream_store import LongIndex, make_long_index, make_run, repeated

PEERS = {
    "webdataset": "webdataset",
    "mds": "mosaicml-streaming",
    "litdata": "litdata",
    "energon": "megatron-energon",
}
"""A module of stream_peers/ (NAME_side.py), and what pip calls it."""
MODES = {"usual": 2, "fast": 1}
"""How a peer encodes, and how many workers it has."""
RESUMING = ("webdataset", "mds", "litdata")
SHARES = (0.0, 0.5, 0.99)
NUM_IMAGES = 3_072
MIN_IMAGES = 2_560
"""What a run takes from a pass, with what is worked ahead."""
BATCH_SAMPLES = 64
THREADS = (1, 2)
MEMORY_THREADS = 4
"""The recipe's default."""
REPEATED_SHARDS, TIMES = 24, 20
LONG_INDEX = LongIndex(num_shards=800_000, shard_samples=10_000)
GROWTH = {
    "mds": (1_000_000, 4_000_000, 16_000_000),
    "litdata": (4_000_000_000, 8_000_000_000),
    "litdata-elastic": (500_000, 1_000_000, 2_000_000),
}
"""Samples of the passes that a peer plans: what it does in seconds."""
LIMIT_S = 300.0
PARTS = ("cost", "resume", "plan")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    folder: Path
    run_dir: Path
    peers_python: str | None
    num_images: int
    num_rounds: int

    @property
    def tars(self) -> Path:
        return self.folder / "store" / "shards" / "photos"

    @property
    def tokenizer(self) -> Path:
        return self.run_dir / "tokenizer"

    def ours(self, *arguments: str) -> Values:
        """One run of our side."""
        return run_module(sys.executable, "tests.bench.stream_ours", *arguments)

    def peer(self, name: str, *arguments: str) -> Values:
        """One run of a peer's."""
        assert self.peers_python is not None
        return run_module(self.peers_python, f"tests.bench.stream_peers.{name}", *arguments)

    def best(self, sides: Mapping[str, partial[Values]], metric: str) -> dict[str, Values]:
        """The sides in turn, round after round: of each the run with the least of a metric."""
        runs: dict[str, list[Values]] = {side: [] for side in sides}
        for number in range(1, self.num_rounds + 1):
            for side, measure in sides.items():
                runs[side].append(measure())
                print(f"stream round {number}, {side}: {dict(runs[side][-1])}", file=sys.stderr, flush=True)
        return {side: min(values, key=lambda one: float(one[metric])) for side, values in runs.items()}


def run(arguments: Sequence[str]) -> list[Result]:
    """Makes the data sets and measures the parts that are wanted.

    Args:
        arguments: of the command line, see the README.
    """
    options = _options(arguments)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as work:
        folder = Path(work)
        bench = Bench(folder, make_run(folder, options.images), options.peers_python, options.images, options.rounds)
        if bench.peers_python:
            _convert(bench)
        if "cost" in options.only:
            results += _cost(bench) + _memory(bench)
        if "resume" in options.only:
            results += _resume(bench)
        if "plan" in options.only:
            results += _plan(bench)
    return results


def run_module(python: str, module: str, *arguments: str) -> Values:
    """What a module prints in its last line: JSON.

    Raises:
        BenchError: it fails, with the end of its output.
    """
    command = [python, "-W", "ignore", "-m", module, *arguments]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{module} {' '.join(arguments)} did not end within {LIMIT_S:.0f} s") from error
    if done.returncode:
        raise BenchError(f"{module} {' '.join(arguments)} failed; its output ends with: {done.stderr[-2000:]}")
    values: Values = json.loads(done.stdout.splitlines()[-1])
    return values


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench stream")
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="in a pass")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="of which the best counts")
    parser.add_argument("--peers-python", help="the interpreter that has tests/bench/stream_peers.txt installed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the parts wanted")
    options = parser.parse_args(arguments)
    if options.images < MIN_IMAGES:
        parser.error(f"--images {options.images}: a run reads {MIN_IMAGES} of a pass")
    return options


def _convert(bench: Bench) -> None:
    """Our samples in the formats of the peers, and a Hugging Face tokenizer for them."""
    bench.peer("bpe", str(bench.tars), str(bench.tokenizer / "tokenizer.json"))
    for name in PEERS:
        bench.peer(f"{name}_side", "convert", str(bench.tars), str(bench.folder / name))


def _read(bench: Bench, name: str, mode: str) -> partial[Values]:
    folder, tokenizer, workers = str(bench.folder / name), str(bench.tokenizer), str(MODES[mode])
    arguments = ("read", folder, "--tokenizer", tokenizer, "--mode", mode, "--workers", workers)
    return partial(bench.peer, f"{name}_side", *arguments)


def _cost(bench: Bench) -> list[Result]:
    """CPU time of a sample: ours, the floor's, and the peers' in both modes."""
    floor_python = bench.peers_python or sys.executable
    floor = (str(bench.tars), "--tokenizer", str(bench.tokenizer))
    sides = {"floor": partial(run_module, floor_python, "tests.bench.stream_peers.floor", *floor)}
    for threads in THREADS:
        sides[f"ours {threads}"] = partial(bench.ours, "read", str(bench.run_dir), "--threads", str(threads))
    if bench.peers_python:
        sides |= {f"{name} {mode}": _read(bench, name, mode) for mode in MODES for name in PEERS}
    best = bench.best(sides, "cpu_us")
    cpu_us = {side: float(values["cpu_us"]) for side, values in best.items()}
    ours_us = cpu_us["ours 1"]
    ratio = ours_us / cpu_us["floor"]
    results = [Result("stream", "floor_ratio", ratio, "x", f"floor of {best['floor']['version']}", 1.0, 1 / ratio)]
    results.append(_speeds(f"floor of {best['floor']['version']}", ours_us, cpu_us["floor"]))
    results.append(_speeds("ours with two threads", ours_us, cpu_us["ours 2"]))
    for mode, workers in MODES.items():
        for name, distribution in PEERS.items():
            found = best.get(f"{name} {mode}")
            side = f"{distribution} {found['version'] if found else 'not installed'}, {mode}, {workers} workers"
            results.append(_speeds(side, ours_us, cpu_us.get(f"{name} {mode}")))
    return results


def _speeds(peer: str, ours_us: float, peer_us: float | None) -> Result:
    ratio = peer_us / ours_us if peer_us else None
    return Result("stream", "samples_per_cpu_s", 1e6 / ours_us, "1/s", peer, 1e6 / peer_us if peer_us else None, ratio)


def _memory(bench: Bench) -> list[Result]:
    """What a rank's loader holds, above what its imports do; of the peers the workers as well."""
    sides = {"ours": partial(bench.ours, "memory", str(bench.run_dir), "--threads", str(MEMORY_THREADS))}
    if bench.peers_python:
        sides |= {name: _read(bench, name, "usual") for name in PEERS}
    once = Bench(bench.folder, bench.run_dir, bench.peers_python, bench.num_images, 1)
    found = once.best(sides, "memory_mb")
    ours = float(found["ours"]["memory_mb"])
    results = [Result("stream", "process_memory_mb", float(found["ours"]["total_mb"]), "MiB", "none", None, None)]
    for name, distribution in PEERS.items():
        peer = f"{distribution} {found[name]['version'] if name in found else 'not installed'}, usual, 2 workers"
        theirs = float(found[name]["memory_mb"]) if name in found else None
        ratio = theirs / ours if theirs else None
        results.append(Result("stream", "loader_memory_mb", ours, "MiB", peer, theirs, ratio))
    return results


def _resume(bench: Bench) -> list[Result]:
    """Time to the first row, and to the peers' first batch, in a fresh process behind its imports."""
    job_file = bench.folder / "again.json"
    job_file.write_text(repeated(bench.run_dir, REPEATED_SHARDS, TIMES).model_dump_json())
    results = []
    for share in SHARES:
        run_dir, after = str(bench.run_dir), int(share * bench.num_images) // BATCH_SAMPLES * BATCH_SAMPLES
        first = ("first", run_dir, "--job", str(job_file), "--share", str(share), "--threads", str(MEMORY_THREADS))
        sides = {"ours": partial(bench.ours, *first)}
        if bench.peers_python:
            for name in RESUMING:
                arguments = ("resume", str(bench.folder / name), "--tokenizer", str(bench.tokenizer))
                sides[name] = partial(bench.peer, f"{name}_side", *arguments, "--after", str(after))
        found = bench.best(sides, "first_s")
        ours = float(found["ours"]["first_s"])
        for name in RESUMING:
            version = found[name]["version"] if name in found else "not installed"
            theirs = float(found[name]["first_s"]) if name in found else None
            ratio = theirs / ours if theirs else None
            results.append(
                Result("stream", f"resume_s_{share:.0%}", ours, "s", f"{PEERS[name]} {version}", theirs, ratio)
            )
    return results


def _plan(bench: Bench) -> list[Result]:
    """Opening and seeking in a pass of eight billion samples, and what the peers' plans grow to."""
    job_file = bench.folder / "long.json"
    job = make_long_index(bench.run_dir, bench.folder / "long", LONG_INDEX, SHARES)
    job_file.write_text(job.model_dump_json())
    seek = partial(bench.ours, "seek", str(bench.run_dir), "--job", str(job_file))
    ours = bench.best({"ours": seek}, "plan_s")["ours"]
    results = [Result("stream", "plan_8e9_state_bytes", float(ours["state_bytes"]), "B", "none", None, None)]
    for name, sizes in GROWTH.items() if bench.peers_python else ():
        runs = [bench.peer("growth", name, str(size)) for size in sizes]
        print(f"stream growth, {name}: {dict(zip(sizes, runs, strict=True))}", file=sys.stderr, flush=True)
        peer = f"{name} {runs[0]['version']}, from {', '.join(f'{size / 1e6:g}M' for size in sizes)}"
        for metric, unit, key in (("plan_8e9_s", "s", "plan_s"), ("plan_8e9_memory_mb", "MiB", "memory_mb")):
            theirs = extrapolate(sizes, [float(one[key]) for one in runs], LONG_INDEX.num_samples)
            value = float(ours[key])
            results.append(Result("stream", metric, value, unit, peer, theirs, theirs / value))
    if not bench.peers_python:
        for metric, unit, key in (("plan_8e9_s", "s", "plan_s"), ("plan_8e9_memory_mb", "MiB", "memory_mb")):
            results.append(Result("stream", metric, float(ours[key]), unit, "not installed", None, None))
    return results


def extrapolate(sizes: Sequence[int], values: Sequence[float], size: int) -> float:
    """The value at a size, on the line through the first and the last point."""
    slope = (values[-1] - values[0]) / (sizes[-1] - sizes[0])
    return values[-1] + slope * (size - sizes[-1])
