"""Benchmark: from stored samples to shuffled training shards, ours against webdataset's reader, buffer and writer.

The usual script shuffles the order of the tars and then within a buffer; it neither mixes everything with everything,
nor decodes an image, nor writes an index and hashes. Each run is a process of its own, which counts its CPU time from
the end of its imports.

`python -m tests.bench.curate_materialise SIDE STORE` is one such run.
"""

import argparse
import importlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from jobs.capacity.photos import make_photos
from jobs.leaving import leave
from pipeline.curate.rows import open_rows
from pipeline.each import in_turn
from pipeline.recipe import ShardSpec
from pipeline.sharding.dataset import materialise
from pipeline.sharding.write import Check
from pipeline.store import Store
from tests.bench.harness import BenchError, Metric, Result, find_peer, rounds
from tests.pipeline.sharding.selections import key_of, write_selection
from tests.stores import Stored, make_store

NAME = "bench"
NUM_PHOTOS = 1_000
"""Distinct ones; the samples go through them again and again, under keys of their own."""
SIDE_PX = (256, 384)
UNIT_SAMPLES = 1_000
SHARD_SAMPLES = 1_000
SHUFFLE_SAMPLES = 1_000
"""In the peer's buffer."""
CHECKED, COPIED, PEER, CHECKED_PEER = "decode", "none", "webdataset", "webdataset-decode"
"""Sides: ours with and without the check of every image, the peer's usual script, and that with Pillow's check."""
METRIC = Metric("materialise_mb_per_cpu_s", "MB/CPU-s", "higher")


class CheckedSpec(ShardSpec):
    """Also where the recipe's section has no such field."""

    check: Check = "decode"


def run(arguments: Sequence[str]) -> list[Result]:
    """Makes the shards of one store by turns.

    Args:
        arguments: of the command line, see the README.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench curate")
    parser.add_argument("--samples", type=int, default=8_000, help="in the store")
    num_samples: int = parser.parse_args(arguments).samples
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as work:
        store = _make_store(Path(work), num_samples)
        measure = partial(_measure, store, num_samples)
        results = []
        for side, peer_side, said in (
            (CHECKED, PEER, ", which decodes nothing"),
            (CHECKED, CHECKED_PEER, " with Pillow's check"),
            (COPIED, PEER, ""),
        ):
            metric = METRIC if side == CHECKED else replace(METRIC, name=f"{METRIC.name}_unchecked")
            peer = find_peer("webdataset", partial(measure, metric, peer_side))
            named = replace(peer, name=f"{peer.name}{said}")
            results += rounds("curate", [metric], partial(measure, metric, side), named)
    return results


def _make_store(folder: Path, num_samples: int) -> Store:
    captions = make_photos(folder, min(NUM_PHOTOS, num_samples), SIDE_PX)
    photos = []
    for number, caption in enumerate(captions):
        path = folder / "images" / f"{number:06d}.jpg"
        with Image.open(path) as image:
            photos.append((caption, path.read_bytes(), *image.size))

    def sample(number: int) -> Stored:
        caption, body, width, height = photos[number % len(photos)]
        return Stored(key_of(number), caption, body, width=width, height=height)

    numbers = range(num_samples)
    units = [numbers[start : start + UNIT_SAMPLES] for start in range(0, num_samples, UNIT_SAMPLES)]
    store = make_store([[sample(number) for number in unit] for unit in units], str(folder / "store"))
    write_selection(store, NAME)
    return store


def _measure(store: Store, num_samples: int, metric: Metric, side: str) -> dict[str, float]:
    """Megabytes of samples per second of CPU of one run."""
    store.remove("shards")
    command = [sys.executable, "-m", "tests.bench.curate_materialise", side, store.root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{side} ended with code {done.returncode}: {done.stderr[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    if said["num_samples"] != num_samples:
        raise BenchError(f"{side} wrote {said['num_samples']} of {num_samples} samples")
    num_bytes = sum(path.stat().st_size for path in Path(store.root, "raw").iterdir())
    return {metric.name: num_bytes / 1e6 / said["cpu_s"]}


def main(side: str, root: str) -> None:
    """One run; its last line of output is how much it wrote and what that took."""
    is_ours = side in (CHECKED, COPIED)
    importlib.import_module("pyarrow.dataset" if is_ours else "webdataset")  # before the clock starts
    work = partial(_materialise, side) if is_ours else partial(_reshard, side == CHECKED_PEER)
    began = time.process_time()
    num_samples = work(Store(root))
    print(json.dumps({"num_samples": num_samples, "cpu_s": time.process_time() - began}))


def _materialise(check: str, store: Store) -> int:
    spec = CheckedSpec.model_validate({"name": NAME, "shard_samples": SHARD_SAMPLES, "check": check})
    return materialise(open_rows(store, []), NAME, spec, 0, in_turn).num_samples


def _reshard(checked: bool, store: Store) -> int:
    import webdataset as wds  # here, because its absence is reported and is no error

    tars = [store.path(f"raw/{name}") for name in store.names("raw", ".tar")]
    out = Path(store.root, "shards", NAME)
    out.mkdir(parents=True)
    samples = wds.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(SHUFFLE_SAMPLES)
    if checked:
        samples = samples.map(_decoded, handler=wds.warn_and_continue)
    num_samples = 0
    with wds.ShardWriter(str(out / "shard-%06d.tar"), maxcount=SHARD_SAMPLES, verbose=0) as sink:
        for sample in samples:
            sink.write(sample)
            num_samples += 1
    return num_samples


def _decoded(sample: dict[str, bytes]) -> dict[str, bytes]:
    with Image.open(io.BytesIO(sample["jpg"])) as image:
        image.load()
    return sample


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
