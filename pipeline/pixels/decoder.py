"""Decodes hostile bytes in a child process: whatever happens to it costs one image."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from pipeline.pixels.blur import Box
from pipeline.pixels.errors import ImageError
from pipeline.pixels.images import StoredImage
from pipeline.pixels.messages import PIPE_BYTES, Message, receive, send
from pipeline.pixels.spec import ImageSpec

_START_TIMEOUT_S = 60.0
_NUM_TRIES = 2
"""Of an image whose child was killed from outside, as by the kernel when another process takes all memory."""

_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")
"""What the child sees of the environment: credentials have no business in a process that decodes hostile bytes."""

_CHILD_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # The C library gives each freed image's memory back to the kernel and asks for it again for the next: a quarter of
    # the time. Blocks of less than 32 MiB are kept instead, up to 64 MiB of them.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


class Decoder:
    """`transcode` in a process of its own, which is started when it is needed and again when it died.

    Blocking, and for one caller at a time; which thread calls does not matter.
    """

    def __init__(self, spec: ImageSpec) -> None:
        self._spec = spec
        self._child: _Child | None = None

    def transcode(self, body: bytes, boxes: Sequence[Box] = ()) -> StoredImage:
        """What `images.transcode` gives for these bytes.

        Raises:
            ImageError: any reason. `decoder_crashed` and `decoder_timeout` end the child; the next call starts another.
            UserError: the child cannot be started.
        """
        for _ in range(_NUM_TRIES):
            child = self._running()
            deadline = time.monotonic() + self._spec.decode_timeout_s
            try:
                reply, encoded = child.ask(body, boxes, deadline)
            except TimeoutError as error:
                self.close()
                raise ImageError("decoder_timeout") from error
            except (EOFError, BrokenPipeError):
                self._child = None
                if child.stop() != -signal.SIGKILL:
                    break
            else:
                if "reason" in reply:
                    raise ImageError(**reply)
                return StoredImage(**(reply | {"body": encoded}))
        raise ImageError("decoder_crashed")

    def close(self) -> None:
        """End the child; a later call starts another."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> "_Child":
        """The child; one that died while it had nothing to do is no image's fault."""
        if self._child is not None and self._child.process.poll() is not None:
            self.close()
        if self._child is None:
            self._child = _start(self._spec)
        return self._child


class _Child:
    """A running decoder process and our ends of its pipes."""

    def __init__(self, spec: ImageSpec) -> None:
        their_requests, self._requests = os.pipe()
        self._replies, their_replies = os.pipe()
        their_life, self._life = os.pipe()
        theirs = (their_requests, their_replies, their_life)
        command = [sys.executable, "-m", "pipeline.pixels.child", *map(str, theirs), spec.model_dump_json()]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=theirs, env=_environment()
            )
        except OSError:
            self._close_pipes()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        assert self.process.stderr is not None
        self._stderr = self.process.stderr
        for fd in (self._requests, self._replies):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # a user's total of pipe pages is limited; smaller ones work too
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def wait_until_ready(self) -> None:
        """Raises EOFError or TimeoutError where it does not get so far."""
        receive(self._replies, time.monotonic() + _START_TIMEOUT_S)
        self._stderr.close()

    def ask(self, body: bytes, boxes: Sequence[Box], deadline: float) -> Message:
        """The answer for one image."""
        send(self._requests, {"boxes": [list(box) for box in boxes]}, body, deadline)
        return receive(self._replies, deadline)

    def stop(self) -> int:
        """End it unless it has ended by itself; its exit status, which is minus the signal that ended it."""
        self.process.kill()
        self.process.wait()
        self._close_pipes()
        return self.process.returncode

    def complaint(self) -> str:
        """What one that ended wrote to standard error."""
        with self._stderr as stderr:
            return stderr.read().decode(errors="replace").strip()

    def _close_pipes(self) -> None:
        for fd in (self._requests, self._replies, self._life):
            os.close(fd)


def _start(spec: ImageSpec) -> _Child:
    complaint = ""
    for _ in range(_NUM_TRIES):
        try:
            child = _Child(spec)
        except OSError as error:
            complaint = str(error)
            break
        try:
            child.wait_until_ready()
            return child
        except (EOFError, TimeoutError) as error:
            status = child.stop()
            complaint = child.complaint() or f"{error or 'no answer'}; exit status {status}"
            if status != -signal.SIGKILL:
                break
    raise UserError(
        "the image decoder process does not start",
        where="pipeline.pixels.child",
        why=complaint,
        next_step="install this project's dependencies in the Python that runs it",
        exit_code=EXIT_ENVIRONMENT,
    )


def _environment() -> dict[str, str]:
    """The modules of this process, one thread, and no variable that may hold a credential."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    modules = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return kept | {"PYTHONPATH": modules} | _CHILD_VARIABLES
