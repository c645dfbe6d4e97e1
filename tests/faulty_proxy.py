"""A proxy in front of an object store that does to requests what networks and busy servers do, by a seeded schedule."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FAULTS = ("busy", "slow", "reset before", "reset in request", "reset at answer", "reset in answer", "reset idle")
"""503 SlowDown; a late answer in small pieces; a reset before the body is read, in its middle, at the beginning and in
the middle of the answer (the server has done what was asked), and of a connection that waits for its next request."""
_MOST_IN_A_ROW = 3
_SLOW_S = 0.1
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to a server at a port of this machine. Some meet a fault."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream_port: int, seed: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.upstream_port = upstream_port
        self.stage = ""
        """Named by the test: what is counted from now on."""
        self.faults: tuple[str, ...] = FAULTS
        """Those that are met; a test that wants none clears it."""
        self.num_good = 3
        """Requests that are served well for each that meets a fault."""
        self.kinds: frozenset[str] = frozenset()
        """Of requests that meet them; empty for all."""
        self.is_for_good = False
        """Whether every request meets the first of them."""
        self.met: Counter[tuple[str, str, str]] = Counter()
        """Faults by stage, kind of request, and fault."""
        self.requests: Counter[tuple[str, str]] = Counter()
        """By stage and kind, those that met a fault included."""
        self.parts: Counter[str] = Counter()
        """Requests for each part of a multipart upload."""
        self._draw = random.Random(seed)
        self._waiting: dict[str, list[str]] = {}
        self._in_a_row: Counter[str] = Counter()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    def next_fault(self, kind: str, request: str) -> str:
        """The fault that a request meets; the empty string for none. None meets more than three in a row."""
        with self._lock:
            self.requests[self.stage, kind] += 1
            if kind == "part":
                self.parts[request] += 1
            fault = self._draw_fault(kind)
            self._in_a_row[request] += 1
            if not fault or (self._in_a_row[request] > _MOST_IN_A_ROW and not self.is_for_good):
                self._in_a_row[request] = 0
                return ""
            self.met[self.stage, kind, fault] += 1
            return fault

    def _draw_fault(self, kind: str) -> str:
        if self.is_for_good:
            return self.faults[0]
        if not self.faults or (self.kinds and kind not in self.kinds):
            return ""
        waiting = self._waiting.setdefault(kind, [])
        if not waiting:
            waiting += [*self.faults, *[""] * (self.num_good * len(self.faults))]
            self._draw.shuffle(waiting)
        return waiting.pop()

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End all connections."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyProxy

    def do(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        fault = self.server.next_fault(_kind(self.command, self.path), f"{self.command} {self.path}")
        if fault == "reset before":
            self._reset()
        elif fault == "reset in request":
            self.rfile.read(size // 2)
            self._reset()
        elif fault == "busy":
            self.rfile.read(size)
            self._answer(503, {"Content-Type": "application/xml"}, _BUSY, "")
        else:
            self._answer(*self._ask_upstream(self.rfile.read(size)), fault)
            if fault == "reset idle":
                self._reset()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

    def _ask_upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            headers = dict(answer.headers)
            if self.command == "HEAD":
                return answer.status, headers, bytes(int(headers.get("Content-Length", 0)))
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_HEADERS:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        body = b"" if self.command == "HEAD" else body
        if fault in ("reset at answer", "reset in answer"):
            self._reset_after(body[: len(body) // 2] if fault == "reset in answer" else b"")
            return
        if fault == "slow":
            time.sleep(_SLOW_S)
        self.end_headers()
        step = max(len(body) // 4, 1) if fault == "slow" else max(len(body), 1)
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if fault == "slow":
                time.sleep(_SLOW_S / 4)

    def _reset_after(self, sent: bytes) -> None:
        """In the middle of the body, or of the headers where there is none."""
        if sent:
            self.end_headers()
            self.wfile.write(sent)
        else:
            self.wfile.write(b"HTTP/1.1 200 ")
        self._reset()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *args: object) -> None:
        """Quiet."""


def _kind(command: str, path: str) -> str:
    """What a request to S3 is."""
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if command == "PUT" and "partNumber" in query:
        return "part"
    if command == "POST":
        return "delete" if "delete" in query else "begin parts" if "uploads" in query else "end parts"
    if command == "GET" and "list-type" in query:
        return "list"
    return command.lower()


@contextmanager
def faulty_proxy(upstream_port: int, seed: int, port: int = 0) -> Iterator[FaultyProxy]:
    """A running proxy; when the block ends, its port refuses connections and all of its connections are closed."""
    with FaultyProxy(upstream_port, seed, port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
            proxy.server_close()
            proxy.hang_up()
