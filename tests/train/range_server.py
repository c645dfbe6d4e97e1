"""A web server of ranges that misbehaves by plan."""

import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer(ThreadingHTTPServer):
    """Serves `files`. Each request takes the next fault of `plan`; with none left, requests are served well.

    Faults: `busy` (503), `reset` (no answer), `cut` (closed half-way), `short` (half of the range), `stuck` (waits for
    `release`), `whole` (ignores the range).
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], handler: "type[RangeHandler] | None" = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or RangeHandler)
        self.files = files
        self.plan: deque[str] = deque()
        self.ranges: list[str] = []
        self.release = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is part of the tests."""


class RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: RangeServer

    def do_GET(self) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            self._answer(404, b"")
            return
        if "Range" not in self.headers:  # asked whether the file is there, and how large it is
            self._answer(200, body)
            return
        self.server.ranges.append(self.headers["Range"])
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        fault = self.server.plan.popleft() if self.server.plan else ""
        if fault == "stuck":
            self.server.release.wait(60)
        if fault == "reset":
            self._reset()
        elif fault == "busy":
            self._answer(503, b"try later")
        elif fault == "whole":
            self._answer(200, body)
        elif first >= len(body):
            self._answer(416, b"")
        else:
            self._answer_part(body, first, min(last + 1, len(body)), fault)

    do_HEAD = do_GET

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _answer_part(self, body: bytes, first: int, stop: int, fault: str) -> None:
        half = (first + stop) // 2
        sent = body[first:half] if fault == "cut" else None
        stop = half if fault == "short" else stop
        self._answer(206, body[first:stop], sent, f"bytes {first}-{stop - 1}/{len(body)}")
        self.close_connection = fault == "cut"

    def _answer(self, status: int, body: bytes, sent: bytes | None = None, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@contextmanager
def serve_ranges(files: dict[str, bytes]) -> Iterator[tuple[RangeServer, str]]:
    """A running server of these paths, and its URL."""
    with RangeServer(files) as server, serving(server) as url:
        yield server, url


@contextmanager
def serving(server: RangeServer) -> Iterator[str]:
    """Run a server; its URL."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.release.set()
        server.shutdown()
        thread.join()
