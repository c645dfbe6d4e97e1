"""The demo's image server and the URL table that points at it."""

import http.client
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import EXTRA_SHARES, MAX_SLOW, write_url_table

DEADLINE_S = 30.0
FILE = "00007.webp"


# ---------------------------------------------------------------- server


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with start_server(FIXTURES) as url:
        yield url


def _get(url: str, timeout_s: float = DEADLINE_S) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def _raw_get(base_url: str, target: str, num_requests: int = 1) -> bytes:
    """Sends the target as it is (urllib would tidy it up) and reads until the server closes."""
    host, port = base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        last = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall((f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" * (num_requests - 1) + last).encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_img_is_the_image_with_its_type_over_a_kept_connection(base_url: str) -> None:
    data = (FIXTURES / "images" / FILE).read_bytes()
    status, body, headers = _get(f"{base_url}/img/{FILE}?copy=1")
    assert (status, body, headers["Content-Type"]) == (200, data, "image/webp")
    assert "X-Robots-Tag" not in headers
    assert _raw_get(base_url, f"/img/{FILE}", num_requests=3).count(data) == 3


def test_dead_error_html_and_noai(base_url: str) -> None:
    assert _get(f"{base_url}/dead/{FILE}")[0] == 404
    assert _get(f"{base_url}/error/{FILE}")[0] == 503
    status, body, headers = _get(f"{base_url}/html/{FILE}")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert b"<html" in body
    status, body, headers = _get(f"{base_url}/noai/{FILE}")
    assert (status, headers["X-Robots-Tag"]) == (200, "noai")
    assert body == (FIXTURES / "images" / FILE).read_bytes()


def test_flaky_fails_once_per_file(base_url: str) -> None:
    assert [_get(f"{base_url}/flaky/00001.webp")[0] for _ in range(3)] == [503, 200, 200]
    assert _get(f"{base_url}/flaky/00002.webp")[0] == 503


def test_truncated_announces_more_than_it_sends(base_url: str) -> None:
    data = (FIXTURES / "images" / FILE).read_bytes()
    head, body = _raw_get(base_url, f"/truncated/{FILE}").split(b"\r\n\r\n", 1)
    assert f"content-length: {len(data)}".encode() in head.lower()
    assert body == data[: len(data) // 2]


def test_slow_sends_some_bytes_but_not_all_of_them_in_time(base_url: str) -> None:
    with urllib.request.urlopen(f"{base_url}/slow/{FILE}", timeout=5) as response:
        assert response.status == 200
        assert len(response.read1(1)) == 1
        assert len(response.read1(100)) < 100  # one byte a second


@pytest.mark.parametrize(
    "target",
    [
        "/img/../metadata.parquet",
        "/img/..%2fmetadata.parquet",
        "/img/%2e%2e/metadata.parquet",
        "/img//etc/hostname",
        "/img/%2fetc%2fhostname",
        "/img/%00",
        "/img/",
        "/",
        "/img/nothing.webp",
        "/other/00000.webp",
        "/truncated/../../metadata.parquet",
    ],
)
def test_nothing_but_images_is_served(base_url: str, target: str) -> None:
    answer = _raw_get(base_url, target)
    assert answer.split(b"\r\n", 1)[0].split()[1] == b"404"


def test_server_stops_with_its_context_and_with_its_parent() -> None:
    with start_server(FIXTURES) as url:
        assert _get(f"{url}/img/{FILE}")[0] == 200
    assert not _is_up(url)
    # A parent that dies without a chance to stop its server:
    script = (
        "import os, sys; from pathlib import Path; from jobs.demo.server import start_server\n"
        "context = start_server(Path(sys.argv[1])); print(context.__enter__(), flush=True); os._exit(1)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(FIXTURES)], cwd=root, stdout=subprocess.PIPE, text=True, check=False
    )
    url = done.stdout.strip()
    assert url.startswith("http://127.0.0.1:")
    give_up_at = time.monotonic() + DEADLINE_S
    while _is_up(url) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert not _is_up(url)


def _is_up(url: str) -> bool:
    try:
        return _get(f"{url}/img/{FILE}")[0] == 200
    except OSError:
        return False


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no images/ folder"), start_server(tmp_path):
        pass


# ---------------------------------------------------------------- URL table


def test_url_table_is_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    corpus = read_corpus(FIXTURES)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_url_table(corpus, "http://127.0.0.1:9", tmp_path / name, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def _big_corpus(num_images: int) -> pa.Table:
    names = [f"images/{i:05d}.jpg" for i in range(num_images)]
    return pa.table({"file": names, "caption": names, "class_name": pa.nulls(num_images, pa.string()), "extra": names})


@settings(deadline=None, max_examples=40)
@given(num_images=st.integers(20, 2000), seed=st.integers(0, 2**32))
def test_url_table_has_every_image_once_and_bad_rows_in_proportion(
    tmp_path_factory: pytest.TempPathFactory, num_images: int, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "urls.parquet"
    summary = write_url_table(_big_corpus(num_images), "http://h", path, seed)
    rows = pq.read_table(path).to_pylist()
    counts = Counter(row["expected"] for row in rows)
    assert summary.num_rows == len(rows)
    assert summary.num_expected == counts
    assert counts["ok"] + counts["noai"] == num_images
    assert len({row["file"] for row in rows if row["expected"] in {"ok", "noai"}}) == num_images
    assert counts["noai"] == max(2, round(num_images * 0.01))
    for kind, share in EXTRA_SHARES.items():
        assert counts[kind] == min(max(2, round(num_images * share)), MAX_SLOW if kind == "slow" else num_images)
    assert summary.num_flaky == sum("/flaky/" in row["url"] for row in rows)
    assert {row["expected"] for row in rows if "/flaky/" in row["url"]} == {"ok"}


def test_duplicates_repeat_an_ok_row_and_other_columns_are_carried(tmp_path: Path) -> None:
    write_url_table(_big_corpus(1000), "http://h", tmp_path / "urls.parquet", seed=3)
    assert pq.ParquetFile(tmp_path / "urls.parquet").num_row_groups == 3
    table = pq.read_table(tmp_path / "urls.parquet")
    assert table.column_names == ["url", "caption", "class_name", "file", "extra", "expected"]
    rows = table.to_pylist()
    assert all(row["file"].removeprefix("images/") in row["url"] and row["extra"] == row["file"] for row in rows)
    ok = {row["url"]: row["caption"] for row in rows if row["expected"] == "ok"}
    num_by_url = Counter(row["url"] for row in rows)
    for row in rows:
        if row["expected"] == "duplicate_row":
            assert ok[row["url"]] == row["caption"]
        elif row["expected"] == "duplicate_image":
            assert ok[row["url"].removesuffix("?copy=1")] == row["caption"]
            assert num_by_url[row["url"]] == 1
        elif row["expected"] == "empty_caption":
            assert not row["caption"].strip()
            assert num_by_url[row["url"]] == 1
        else:
            assert row["caption"] == row["file"]
    assert len({row["caption"] for row in rows if row["expected"] == "empty_caption"}) == 2
    assert [row["file"] for row in rows] != sorted(row["file"] for row in rows)


def test_url_table_refuses_too_few_images_and_taken_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 19 images"):
        write_url_table(_big_corpus(19), "http://h", tmp_path / "x", 0)
    with pytest.raises(ValueError, match=r"\['url'\]"):
        write_url_table(_big_corpus(20).append_column("url", pa.nulls(20)), "http://h", tmp_path / "x", 0)


def test_every_url_does_what_its_row_expects(tmp_path: Path) -> None:
    corpus = read_corpus(FIXTURES)
    with start_server(FIXTURES) as url:
        write_url_table(corpus, url, tmp_path / "urls.parquet", seed=0)
        rows = [row for row in pq.read_table(tmp_path / "urls.parquet").to_pylist() if row["expected"] != "slow"]
        outcomes = Counter((row["expected"], _outcome(row["url"], FIXTURES / row["file"])) for row in rows)
    assert dict(outcomes.keys()) == {
        "ok": "image",
        "noai": "noai",
        "dead": "404",
        "refused": "refused",
        "error": "503",
        "truncated": "cut off",
        "html": "page",
        "duplicate_row": "image",
        "duplicate_image": "image",
        "empty_caption": "image",
    }
    assert len(outcomes) == 10  # one outcome for each


def _outcome(url: str, path: Path) -> str:
    try:
        status, body, headers = _get(url)
        if "/flaky/" in url and status == 503:
            status, body, headers = _get(url)
    except http.client.IncompleteRead:
        return "cut off"
    except urllib.error.URLError as error:
        return "refused" if isinstance(error.reason, ConnectionRefusedError) else str(error)
    if status != 200:
        return str(status)
    if headers["Content-Type"].startswith("text/html"):
        return "page"
    if body != path.read_bytes():
        return "other bytes"
    return "noai" if headers.get("X-Robots-Tag") == "noai" else "image"
