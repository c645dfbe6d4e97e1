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
    gcs: str
    """For `ray.init`."""
    metrics_url: str
    """Where its metrics agent answers Prometheus."""
    service_discovery: Path
    """The file that tells Prometheus of the metrics agents."""
    env: dict[str, str]
    """For processes that talk to it."""

    def run(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, env=self.env, capture_output=True, text=True, check=False
        )


@contextmanager
def ray_head(num_cpus: int = 2) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the paths of its sockets are limited
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    env = {name: value for name, value in without_group().items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT)}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}  # for busy machines
    port, dashboard_port, agent_port, client_port, metrics_port = free_ports(5)
    options = {
        "port": port,
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": agent_port,
        "ray-client-server-port": client_port,
        "metrics-export-port": metrics_port,
        "num-cpus": num_cpus,
        "object-store-memory": 100_000_000,
        "temp-dir": folder / "s",
        "include-dashboard": "true",
    }
    log = folder / "log"
    process = start_ray(log, env, "--head", *(f"--{k}={v}" for k, v in options.items()))
    try:
        address = f"http://127.0.0.1:{dashboard_port}"
        wait_for_ray(process, log)
        _wait_for(address, process, log)
        yield Head(
            address=address,
            gcs=f"127.0.0.1:{port}",
            metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
            service_discovery=folder / "s" / "session_latest" / "prom_metrics_service_discovery.json",
            env=env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"},
        )
    finally:
        end_tree(process)
        shutil.rmtree(folder, ignore_errors=True)


def start_ray(log: Path, env: dict[str, str], *options: str) -> psutil.Popen:
    """`ray start` that lasts as long as its processes."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
    with log.open("wb") as stream:
        return psutil.Popen(command, env=env, stdout=stream, stderr=subprocess.STDOUT)


def wait_for_ray(process: psutil.Popen, log: Path) -> None:
    end = time.monotonic() + MAX_START_S
    while b"Ray runtime started" not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


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


def end_tree(process: psutil.Popen) -> None:
    """SIGKILL to what was started here, and only that."""
    if process.poll() is None:
        started = process.children(recursive=True)
        for one in (process, *started):
            one.kill()
        psutil.wait_procs([process, *started], timeout=10)
