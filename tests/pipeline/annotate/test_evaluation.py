"""Stored samples that show an evaluation image are found, with the set, the image and the distance."""

import logging
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.annotate.annotator import build_annotator
from pipeline.annotate.columns import address, read_annotations, read_stored
from pipeline.annotate.evaluation import SAME_FILE, EvaluationOverlap, read_evaluation_image
from pipeline.annotate.unit import annotate_unit
from pipeline.curate.spec import CurateSpec
from pipeline.errors import UserError
from pipeline.pixels.images import transcode
from pipeline.pixels.phash import hash_distance
from pipeline.pixels.spec import ImageSpec
from pipeline.store import Store
from tests.stores import Stored, jpeg, make_store


def _picture(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(cv2.resize(cells, (96, 72), interpolation=cv2.INTER_CUBIC))


def _png(rgb: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1])


def _phash(body: bytes) -> str:
    return transcode(body, ImageSpec()).phash


def _flip(phash: str, num_bits: int) -> str:
    return f"{int(phash, 16) ^ ((1 << num_bits) - 1):016x}"


def _folder(root: Path, images: dict[str, bytes]) -> str:
    for name, body in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return str(root)


def _annotate(samples: list[Stored], sets: dict[str, str], near_bits: int = 6) -> list[dict[str, Any]]:
    store = make_store([samples])
    one = EvaluationOverlap(sets=sets, near_bits=near_bits)
    annotate_unit("u00000000", store, [one], 0.0)
    found = read_annotations(store, address(one), read_stored(store, "u00000000"))
    assert found.errors == {}
    rows: list[dict[str, Any]] = found.columns.to_pylist()
    return rows


def _hit(set_name: str | None, image: str | None, bits: int | None) -> dict[str, Any]:
    return {"eval_set": set_name, "eval_image": image, "eval_bits": bits}


def test_same_files_near_and_other_pictures(tmp_path: Path) -> None:
    first, second = jpeg(_picture(1)), _png(_picture(2))
    url = _folder(tmp_path / "val", {"a/1.JPG": first, "b.png": second, "labels.txt": b"1"})
    assert hash_distance(_phash(first), _phash(second)) > 12
    samples = [
        Stored("same", image=first, phash="f" * 16),  # its stored pixels may be others: the file decides
        Stored("equal", image=b"x", phash=_phash(second)),
        Stored("near", image=b"x", phash=_flip(_phash(second), 6)),
        Stored("far", image=b"x", phash=_flip(_phash(second), 7)),
        Stored("again", image=jpeg(_picture(1), 60), phash=_phash(jpeg(_picture(1), 60))),
    ]
    *rows, again = _annotate(samples, {"val": url})
    assert rows == [
        _hit("val", "a/1.JPG", SAME_FILE),
        _hit("val", "b.png", 0),
        _hit("val", "b.png", 6),
        _hit(None, None, None),
    ]
    assert again["eval_image"] == "a/1.JPG"
    assert again["eval_bits"] >= 0


def test_the_nearest_of_several_sets_and_stores(tmp_path: Path) -> None:
    body = jpeg(_picture(3))
    url = _folder(tmp_path / "val", {"3.jpg": body})
    held = make_store(
        [
            [Stored("k0", image=jpeg(_picture(4)), phash="0" * 16)],
            [Stored("k1", image=jpeg(_picture(5)), phash="0" * 15 + "7"), Stored("k2", phash=_flip(_phash(body), 1))],
        ],
        str(tmp_path / "held"),
    )
    samples = [
        Stored("a", image=b"x", phash="0" * 15 + "3"),
        Stored("b", image=b"x", phash="0" * 15 + "1"),
        Stored("c", image=b"x", phash=_flip(_phash(body), 2)),
        Stored("d", image=jpeg(_picture(5)), phash="0" * 16),
    ]
    rows = _annotate(samples, {"val": url, "held": held.root}, near_bits=3)
    assert rows == [
        _hit("held", "u00000001/k1", 1),
        _hit("held", "u00000000/k0", 1),
        _hit("held", "u00000001/k2", 1),
        _hit("held", "u00000001/k1", SAME_FILE),
    ]
    for row, expected in ((0, 5), (1, 4)):
        assert read_evaluation_image(held.root, rows[row]["eval_image"]) == jpeg(_picture(expected))


def test_a_url_of_another_file_system() -> None:
    base = f"memory://{uuid.uuid4().hex}/val"
    body = _png(_picture(6))
    with fsspec.open(f"{base}/deep/6.png", "wb") as stream:
        stream.write(body)
    rows = _annotate([Stored("a", image=b"x", phash=_phash(body))], {"val": base})
    assert rows == [_hit("val", "deep/6.png", 0)]
    assert read_evaluation_image(base, "deep/6.png") == body


def test_rows_without_a_perceptual_hash_are_compared_by_their_file(tmp_path: Path) -> None:
    body = jpeg(_picture(7))
    one = EvaluationOverlap(sets={"val": _folder(tmp_path, {"7.jpg": body})})
    store = make_store([[Stored("a", image=body), Stored("b", image=b"x")]])
    ledger = store.read_table("ledger/u00000000.parquet")
    at = ledger.schema.get_field_index("phash")
    nulls = pa.nulls(ledger.num_rows, pa.string())
    store.write_table("ledger/u00000000.parquet", ledger.set_column(at, ledger.schema.field(at), nulls))
    annotate_unit("u00000000", store, [one], 0.0)
    rows = read_annotations(store, address(one), read_stored(store, "u00000000")).columns.to_pylist()
    assert rows == [_hit("val", "7.jpg", SAME_FILE), _hit(None, None, None)]


def test_unreadable_images_are_told_and_a_set_without_any_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = jpeg(_picture(8))
    url = _folder(tmp_path / "some", {"good.jpg": body, "bad.jpg": body[:40], "worse.png": b"no image"})
    with caplog.at_level(logging.WARNING):
        rows = _annotate([Stored("a", image=b"x", phash=_phash(body))], {"val": url})
    assert rows == [_hit("val", "good.jpg", 0)]
    assert "2 unreadable images, as bad.jpg" in caplog.text
    for name, images in (("bad", {"bad.jpg": b"no image"}), ("text", {"readme.txt": b""}), ("none", {})):
        with pytest.raises(UserError, match="'val' has no readable image"):
            _annotate([Stored("a")], {"val": _folder(tmp_path / name, images)})
    with pytest.raises(UserError, match="'val' has no readable image"):
        _annotate([Stored("a")], {"val": make_store([]).root})


def test_an_image_that_is_gone_is_told(tmp_path: Path) -> None:
    store = make_store([[Stored("a")]])
    for url, name in ((str(tmp_path), "1.jpg"), (store.root, "u00000000/b"), (store.root, "u00000009/a")):
        with pytest.raises(UserError, match="no image"):
            read_evaluation_image(url, name)


_ADDRESS = """
import sys
from pipeline.annotate.columns import address
from pipeline.annotate.evaluation import EvaluationOverlap
print(address(EvaluationOverlap(sets={"val": sys.argv[1]}, near_bits=int(sys.argv[2]))))
"""


def _address(url: str, near_bits: int = 6) -> str:
    # The sets are looked at once in a process, so another look is another process.
    command = [sys.executable, "-c", _ADDRESS, url, str(near_bits)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_address_is_of_what_the_sets_hold(tmp_path: Path) -> None:
    url = _folder(tmp_path, {"1.jpg": jpeg(_picture(1)), "notes.txt": b""})
    first = _address(url)
    _folder(tmp_path, {"notes.txt": b"more"})
    assert _address(url) == first
    assert _address(url, 5) != first
    _folder(tmp_path, {"2.jpg": jpeg(_picture(2))})
    assert _address(url) != first


def test_the_address_is_of_a_stores_units() -> None:
    one, other = (make_store([[Stored(key)]]) for key in "ab")
    same = Store(f"memory://{uuid.uuid4().hex}")
    for name in ("store.json", "ledger/u00000000.parquet"):
        same.write(name, one.read(name))
    first, second, third = (EvaluationOverlap(sets={"val": store.root}).state() for store in (one, other, same))
    assert first != second
    assert first == third


def test_a_recipe_with_evaluation_sets_has_the_annotator(tmp_path: Path) -> None:
    spec = CurateSpec.model_validate({"decontaminate": {"sets": {"val": str(tmp_path)}, "near_bits": 4}})
    assert spec.build_annotators() == [
        build_annotator("evaluation_overlap", {"sets": {"val": str(tmp_path)}, "near_bits": 4})
    ]
