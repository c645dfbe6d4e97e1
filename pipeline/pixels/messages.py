"""Messages between a process and its decoder: lengths, a JSON header and raw bytes, over a pipe. No pickle."""

import json
import os
import select
import struct
import time
from typing import Any

PIPE_BYTES = 1 << 20
"""Asked of the kernel, so that most images pass in one piece."""

_LENGTHS = struct.Struct("<II")

Message = tuple[dict[str, Any], bytes]


def send(fd: int, header: dict[str, Any], body: bytes = b"", deadline: float | None = None) -> None:
    """Write one message to a non-blocking pipe.

    Args:
        fd: the pipe's writing end.
        header: anything that JSON has.
        body: the bytes that follow.
        deadline: of `time.monotonic`, or None to wait without end.

    Raises:
        TimeoutError: the deadline passed.
        BrokenPipeError: nobody is left to read it.
    """
    text = json.dumps(header).encode()
    parts = [memoryview(_LENGTHS.pack(len(text), len(body)) + text), memoryview(body)]
    while parts:
        try:
            num_written = os.writev(fd, parts)
        except BlockingIOError:
            _wait(fd, select.POLLOUT, deadline)
            continue
        while parts and num_written >= len(parts[0]):
            num_written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][num_written:]


def receive(fd: int, deadline: float | None = None) -> Message:
    """Read one message from a non-blocking pipe.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other side is gone.
    """
    num_text, num_body = _LENGTHS.unpack(_read(fd, _LENGTHS.size, deadline))
    text = _read(fd, num_text, deadline)
    return json.loads(text), _read(fd, num_body, deadline)


def _read(fd: int, num_bytes: int, deadline: float | None) -> bytes:
    buffer = bytearray(num_bytes)
    rest = memoryview(buffer)
    while rest:
        try:
            num_read = os.readv(fd, [rest])
        except BlockingIOError:
            _wait(fd, select.POLLIN, deadline)
            continue
        if num_read == 0:
            raise EOFError("the pipe's other end is closed")
        rest = rest[num_read:]
    return bytes(buffer)


def _wait(fd: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(fd, event)
    timeout_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    if not poll.poll(timeout_ms):
        raise TimeoutError("the decoder takes too long")
