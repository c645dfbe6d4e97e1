"""Small stores made without ingestion: committed units of samples that a test writes down."""

import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipeline.annotate.unit import annotate_unit
from pipeline.curate.rows import open_rows
from pipeline.curate.select import select
from pipeline.curate.spec import CurateSpec
from pipeline.dataset_files import index_file, shard_file
from pipeline.each import in_turn
from pipeline.ledger import LEDGER_SCHEMA, CommitRecord, committed_units
from pipeline.recipe import ShardSpec
from pipeline.sharding.dataset import materialise
from pipeline.shards import Sample, ShardWriter
from pipeline.store import FORMAT_VERSION, STORE_FILE, Store


@dataclass(frozen=True)
class Stored:
    """A sample to be committed; what is left out is derived from the key."""

    key: str
    caption: str = ""
    image: bytes = b""
    url: str = ""
    phash: str | None = None
    width: int = 32
    height: int = 24
    meta: dict[str, Any] = field(default_factory=dict)


def jpeg(rgb: np.ndarray[Any, Any], quality: int = 92) -> bytes:
    """An image as a JPEG file."""
    _, body = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(body)


def noise(seed: int, width: int = 32, height: int = 24) -> bytes:
    """A JPEG with a content of its own."""
    rng = np.random.default_rng(seed)
    return jpeg(cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (width, height)))


def make_store(units: Sequence[Sequence[Stored]], root: str = "") -> Store:
    """A store, in memory by default, with these units committed; each has one failed and one rejected row besides."""
    store = Store(root or f"memory://{uuid.uuid4().hex}")
    store.write_json(STORE_FILE, {"format_version": FORMAT_VERSION, "recipe": {}})
    for number, samples in enumerate(units):
        commit_unit(store, number, samples)
    return store


def commit_unit(store: Store, number: int, samples: Sequence[Stored]) -> None:
    """Write the raw tar and the ledger of one unit."""
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    rows: list[dict[str, Any]] = [{"key": "f" * 20, "status": "failed", "error_message": "http_404"}]
    for sample in samples:
        image = sample.image or noise(int(hashlib.sha256(sample.key.encode()).hexdigest()[:8], 16))
        caption = sample.caption or f"the picture {sample.key}"
        sha256 = hashlib.sha256(image).hexdigest()
        offset, size = writer.add(Sample(sample.key, image, caption, sample.meta | {"sha256": sha256}))
        rows.append(
            {
                "key": sample.key,
                "url": sample.url or f"http://example.org/{sample.key}.jpg",
                "caption": caption,
                "status": "success",
                "error_message": "",
                "width": sample.width,
                "height": sample.height,
                "original_width": 2 * sample.width,
                "original_height": 2 * sample.height,
                "sha256": sha256,
                "phash": sample.phash or sha256[:16],
                "offset": offset,
                "size": size,
            }
        )
    rows.append({"key": "e" * 20, "status": "rejected", "error_message": "caption_empty"})
    num_bytes, sha256 = writer.close()
    raw = f"raw/u{number:08d}-{sha256[:8]}.tar"
    store.write(raw, stream.getvalue())
    reasons = {"success": len(samples), "failed:http_404": 1, "rejected:caption_empty": 1}
    record = CommitRecord(raw, sha256, num_bytes, reasons, {})
    ledger = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
    store.write_table(
        f"ledger/u{number:08d}.parquet", ledger.replace_schema_metadata({"genlip": json.dumps(asdict(record))})
    )


def shard_rows(store: Store, dataset: str) -> list[dict[str, Any]]:
    """What each shard of a dataset has committed: its row of the index, and the lists of its samples."""
    num_shards = store.read_table(index_file(dataset)).num_rows
    return [store.read_table(shard_file(dataset, number)).to_pylist()[0] for number in range(num_shards)]


def curate_in_turn(store: Store, curate: CurateSpec, shards: ShardSpec, seed: int) -> None:
    """From committed units to training shards as `genlip curate` makes them, in a loop."""
    annotators = curate.build_annotators()
    for unit in committed_units(store):
        annotate_unit(unit, store, annotators, curate.max_errors)
    rows = open_rows(store, annotators)
    select(rows, curate.select, shards.holdout, shards.name, seed, in_turn, shards.holdout_near_bits)
    materialise(rows, shards.name, shards, seed, in_turn)
