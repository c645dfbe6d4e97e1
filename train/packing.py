"""Which samples share a row: decided from lengths alone, before a byte of an image is read."""

from collections import deque
from collections.abc import Sequence

LOOK_AHEAD = 64
"""How many samples ahead one is looked for that fills the rest of a row."""


def pack_lengths(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Fill rows with samples in stream order.

    Next-fit with look-ahead: where the next sample does not fit, the first of the following `LOOK_AHEAD` that does is
    taken in its stead. Each sample is placed exactly once, and none further than the look-ahead before its turn.

    Args:
        lengths: Tokens of each sample, in stream order.
        row_tokens: Capacity of a row.

    Returns:
        For each row the positions of its samples in `lengths`.

    Raises:
        ValueError: A sample is longer than a row.
    """
    if lengths and max(lengths) > row_tokens:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit into a row of {row_tokens}")
    rows: list[list[int]] = []
    row: list[int] = []
    free = row_tokens
    window: deque[int] = deque()
    upcoming = iter(range(len(lengths)))
    while True:
        while len(window) < LOOK_AHEAD and (position := next(upcoming, None)) is not None:
            window.append(position)
        chosen = next((position for position in window if lengths[position] <= free), None)
        if chosen is None:
            if not row:
                return rows
            rows.append(row)
            row, free = [], row_tokens
            continue
        window.remove(chosen)
        row.append(chosen)
        free -= lengths[chosen]
