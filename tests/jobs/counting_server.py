"""A web server of a corpus's images that counts what it is asked, and can hold some requests back."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_HOLD_S = 240


class CountingServer(ThreadingHTTPServer):
    """Serves /FILE?ANYTHING; a path that ends in `held` is answered once `gate` is open."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies = {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}
        self.asked: Counter[str] = Counter()
        self.gate = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: CountingServer

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
        if self.path.endswith("held"):
            self.server.gate.wait(MAX_HOLD_S)
        body = self.server.bodies[self.path.partition("?")[0]]
        self.send_response(200)
        self.send_header("Content-Type", "image/webp")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@contextmanager
def serve_counting(folder: Path) -> Iterator[CountingServer]:
    with CountingServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()
