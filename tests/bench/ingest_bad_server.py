"""A web server whose every answer fails in one way, and a name server that knows no name, in a process of their own.

The first part of a path says how it fails: see `ingest_lists.BAD_KINDS`.
"""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROBOTS_PATH = "/robots.txt"
DRIP_LIMIT_S = 60
ENDLESS_BYTES, ENDLESS_STEP_S = 10_000, 0.5
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class BadServer:
    """Its ports: TCP on all loopback addresses, UDP on 127.0.0.1."""

    port: int
    name_server_port: int


@contextmanager
def start_bad_server(image: Path) -> Iterator[BadServer]:
    """Runs both servers while the context lasts.

    Args:
        image: a JPEG file, sent where a body is needed.
    """
    command = [sys.executable, "-m", "tests.bench.ingest_bad_server", str(image)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port, name_server_port = process.stdout.readline().split()
        yield BadServer(int(port), int(name_server_port))
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


Answer = Callable[[asyncio.StreamWriter, bytes, str], Awaitable[None]]
"""Gets the image and the path asked for."""


def _head(status: str, num_bytes: int | None, *headers: str, content_type: str = "image/jpeg") -> bytes:
    length = [] if num_bytes is None else [f"Content-Length: {num_bytes}"]
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", "Connection: close", *length, *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def _dead(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    writer.write(_head("404 Not Found", 5) + b"gone\n")


async def _error(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    writer.write(_head("503 Service Unavailable", 5) + b"busy\n")


async def _html(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    page = b"<!doctype html><html><body><p>This image has moved.</p></body></html>"
    writer.write(_head("200 OK", len(page), content_type="text/html") + page)


async def _truncated(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    writer.write(_head("200 OK", len(image)) + image[: len(image) // 2])


async def _drip(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    writer.write(_head("200 OK", len(image)))
    for position in range(DRIP_LIMIT_S):
        writer.write(image[position : position + 1])
        await writer.drain()
        await asyncio.sleep(1)


async def _silent(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    await asyncio.sleep(3600)


async def _endless(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    writer.write(_head("200 OK", None) + image)
    while True:
        writer.write(bytes(ENDLESS_BYTES))
        await writer.drain()
        await asyncio.sleep(ENDLESS_STEP_S)


async def _loop(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    writer.write(_head("302 Found", 0, f"Location: {path}"))


async def _noai(writer: asyncio.StreamWriter, image: bytes, path: str) -> None:
    writer.write(_head("200 OK", len(image), "X-Robots-Tag: noai") + image)


ANSWERS: dict[str, Answer] = {
    "dead": _dead,
    "error": _error,
    "html": _html,
    "truncated": _truncated,
    "drip": _drip,
    "silent": _silent,
    "endless": _endless,
    "loop": _loop,
    "noai": _noai,
}


class _NoSuchName(asyncio.DatagramProtocol):
    """Answers every question with NXDOMAIN: flags 0x8583, one question, which is sent back, and no record."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        end_of_question = data.index(b"\0", 12) + 5
        header = data[:2] + b"\x85\x83" + b"\0\1\0\0\0\0\0\0"
        self._transport.sendto(header + data[12:end_of_question], address)


async def _serve(image: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ", 2)[1].decode()
            kind = "dead" if path == ROBOTS_PATH else path.split("/")[1]
            await ANSWERS[kind](writer, image, path)
            await writer.drain()
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "0.0.0.0", 0, backlog=4096)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_NoSuchName, ("127.0.0.1", 0))
    print(server.sockets[0].getsockname()[1], transport.get_extra_info("sockname")[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the parent ends, however it does


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]).read_bytes()))
