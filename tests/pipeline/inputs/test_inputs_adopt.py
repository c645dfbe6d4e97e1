"""Datasets that hold images give rows with the same bytes, captions and failures as their own readers see."""

import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image
from source_files import rows_of, units_of, write_parquet

from pipeline.errors import UserError
from pipeline.inputs.messages import reason_of_message
from pipeline.inputs.plan import extend_plan, plan_numbers, stage_retry
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import Row, read_rows
from pipeline.store import Store

NUM_GOOD = 9


def _jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64 + number, 48), (number * 20, 90, 200)).save(stream, "jpeg")
    return stream.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        is_image = name.removesuffix(".jpg").isdigit()
        body = _jpeg(int(name.removesuffix(".jpg"))) if is_image else b"<html>no image</html>"
        self.send_response(404 if name == "gone.jpg" else 200)
        if name == "noai.jpg":
            self.send_header("X-Robots-Tag", "noai")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What img2dataset itself makes of 13 URLs, in two formats, two shards each."""
    folder = tmp_path_factory.mktemp("img2dataset")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        names = [*(str(number) for number in range(NUM_GOOD)), "gone", "page", "noai"]
        urls = [f"{base}/{name}.jpg" for name in names] + ["http://127.0.0.1:1/refused.jpg"]
        table = {"url": urls, "caption": [f"Bild ü {n}" for n in range(13)], "uid": [f"id-{n}" for n in range(13)]}
        write_parquet(folder / "urls.parquet", table)
        folders = {name: folder / name for name in ("webdataset", "parquet")}
        _run_img2dataset(folder / "urls.parquet", folders)
        server.shutdown()
    return folders


def _run_img2dataset(urls: Path, folders: dict[str, Path]) -> None:
    settings = {
        "url_list": str(urls), "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "save_additional_columns": ["uid"], "processes_count": 1, "thread_count": 4, "number_sample_per_shard": 7,
        "image_size": 32, "timeout": 5, "compute_hash": "sha256", "enable_wandb": False,
    }  # fmt: skip
    runs = [settings | {"output_format": name, "output_folder": str(out)} for name, out in folders.items()]
    code = "import json, sys, img2dataset\nfor run in json.loads(sys.argv[1]): img2dataset.download(**run)"
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run([sys.executable, "-c", code, json.dumps(runs)], env=environment, check=True, capture_output=True)


def _by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.url.rsplit("/", 1)[-1].removesuffix(".jpg"): row for row in rows}


@pytest.mark.parametrize("unit_samples", [1000, 3])
@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_img2datasets_shards_are_adopted(
    datasets: dict[str, Path], tmp_path: Path, output_format: str, unit_samples: int
) -> None:
    spec = SourceSpec(urls=str(datasets[output_format]), format="img2dataset", uid="uid")
    store = Store(str(tmp_path / "store"))
    units = units_of(store, spec, unit_samples)
    assert [unit.num_rows for unit in units] == ([7, 6] if unit_samples == 1000 else [3, 3, 1, 3, 3])
    assert {unit.kind for unit in units} == {"images"}
    rows = _by_name(rows_of(store, spec, unit_samples))
    assert len(rows) == 13
    for number in range(NUM_GOOD):
        row = rows[str(number)]
        assert (row.caption, row.key, row.earlier_reason) == (f"Bild ü {number}", f"id-{number}", "")
        assert Image.open(io.BytesIO(row.body or b"")).size == (32, 32)
        assert row.meta["adopted_original_width"] == 64 + number
        assert not {"status", "error_message", "width", "key", "sha256", "jpg", "txt"} & set(row.meta)
    reasons = {name: rows[name].earlier_reason for name in ("gone", "page", "noai", "refused")}
    assert reasons == {"gone": "http_404", "page": "undecodable", "noai": "opt_out", "refused": "connect"}
    assert all(rows[name].body is None for name in reasons)


def test_both_formats_give_the_same_images_and_its_own_reader_agrees(datasets: dict[str, Path], tmp_path: Path) -> None:
    adopted = {}
    for name, folder in datasets.items():
        spec = SourceSpec(urls=str(folder), format="img2dataset")
        adopted[name] = {row.url: row for row in rows_of(Store(str(tmp_path / name)), spec)}
    assert {url: row.body for url, row in adopted["webdataset"].items()} == {
        url: row.body for url, row in adopted["parquet"].items()
    }
    tars = sorted(str(path) for path in datasets["webdataset"].glob("*.tar"))
    samples = list(wds.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert len(samples) == NUM_GOOD
    for sample in samples:
        row = adopted["webdataset"][json.loads(sample["json"])["url"]]
        assert (row.body, (row.caption or "").encode()) == (sample["jpg"], sample["txt"])
        assert row.key == Row(row.url, row.caption).key
        assert row.meta["adopted_key"] == sample["__key__"]


def test_an_unfinished_shard_is_left_out(datasets: dict[str, Path], tmp_path: Path) -> None:
    for path in datasets["webdataset"].iterdir():
        if path.is_file() and path.name != "00001_stats.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    spec = SourceSpec(urls=str(tmp_path), format="img2dataset")
    assert [unit.num_rows for unit in units_of(Store("memory://unfinished"), spec)] == [7]


def test_failures_of_an_adopted_dataset_are_downloaded_by_a_retry(datasets: dict[str, Path], tmp_path: Path) -> None:
    spec = SourceSpec(urls=str(datasets["webdataset"]), format="img2dataset", uid="key")
    store = Store(str(tmp_path / "store"))
    for unit in units_of(store, spec):
        rows = read_rows(unit, spec)
        reasons = [row.earlier_reason for row in rows]
        status = ["failed" if reason in ("http_404", "connect") else "success" for reason in reasons]
        table = pa.table({"key": [row.key for row in rows], "status": status, "error_message": reasons})
        content = json.dumps({"reasons": {f"failed:{reason}": 1 for reason in reasons}})
        store.write_table(f"ledger/{unit.name}.parquet", table.replace_schema_metadata({"genlip": content}))
    keys = {row.url: row.key for row in rows_of(store, spec)}
    assert stage_retry(store, spec, 1000, ["http", "connect"]) == 2
    *_, retry = extend_plan(store, spec, 1000).iter_units()
    again = read_rows(retry, spec)
    assert sorted(row.from_reason for row in again) == ["connect", "http_404"]
    assert all((row.body, row.earlier_reason, row.key) == (None, "", keys[row.url]) for row in again)


# ---------------------------------------------------------------- webdataset


def _write_tar(path: Path, num_samples: int) -> None:
    with wds.TarWriter(str(path)) as tar:
        for n in range(num_samples):
            meta = {"url": f"http://a.test/{n}", "caption": f"from json {n}", "tags": ["x"]} if n % 2 else {}
            sample = {"__key__": f"part/{n:05d}", ("jpg", "png", "webp")[n % 3]: _jpeg(n % 10), "txt": f"from txt {n}"}
            tar.write(sample | ({"json": meta} if meta else {}))


@pytest.mark.parametrize("unit_samples", [1000, 10, 4, 1])
def test_tars_of_webdatasets_own_writer_are_adopted(tmp_path: Path, unit_samples: int) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a.tar", "b.tar"):
        _write_tar(tmp_path / "data" / name, 10)
    spec = SourceSpec(urls=str(tmp_path / "data"), format="webdataset")
    store = Store(str(tmp_path / "store"))
    units = units_of(store, spec, unit_samples)
    per_tar = -(-10 // unit_samples)
    assert [unit.file.rsplit("/", 1)[-1] for unit in units] == ["a.tar"] * per_tar + ["b.tar"] * per_tar
    rows = rows_of(store, spec, unit_samples)
    assert [row.body for row in rows] == [_jpeg(n) for n in range(10)] * 2
    assert [row.caption for row in rows[:4]] == ["from txt 0", "from json 1", "from txt 2", "from json 3"]
    assert [row.url for row in rows[:4]] == ["", "http://a.test/1", "", "http://a.test/3"]
    assert rows[1].meta == {"tags": ["x"], "adopted_key": "part/00001"}
    numbers = plan_numbers(None, spec, unit_samples)
    size = sum((tmp_path / "data" / name).stat().st_size for name in ("a.tar", "b.tar"))
    assert (numbers.num_rows, numbers.num_units, numbers.expected_bytes) == (20, len(units), size)


def test_samples_without_url_are_told_apart_by_their_images(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "t.tar")) as tar:
        for n in range(4):
            tar.write({"__key__": str(n), "jpg": _jpeg(n % 3), "txt": "the same"})
    rows = rows_of(Store("memory://nameless"), SourceSpec(urls=str(tmp_path / "t.tar"), format="webdataset"))
    assert rows[0].key == rows[3].key
    assert len({row.key for row in rows}) == 3


def test_odd_members_of_a_tar_do_no_harm(tmp_path: Path) -> None:
    members = {
        "a.jpg": _jpeg(1), "a.txt": b"\xff\xfe", "README": b"about", "b.txt": b"no image", "c.png": _jpeg(2),
        "c.json": b"{not json", "d/" + "x" * 150 + ".JPG": _jpeg(3), "e.seg.png": b"mask", "e.jpg": _jpeg(4),
    }  # fmt: skip
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("d/"), None)
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    rows = rows_of(Store("memory://odd"), SourceSpec(urls=str(tmp_path / "t.tar"), format="webdataset"))
    assert [(row.body, row.caption, row.earlier_reason) for row in rows] == [
        (_jpeg(1), None, ""),
        (None, "no image", "adopted_no_image"),
        (None, "", "adopted_json_unreadable"),
        (_jpeg(3), "", ""),
        (_jpeg(4), "", ""),
    ]


# ---------------------------------------------------------------- parquet


@pytest.mark.parametrize("layout", ["struct", "bytes", "flat"])
def test_parquet_with_images_is_adopted(tmp_path: Path, layout: str) -> None:
    bodies = [_jpeg(1), None, _jpeg(3)]
    images: dict[str, pa.Array] = {
        "struct": {"image": pa.array([{"bytes": body, "path": "x.jpg"} for body in bodies])},
        "bytes": {"jpg": pa.array(bodies, pa.large_binary())},
        "flat": {"image.bytes": pa.array(bodies, pa.binary())},
    }[layout]
    pq.write_table(pa.table(images | {"text": pa.array(["a", "b", "c"]), "label": [1, 2, 3]}), tmp_path / "t.parquet")
    spec = SourceSpec(urls=str(tmp_path), format="images_parquet", caption="text")
    store = Store(str(tmp_path / "store"))
    assert [unit.num_rows for unit in units_of(store, spec, 2)] == [2, 1]
    rows = rows_of(store, spec, 2)
    assert [row.body for row in rows] == bodies
    assert [row.earlier_reason for row in rows] == ["", "adopted_no_image", ""]
    assert [(row.url, row.caption, row.meta) for row in rows] == [
        ("", caption, {"label": label}) for label, caption in enumerate("abc", 1)
    ]


@pytest.mark.parametrize("image_format", ["images_parquet", "img2dataset"])
def test_a_table_of_urls_is_no_dataset_with_images(tmp_path: Path, image_format: str) -> None:
    write_parquet(tmp_path / "00000.parquet", {"url": ["u"], "caption": ["c"], "image": ["not bytes"]})
    spec = SourceSpec.model_validate({"urls": str(tmp_path), "format": image_format})
    with pytest.raises(UserError, match=f"not a dataset of the format {image_format}"):
        extend_plan(Store("memory://no-dataset"), spec, 10)


@pytest.mark.parametrize("body", [b"", b"no tar " * 200])
def test_a_file_that_is_no_tar_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "t.tar").write_bytes(body)
    with pytest.raises(UserError, match="cannot be read as webdataset"):
        extend_plan(Store("memory://no-dataset"), SourceSpec(urls=str(tmp_path), format="webdataset"), 10)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("HTTP Error 408: Request Timeout", "http_408"),
        ("HTTP Error 525: SSL Handshake Failed", "http_525"),
        (
            "HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.",
            "redirect_limit",
        ),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error [Errno 110] Connection timed out>", "connect_timeout"),
        ("<urlopen error [Errno 111] Connection refused>", "connect"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns_nx"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns_fail"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1007)>", "tls"),
        ("<urlopen error EOF occurred in violation of protocol (_ssl.c:1007)>", "tls"),
        ("Remote end closed connection without response", "connect"),
        ("IncompleteRead(0 bytes read)", "truncated"),
        ("unknown url type: ''", "url_invalid"),
        ("<urlopen error unknown url type: ftpx>", "url_not_http"),
        ("Use of image disallowed by X-Robots-Tag directive", "opt_out"),
        ("Image decoding error", "undecodable"),
        ("image too small", "image_too_small"),
        ("hash mismatch", "hash_mismatch"),
        ("Cube 17 fell off http://a.test/x", "adopted_cube_fell_off"),
        ("", "adopted_unknown"),
    ],
)
def test_img2datasets_messages_get_our_reasons(message: str, reason: str) -> None:
    assert reason_of_message(message) == reason
