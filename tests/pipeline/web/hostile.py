"""A web server with a route for everything that the web does to a downloader, and what should come of each.

`CASES` is the table; `start_hostile_server()` serves it from a thread, on raw sockets. Each case has a host name of its
own (`drip.localhost`), so that one case's robots.txt and circuit breaker say nothing about another's.
"""

import asyncio
import contextlib
import email.utils
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from tests.pipeline.web.hostile_answers import ANSWERS, ROBOTS, Answer

BETTER_LATER = ("status-503-then-ok", "status-429-seconds", "status-429-date", "status-429-nonsense")
ALLOWED, FORBIDDEN = "127.0.0.1", "127.0.0.2"
LIMITS = {
    "timeout_s": 2.5,
    "connect_timeout_s": 1.5,
    "min_bytes_per_s": 1_000,
    "slow_for_s": 0.75,
    "retries": 1,
    "max_bytes": 200_000,
    "max_redirects": 3,
    "spill": 0.0,
    "allow_addresses": (f"{ALLOWED}/32",),
}
"""Fields of a fetch section under which the table holds."""


@dataclass(frozen=True)
class Case:
    """A URL and the reason that it should end with; the empty reason is success."""

    name: str
    reason: str
    template: str = ""
    """The URL; in braces the name of a port, or `allowed` for the host that may be asked."""


def _served(reason: str, *names: str) -> list[Case]:
    return [Case(name, reason) for name in names]


CASES: list[Case] = [
    *_served("", "ok", "html", "chunked", "gzip", "no-length", "status-503-then-ok"),
    *_served("", "status-429-seconds", "status-429-date", "status-429-nonsense", "redirect-chain", "redirect-307"),
    *_served("http_404", "status-404"),
    *_served("http_410", "status-410"),
    *_served("http_403", "status-403"),
    *_served("http_204", "status-204"),
    *_served("http_206", "status-206"),
    *_served("http_500", "status-500"),
    *_served("http_503", "status-503"),
    *_served("http_429", "status-429-ten-years", "status-429"),
    *_served("too_slow", "drip", "stalls"),
    *_served("timeout", "silent", "slow-headers", "slow-but-steady"),
    *_served("too_big", "endless", "big-by-header", "big-by-body", "gzip-bomb"),
    *_served("truncated", "truncated", "truncated-chunked", "truncated-gzip", "reset-in-body"),
    *_served("body_empty", "empty", "empty-chunked"),
    *_served("protocol", "garbage", "giant-header", "many-headers", "gzip-broken", "brotli", "bad-status-line"),
    *_served("protocol", "short-length"),
    *_served("connect", "closes", "reset"),
    *_served("redirect_limit", "redirect-loop", "redirect-long-chain"),
    *_served("redirect_invalid", "redirect-file", "redirect-ftp", "redirect-nowhere", "redirect-bad-url"),
    *_served("blocked_address", "redirect-private", "redirect-metadata", "redirect-forbidden", "redirect-decimal"),
    *_served("opt_out_noai", "noai", "noai-second-header", "noai-after-value", "noai-after-date", "noai-other-agent"),
    *_served("opt_out_noai", "noai-upper-case"),
    *_served("opt_out_noimageai", "noimageai-after-number"),
    *_served("opt_out_noml", "noml"),
    *_served("opt_out_noindex", "noindex-none", "noindex-us"),
    *_served("", "noindex-googlebot", "nofollow-only"),
    *_served("tdm_reserved", "tdm"),
    *_served("", "tdm-zero", "robots-404", "robots-loop", "robots-other-agent", "robots-garbage"),
    *_served("robots_txt", "robots-all", "robots-us", "robots-gzip", "robots-redirect", "robots-big"),
    *_served("http_500", "robots-500"),
    *_served("timeout", "robots-silent"),
    Case("tls-ok", "", "https://{allowed}:{https}/ok"),
    Case("tls-wrong-host", "tls", "https://{allowed}:{wrong_host}/ok"),
    Case("tls-self-signed", "tls", "https://{allowed}:{self_signed}/ok"),
    Case("tls-to-plain-port", "tls", "https://{allowed}:{http}/ok"),
    Case("tls-mute", "connect_timeout", "https://{allowed}:{mute}/ok"),
    Case("plain-to-tls-port", "connect", "http://tls.localhost:{https}/ok"),
    Case("refused", "connect", "http://{allowed}:{closed}/ok"),
    Case("credentials", "", "http://user:secret@credentials.localhost:{http}/ok"),
    Case("forbidden", "blocked_address", "http://{forbidden}/ok"),
    Case("private", "blocked_address", "http://10.1.2.3/ok"),
    Case("no-url", "url_invalid", "not a url"),
    Case("no-host", "url_invalid", "http:///ok"),
    Case("empty-label", "url_invalid", "http://a..b/ok"),
    Case("long-label", "url_invalid", "http://" + "x" * 70 + ".example/ok"),
    Case("not-an-address", "url_invalid", "http://999.1.1.1/ok"),
    Case("bracket", "url_invalid", "http://[::1/ok"),
    Case("bad-port", "url_invalid", "http://ok.localhost:99999/ok"),
    Case("ftp", "url_not_http", "ftp://ok.localhost/ok"),
    Case("file", "url_not_http", "file:///etc/hostname"),
    Case("data", "url_not_http", "data:image/png;base64,AAAA"),
]


@dataclass
class HostileServer:
    """Where it listens, and what it has seen."""

    ports: dict[str, int]
    ca_file: Path
    hits: Counter[str] = field(default_factory=Counter)
    """Requests by path."""
    forbidden_hits: int = 0
    """Connections to the address that nobody may ask."""
    most_parallel: int = 0
    """Most requests of `/hold` at a time."""
    starts: list[float] = field(default_factory=list)
    """When each request of `/hold` came, by the monotonic clock."""
    heads: list[str] = field(default_factory=list)
    """The heads of all requests."""
    num_parallel: int = 0

    def url(self, case: Case) -> str:
        """The case's URL on this server."""
        template = case.template or f"http://{case.name}.localhost:{{http}}/{case.name}"
        forbidden = f"{FORBIDDEN}:{self.ports['forbidden']}"
        return template.format(**{**self.ports, "allowed": ALLOWED, "forbidden": forbidden})

    def at(self, path: str, host: str = ALLOWED) -> str:
        """A URL of one of its paths."""
        return f"http://{host}:{self.ports['http']}/{path}"


@contextlib.contextmanager
def start_hostile_server(folder: Path) -> Iterator[HostileServer]:
    """Serve from a thread until the block ends; `folder` takes the CA's certificate."""
    ca = trustme.CA()
    ca_file = folder / "hostile-ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    server = HostileServer({}, ca_file)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listeners = asyncio.run_coroutine_threadsafe(_listen(server, ca), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_stop(listeners), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _listen(server: HostileServer, ca: trustme.CA) -> list[asyncio.Server]:
    contexts = {
        "http": None,
        "https": _context(ca.issue_cert(ALLOWED, "tls.localhost", "*.img.localhost")),
        "wrong_host": _context(ca.issue_cert("somewhere-else.example")),
        "self_signed": _context(trustme.CA().issue_cert(ALLOWED)),
        "forbidden": None,
    }
    listeners = []
    for name, context in contexts.items():

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name) -> None:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
                await _serve(server, name, reader, writer)
            writer.close()

        address = FORBIDDEN if name == "forbidden" else ALLOWED
        listeners.append(await asyncio.start_server(serve, address, 0, ssl=context, backlog=1024))
        server.ports[name] = listeners[-1].sockets[0].getsockname()[1]
    listeners.append(await asyncio.start_server(_ignore, ALLOWED, 0))
    server.ports["mute"] = listeners[-1].sockets[0].getsockname()[1]
    with socket.socket() as unused:
        unused.bind((ALLOWED, 0))
        server.ports["closed"] = unused.getsockname()[1]
    return listeners


async def _stop(listeners: list[asyncio.Server]) -> None:
    for listener in listeners:
        listener.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        await asyncio.sleep(30)
    writer.close()


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def _serve(server: HostileServer, port: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests of one connection, until an answer ends it."""
    if port == "forbidden":
        server.forbidden_hits += 1
    first = await reader.readexactly(1)
    if first == b"\x16":  # a TLS greeting on the plain port
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        return
    while True:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        server.heads.append(head)
        path = head.split(" ", 2)[1].lstrip("/")
        host = next((line[5:].strip() for line in head.split("\r\n") if line.lower().startswith("host:")), "")
        server.hits[path] += 1
        answer = _answer(server, path, host.split(".")[0], server.hits[path])
        if path == "hold":
            await _hold(server)
        await _send(writer, answer)
        if answer.ends or "\r\nConnection: close\r\n" in head:
            return
        first = b""


def _answer(server: HostileServer, path: str, label: str, num_asked: int) -> Answer:
    if path.endswith("robots.txt"):
        return ROBOTS.get(label, ANSWERS["status-404"])
    if num_asked > 1 and path in BETTER_LATER:
        return ANSWERS["ok"]
    if path == "status-429-date":
        when = email.utils.formatdate(time.time() + 2, usegmt=True)
        return Answer([f"HTTP/1.1 429 Slow\r\nRetry-After: {when}\r\nContent-Length: 0\r\n\r\n".encode()])
    if path == "redirect-forbidden":
        target = f"http://{FORBIDDEN}:{server.ports['forbidden']}/ok"
        return Answer([f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()])
    return ANSWERS.get(path, ANSWERS["ok"])


async def _hold(server: HostileServer) -> None:
    server.starts.append(time.monotonic())
    server.num_parallel += 1
    server.most_parallel = max(server.most_parallel, server.num_parallel)
    await asyncio.sleep(0.05)
    server.num_parallel -= 1


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    for part in answer.parts:
        writer.write(part)
        await writer.drain()
    while answer.again:
        await asyncio.sleep(answer.pause_s)
        writer.write(answer.again)
        await writer.drain()
    if answer.pause_s and not answer.again:
        await asyncio.sleep(answer.pause_s)
    if answer.resets:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()
