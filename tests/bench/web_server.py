"""nginx on loopback, over http and https, with a certificate of a certificate authority of its own."""

import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import geteuid
from pathlib import Path

import trustme

from tests.bench.harness import BenchError

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0

# Of nginx: one process in the foreground, no logs, keep-alive as web servers have it by default.
CONFIG = """
daemon off;
pid {work}/pid;
error_log {work}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=10000;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    types {{ image/jpeg jpg; image/png png; image/webp webp; }}
    server {{
        listen {http_port} backlog=4096;
        listen {https_port} ssl backlog=4096;
        ssl_certificate {work}/chain.pem;
        ssl_certificate_key {work}/key.pem;
        location /img/ {{ alias {images}/; }}
    }}
}}
"""


@dataclass(frozen=True)
class WebServer:
    """Where it listens, and whom to trust."""

    http_port: int
    https_port: int
    ca_file: Path
    """The own authority alone."""
    bundle_file: Path
    """The own authority after the public ones, which an engine reads on its users' machines as well."""

    def port(self, scheme: str) -> int:
        """Of `http` or `https`."""
        return self.https_port if scheme == "https" else self.http_port


@contextmanager
def start_web_server(images: Path, hosts: Sequence[str]) -> Iterator[WebServer]:
    """Serves a folder under /img/ on all loopback addresses while the context lasts.

    Args:
        images: the folder.
        hosts: addresses that the certificate names.

    Raises:
        BenchError: there is no nginx, or it does not start.
    """
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")  # not on every user's PATH
    if nginx is None:
        raise BenchError(
            "the benchmark serves its images with nginx, which is not installed: apt-get install nginx-light"
        )
    with tempfile.TemporaryDirectory(prefix="genlip-nginx-") as folder:
        work = Path(folder)
        server = WebServer(free_port(), free_port(), work / "ca.pem", work / "bundle.pem")
        _write_certificates(work, hosts)
        # Started by root, nginx would otherwise serve as a user who may not read the folder.
        user = "user root;" if geteuid() == 0 else ""
        config = CONFIG.format(
            work=work, images=images.resolve(), user=user, http_port=server.http_port, https_port=server.https_port
        )
        (work / "nginx.conf").write_text(config)
        command = [nginx, "-p", folder, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_until_it_listens(process, server, work / "error.log")
            yield server
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def free_port() -> int:
    """A TCP port on which nothing listens at present."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _write_certificates(work: Path, hosts: Sequence[str]) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    leaf = authority.issue_cert(*hosts, key_type=trustme.KeyType.RSA)
    authority.cert_pem.write_to_path(work / "ca.pem")
    leaf.private_key_pem.write_to_path(work / "key.pem")
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(work / "chain.pem", append=True)
    public = ssl.get_default_verify_paths().cafile
    if public is None:
        raise BenchError(
            "this machine has no certificate bundle (ssl.get_default_verify_paths): install ca-certificates"
        )
    (work / "bundle.pem").write_bytes(Path(public).read_bytes() + b"\n" + authority.cert_pem.bytes())


def _wait_until_it_listens(process: subprocess.Popen[bytes], server: WebServer, log: Path) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            for port in (server.http_port, server.https_port):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > give_up_at:
                said = log.read_text()[-2000:] if log.is_file() else ""
                raise BenchError(f"nginx did not start ({error}); it says: {said}") from None
            time.sleep(0.02)
