"""A Ray cluster of its own for a test: `ray start --head` on free ports, with a token that is not the user's."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.environment import without_group

ROOT = Path(__file__).resolve().parents[2]
MAX_START_S = 90


@dataclass(frozen=True)
class Head:
    """A running cluster."""

    address: str
    """Of its dashboard."""
    env: dict[str, str]
    """For processes that talk to it."""

    def run(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, env=self.env, capture_output=True, text=True, check=False
        )


@contextmanager
def ray_head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the paths of its sockets are limited
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    env = {name: value for name, value in without_group().items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT)}
    env |= {"RAY_USAGE_STATS_ENABLED": "0"}
    port, dashboard_port, agent_port, client_port = free_ports(4)
    options = {
        "port": port,
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": agent_port,
        "ray-client-server-port": client_port,
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
        "temp-dir": folder / "s",
        "include-dashboard": "true",
    }
    command = ["ray.scripts.scripts", "start", "--head", "--block", *(f"--{k}={v}" for k, v in options.items())]
    log = folder / "log"
    with log.open("wb") as stream:
        process = psutil.Popen([sys.executable, "-m", *command], env=env, stdout=stream, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{dashboard_port}"
        _wait_for(address, process, log)
        yield Head(address, env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"})
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for(address: str, process: psutil.Popen, log: Path) -> None:
    end = time.monotonic() + MAX_START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and wants the token
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the dashboard does not answer")


def _end(process: psutil.Popen) -> None:
    """End what was started here, and only that."""
    if process.poll() is None:
        started = process.children(recursive=True)
        for one in (process, *started):
            one.kill()
        psutil.wait_procs([process, *started], timeout=10)
