"""How fast the recipe's store answers one process: a few files, written, read and removed again."""

import os
import time
import uuid
from collections.abc import Callable
from statistics import median

from pipeline.store import Store

_LARGE_BYTES = 16 << 20
_NUM_LARGE = 4
_NUM_SMALL = 20
_SMALL_BYTES = 1_000


def probe_store(root: str) -> tuple[dict[str, float], str]:
    """Megabytes a second of large files, and milliseconds of small requests.

    Returns:
        The numbers, and in words what they were measured with.
    """
    store, folder = Store(root), f"bench-{uuid.uuid4().hex[:12]}"
    body = os.urandom(_LARGE_BYTES)
    large = [f"{folder}/large-{number}" for number in range(_NUM_LARGE)]
    small = [f"{folder}/small-{number}" for number in range(_NUM_SMALL)]
    try:
        write_s = _seconds(lambda name: store.write(name, body), large)
        put_s = _seconds(lambda name: store.write(name, body[:_SMALL_BYTES]), small)
        read_s = _seconds(store.read, large)
        get_s = _seconds(lambda name: store.read_range(large[0], int(name[-1]) << 10, _SMALL_BYTES), small)
    finally:
        store.remove(folder)
    numbers = {
        "write_mb_per_s": _LARGE_BYTES / 1e6 / median(write_s),
        "read_mb_per_s": _LARGE_BYTES / 1e6 / median(read_s),
        "put_ms": 1000 * median(put_s),
        "get_ms": 1000 * median(get_s),
    }
    return numbers, f"{_NUM_LARGE} files of 16 MiB, {_NUM_SMALL} of 1 kB, one after the other"


def _seconds(request: Callable[[str], object], names: list[str]) -> list[float]:
    """Of each request."""
    taken = []
    for name in names:
        began = time.perf_counter()
        request(name)
        taken.append(max(time.perf_counter() - began, 1e-9))
    return taken
