"""Requests to stop: what schedulers send some time before they end a job, and Ctrl-C."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block: whether this process was asked to stop. Asked once more, it ends at once, as by Ctrl-C.

    To be entered by the main thread, after Ray has started: Ray sets handlers of its own.
    """
    requests: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    before = {number: signal.signal(number, hear) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
