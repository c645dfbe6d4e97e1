"""Benchmark: near-duplicates of many hashes, and how well hashes know a picture again, against imagededup.

A run over the hashes is a process of its own: `python -m tests.bench.curate_dedup STORE MAX_BITS PROCESSES`.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.demo.corpus import FIXTURES
from jobs.leaving import leave
from pipeline.curate.hamming import plan_tables
from pipeline.curate.near import MAX_PARTS, NearGroups, group_near, part_of
from pipeline.curate.rows import open_rows
from pipeline.each import in_turn
from pipeline.ledger import LEDGER_SCHEMA, CommitRecord
from pipeline.pixels.images import transcode
from pipeline.pixels.phash import perceptual_hash
from pipeline.pixels.spec import ImageSpec
from pipeline.store import Store
from tests.bench.harness import BenchError, Metric, Peer, Result, rounds
from tests.bench.ingest_cost import measure_command
from tests.bench.peer_import import bare_package, missing_package

UNIT_ROWS = 10_000
PLANTED_SHARE = 0.05
"""Of the rows, near-duplicates of another one."""
ALL_SAMPLES = 8_000_000_000
LIMIT_S = 3_600.0
MIB = 1 << 20
DISTANCES = (3, 6, 10)
SUFFIXES = {1: "_in_turn", 2: ""}
"""Of the metrics, by number of processes."""

Pixels = NDArray[np.uint8]
Hashing = Callable[[Pixels], int]


def run(arguments: Sequence[str]) -> list[Result]:
    """Groups synthetic hashes with one and with two processes, then hashes changed pictures.

    Args:
        arguments: of the command line: `--rows N --max-bits N --pictures FOLDER --imagededup FOLDER`.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench curate")
    parser.add_argument("--rows", type=int, default=10_000_000, help="hashes to be grouped")
    parser.add_argument("--max-bits", type=int, default=6, help="distance of near-duplicates")
    parser.add_argument("--pictures", type=Path, default=FIXTURES / "images", help="folder of images")
    parser.add_argument("--imagededup", type=Path, help="folder that holds the package imagededup")
    options = parser.parse_args(arguments)
    return [
        *measure_speed(options.rows, options.max_bits),
        *measure_recall(options.pictures, options.imagededup),
    ]


def measure_speed(num_rows: int, max_bits: int) -> list[Result]:
    """Rows per second, CPU time and peak memory of one and of two processes. The planted pairs must be found."""
    results: list[Result] = []
    nobody = Peer("none", None)
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as work:
        store = Store(f"{work}/store")
        planted, sources = make_hashes(store, num_rows, max_bits)
        for processes, suffix in SUFFIXES.items():
            metrics = [
                Metric(f"dedup_rows_per_s{suffix}", "rows/s", "higher"),
                Metric(f"dedup_cpu_s{suffix}", "s", "lower"),
                Metric(f"dedup_peak_memory{suffix}", "MiB", "lower"),
            ]
            ours = partial(_group_once, store, num_rows, max_bits, processes, Path(work) / "log.txt")
            results += rounds("curate", metrics, ours, nobody, num_rounds=1)
        groups = group_near(open_rows(store, []), max_bits, in_turn)
        _check(groups, planted, sources)
        print(f"here: {groups.numbers()}", file=sys.stderr)
    print(f"growth: {plan_tables(ALL_SAMPLES, max_bits, MAX_PARTS).describe()}", file=sys.stderr, flush=True)
    return results


def make_hashes(store: Store, num_rows: int, max_bits: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Commits ledgers of random hashes. Returns the planted near-duplicates and what each is near to."""
    rng = np.random.default_rng(0)
    hash_N = rng.integers(0, 2**64, num_rows, dtype=np.uint64)
    num_planted = int(PLANTED_SHARE * num_rows)
    sources = hash_N[num_planted : 2 * num_planted].copy()
    planted = sources.copy()
    num_flips = rng.integers(1, max_bits + 1, num_planted)
    for number in range(max_bits):
        flip = np.left_shift(np.uint64(1), rng.integers(0, 64, num_planted, dtype=np.uint64))
        planted ^= np.where(number < num_flips, flip, np.uint64(0))
    hash_N[:num_planted] = planted
    rng.shuffle(hash_N)
    for unit, start in enumerate(range(0, num_rows, UNIT_ROWS)):
        _commit(store, f"u{unit:08d}", hash_N[start : start + UNIT_ROWS])
    return planted, sources


def _commit(store: Store, name: str, hash_N: NDArray[np.uint64]) -> None:
    digits = hash_N.astype(">u8").tobytes().hex()
    columns = {field.name: pa.nulls(len(hash_N), field.type) for field in LEDGER_SCHEMA}
    columns["status"] = pa.array(["success"] * len(hash_N))
    columns["phash"] = pa.array([digits[at : at + 16] for at in range(0, len(digits), 16)])
    record = CommitRecord(f"raw/{name}.tar", name, 0, {"success": len(hash_N)}, {})
    table = pa.table(columns, schema=LEDGER_SCHEMA.with_metadata({"genlip": json.dumps(asdict(record))}))
    store.write_table(f"ledger/{name}.parquet", table)


def _group_once(store: Store, num_rows: int, max_bits: int, processes: int, log: Path) -> dict[str, float]:
    store.remove("near")
    command = [sys.executable, "-m", __name__, store.root, str(max_bits), str(processes)]
    cost = measure_command(command, {"OMP_NUM_THREADS": "1"}, log, LIMIT_S)
    if cost.exit_code != 0:
        raise BenchError(f"the run failed; the end of its output:\n{log.read_text()[-2_000:]}")
    suffix = SUFFIXES[processes]
    return {
        f"dedup_rows_per_s{suffix}": num_rows / cost.wall_s,
        f"dedup_cpu_s{suffix}": cost.cpu_s,
        f"dedup_peak_memory{suffix}": cost.peak_bytes / MIB,
    }


def _check(groups: NearGroups, planted: NDArray[np.uint64], sources: NDArray[np.uint64]) -> None:
    """Every planted hash must have the label of its source."""
    moved = planted != sources  # of the flips, two may undo each other
    labels = [_labels(groups, hash_N) for hash_N in (planted[moved], sources[moved])]
    num_missed = int(np.count_nonzero((labels[0] != labels[1]) | (labels[0] == 0)))
    if num_missed:
        raise BenchError(f"{num_missed:,} of {len(labels[0]):,} planted near-duplicates were not found")


def _labels(groups: NearGroups, hash_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    label_N = np.zeros_like(hash_N)
    part_N = part_of(hash_N, groups.num_parts)
    for part in range(groups.num_parts):
        known_V, label_V = groups.labels(part)
        here = np.flatnonzero(part_N == part)
        place = np.minimum(np.searchsorted(known_V, hash_N[here]), len(known_V) - 1)
        label_N[here] = np.where(known_V[place] == hash_N[here], label_V[place], 0)
    return label_N


def measure_recall(pictures: Path, imagededup: Path | None) -> list[Result]:
    """Share of changed pictures within each distance of their original, and of pairs so near that are of one."""
    originals = [_read(path) for path in sorted(pictures.iterdir()) if path.is_file()]
    by_change = {"original": originals}
    by_change |= {name: [change(one) for one in originals] for name, change in CHANGES.items()}
    results = []
    metrics = [
        Metric(f"near_{name}_{bits}_bits", "of the pairs", "higher")
        for bits in DISTANCES
        for name in [f"recall_{change}" for change in CHANGES] + ["precision"]
    ]
    for peer_name, hashing in _peer_hashes(imagededup):
        peer = Peer(peer_name, partial(_shares, by_change, hashing) if hashing else None)
        results += rounds("curate", metrics, partial(_shares, by_change, perceptual_hash), peer, num_rounds=1)
    return results


def _read(path: Path) -> Pixels:
    png = transcode(path.read_bytes(), ImageSpec(resize="no", format="png")).body
    return np.asarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def _shares(by_change: Mapping[str, Sequence[Pixels]], hashing: Hashing) -> dict[str, float]:
    hash_CN = np.array([[hashing(one) for one in pixels] for pixels in by_change.values()], np.uint64)
    picture_P = np.tile(np.arange(hash_CN.shape[1]), len(hash_CN))
    bits_PP = np.bitwise_count(hash_CN.ravel()[:, None] ^ hash_CN.ravel()[None, :])
    first, second = np.triu_indices(len(picture_P), 1)
    bits, is_one_picture = bits_PP[first, second], picture_P[first] == picture_P[second]
    shares = {}
    for most in DISTANCES:
        for number, change in enumerate(CHANGES, 1):
            near = np.bitwise_count(hash_CN[0] ^ hash_CN[number]) <= most
            shares[f"near_recall_{change}_{most}_bits"] = float(near.mean())
        shares[f"near_precision_{most}_bits"] = float(is_one_picture[bits <= most].mean())
    return shares


def _encoded(pixels: Pixels, quality: int) -> Pixels:
    body = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.cvtColor(cv2.imdecode(body, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def _halved(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))


def _cropped(pixels: Pixels, share: float) -> Pixels:
    """Without this share of the width and of the height, half of it on each side."""
    top, left = (round(side * share / 2) for side in pixels.shape[:2])
    return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]


def _watermarked(pixels: Pixels) -> Pixels:
    """Text across the middle, half transparent."""
    height, width = pixels.shape[:2]
    text = pixels.copy()
    cv2.putText(text, "SAMPLE", (width // 10, height // 2), cv2.FONT_HERSHEY_DUPLEX, width / 160, (128, 128, 128), 2)
    return np.asarray(cv2.addWeighted(pixels, 0.5, text, 0.5, 0))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg_q50": partial(_encoded, quality=50),
    "half_size": _halved,
    "crop_5": partial(_cropped, share=0.05),
    "crop_10": partial(_cropped, share=0.1),
    "watermark": _watermarked,
}


def _peer_hashes(folder: Path | None) -> list[tuple[str, Hashing | None]]:
    """The peer's hashes by name; its other parts, and what these import, are left out."""
    if folder is None:
        return [("imagededup not given", None)]
    bare_package("imagededup", folder / "imagededup")
    bare_package("imagededup.utils", folder / "imagededup" / "utils")
    bare_package("imagededup.methods", folder / "imagededup" / "methods")
    missing_package("pywt")
    missing_package("sklearn.metrics.pairwise", cosine_similarity=None)
    sys.path.append(str(folder))  # for its compiled module
    from imagededup.methods.hashing import DHash, PHash

    def hashing(encoder: Any, pixels: Pixels) -> int:
        return int(encoder.encode_image(image_array=pixels), 16)

    return [(f"imagededup {one.__name__}", partial(hashing, one(verbose=False))) for one in (PHash, DHash)]


def _in_processes(
    function: Callable[[Any], Any], items: Iterable[Any], pool: ProcessPoolExecutor
) -> Iterator[tuple[Any, Any]]:
    todo = list(items)
    yield from zip(todo, pool.map(function, todo), strict=True)


def _main(root: str, max_bits: str, processes: str) -> None:
    rows = open_rows(Store(root), [])
    if processes == "1":
        group_near(rows, int(max_bits), in_turn)
        return
    with ProcessPoolExecutor(int(processes), multiprocessing.get_context("spawn")) as pool:
        group_near(rows, int(max_bits), partial(_in_processes, pool=pool))


if __name__ == "__main__":
    _main(*sys.argv[1:])
    leave(0)
