"""The S3 server of moto, in a process of its own, with an empty bucket for each test."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

MAX_WAIT_S = 120


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def moto_server() -> Iterator[int]:
    """A running server; its port on this machine."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up_at = time.monotonic() + MAX_WAIT_S
        while not _answers(port):
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def new_bucket(port: int) -> str:
    """The URL of an empty bucket."""
    name = f"bucket-{uuid.uuid4().hex}"  # clients are kept by the bucket's name
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{name}", method="PUT")).close()
    return f"s3://{name}"


def put(port: int, url: str, body: bytes) -> None:
    """Write an object, not by way of a store: that would keep a client of this server."""
    headers = {"Content-Type": "application/octet-stream"}  # not the default, which is a form's
    at = f"http://127.0.0.1:{port}/{url.removeprefix('s3://')}"
    urllib.request.urlopen(urllib.request.Request(at, body, headers, method="PUT"), timeout=60).close()


@contextmanager
def s3_at(port: int, **environment: str) -> Iterator[Mapping[str, str]]:
    """The environment of a user of the server (or proxy) at a port."""
    environment |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    with patch.dict(os.environ, environment):
        yield os.environ


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
