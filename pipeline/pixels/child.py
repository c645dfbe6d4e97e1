"""The decoder process: reads images from one pipe and answers on another until its parent is gone.

`pipeline.pixels.decoder` starts it as `python -m pipeline.pixels.child REQUESTS REPLIES LIFE SPEC`: three pipe ends
and the recipe's section as JSON.
"""

import fcntl
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.pixels.errors import ImageError
from pipeline.pixels.images import transcode
from pipeline.pixels.messages import Message, receive, send
from pipeline.pixels.spec import ImageSpec


def main(requests: int, replies: int, life: int, spec: ImageSpec) -> None:
    """Serve until the parent closes the pipe of requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _die_with_parent(life)
    _limit_memory(spec.decode_memory_mb)
    os.set_blocking(requests, False)
    os.set_blocking(replies, False)
    send(replies, {"ready": True})
    _silence()
    while True:
        try:
            header, body = receive(requests)
        except EOFError:
            return
        send(replies, *_answer(header, body, spec))


def _answer(header: dict[str, Any], body: bytes, spec: ImageSpec) -> Message:
    """An image's fields and bytes, or an error's fields."""
    try:
        stored = transcode(body, spec, header["boxes"])
    except MemoryError:
        return {"reason": "decoder_crashed", "original_width": None, "original_height": None}, b""
    except ImageError as error:
        return vars(error), b""
    return vars(stored) | {"body": None}, stored.body


def _die_with_parent(life: int) -> None:
    """Have the kernel end this process (SIGIO) as soon as nobody holds the other end of the pipe.

    A parent-death signal would come as soon as the *thread* that started this process ends, and end of file on the
    requests is not seen while an image is being decoded.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)


def _limit_memory(decode_memory_mb: int) -> None:
    """What is mapped now, by Python and the libraries, and what the images may take."""
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * resource.getpagesize() + decode_memory_mb * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _silence() -> None:
    """Decoders write warnings about every second file; nobody reads them, and a full pipe would stop them."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), ImageSpec.model_validate_json(sys.argv[4]))
