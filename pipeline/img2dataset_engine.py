"""`fetch: {engine: img2dataset}`: a unit's rows through img2dataset's own downloader and resizer, in a child process.

For those who need its exact pixels and outcomes. Commit protocol, ledger and filters stay ours. Its weaknesses stay
its own: no check of addresses, no robots.txt, no total deadline for a download. The unit as a whole gets a deadline.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from pipeline.inputs.messages import reason_of_message
from pipeline.inputs.units import Row
from pipeline.pixels.images import ImageError, StoredImage, transcode
from pipeline.pixels.spec import ImageSpec
from pipeline.web.fetcher import NodeUnavailable
from pipeline.web.spec import FetchSpec

_CHILD = "import json, sys, img2dataset; img2dataset.download(**json.load(sys.stdin))"
_START_UP_S = 120.0
_HEADERS_OBEYED = ("noai", "noimageai", "noindex", "noimageindex")
"""What img2dataset knows; the others of the recipe are not obeyed by this engine."""


def download(rows: Sequence[Row], fetch: FetchSpec, image: ImageSpec) -> list[StoredImage | ImageError]:
    """What img2dataset makes of each row, in their order.

    Raises:
        UserError: img2dataset is not installed, or failed as a whole.
        NodeUnavailable: It did not end; the unit stays pending.
    """
    with tempfile.TemporaryDirectory(prefix="genlip-img2dataset-") as folder:
        table = Path(folder) / "rows.parquet"
        boxes = [[list(box) for box in row.boxes] for row in rows]
        columns = {"url": [row.url for row in rows], "position": list(range(len(rows)))}
        box_column = {"boxes": pa.array(boxes, pa.list_(pa.list_(pa.float64())))} if any(boxes) else {}
        pq.write_table(pa.table(columns | box_column), table)
        out = Path(folder) / "out"
        settings = _settings(table, out, len(rows), fetch, image) | ({"bbox_col": "boxes"} if box_column else {})
        _run_child(settings, _deadline_s(len(rows), fetch))
        return _read(out, len(rows), image)


def _settings(table: Path, out: Path, num_rows: int, fetch: FetchSpec, image: ImageSpec) -> dict[str, Any]:
    """The recipe in img2dataset's words."""
    return {
        "url_list": str(table),
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": ["position"],
        "output_folder": str(out),
        "output_format": "webdataset",
        "number_sample_per_shard": num_rows,
        "processes_count": 1,
        "thread_count": fetch.in_flight,
        "timeout": fetch.timeout_s,
        "retries": fetch.retries,
        "image_size": image.size_px,
        "resize_mode": image.resize,
        "resize_only_if_bigger": image.only_if_bigger,
        "encode_format": image.format,
        "encode_quality": image.quality if image.format != "png" else 9,
        "min_image_size": image.min_side_px,
        "max_aspect_ratio": image.max_aspect,
        "max_image_area": image.max_pixels,
        "extract_exif": False,
        "compute_hash": "sha256",
        "user_agent_token": fetch.user_agent.split("/")[0].split(" ")[0],
        "disallowed_header_directives": [word for word in fetch.obey if word in _HEADERS_OBEYED],
        "enable_wandb": False,
    }


def _deadline_s(num_rows: int, fetch: FetchSpec) -> float:
    """Every row at its slowest by its own settings, and the start of its processes."""
    rounds = -(-num_rows // fetch.in_flight)
    return _START_UP_S + rounds * fetch.timeout_s * (fetch.retries + 1)


def _run_child(settings: dict[str, Any], deadline_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(json.dumps(settings).encode(), timeout=deadline_s)
    except subprocess.TimeoutExpired:
        raise NodeUnavailable(f"img2dataset did not end within {deadline_s:.0f} s and was killed") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        words = output.decode(errors="replace").strip().splitlines() or ["no output"]
        raise UserError(
            "img2dataset failed",
            where="ingest.fetch.engine",
            why=words[-1],
            next_step="pip install 'genlip[peers]', or use the engine genlip",
            exit_code=EXIT_ENVIRONMENT,
        )


def _read(out: Path, num_rows: int, image: ImageSpec) -> list[StoredImage | ImageError]:
    """Its tar and its table, by position. A row that it lost counts as failed."""
    results: list[StoredImage | ImageError] = [ImageError("adopted_lost") for _ in range(num_rows)]
    # Its bytes are looked at once more, for what it does not say, and are kept as they are.
    as_is = image.model_copy(update={"resize": "no", "reencode": "if_changed", "min_side_px": 0, "max_aspect": 1e9})
    for table_path in sorted(out.glob("*.parquet")):
        with tarfile.open(table_path.with_suffix(".tar")) as tar:
            bodies = {Path(member.name).stem: tar.extractfile(member) for member in tar if _is_image(member.name)}
            for record in pq.read_table(table_path).to_pylist():
                stream = bodies.get(record["key"])
                if record["status"] != "success" or stream is None:
                    results[record["position"]] = ImageError(reason_of_message(record["error_message"] or ""))
                else:
                    results[record["position"]] = _stored(stream.read(), record, as_is)
    return results


def _is_image(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("jpg", "png", "webp")


def _stored(body: bytes, record: dict[str, Any], as_is: ImageSpec) -> StoredImage | ImageError:
    try:
        found = transcode(body, as_is)
    except ImageError as error:
        return error
    original = {"original_width": record["original_width"], "original_height": record["original_height"]}
    return replace(found, sha256=record["sha256"], **original)
