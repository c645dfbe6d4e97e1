"""Which samples share a row: decided from lengths alone, before a byte of an image is read."""

from collections.abc import Sequence

LOOK_AHEAD = 64
"""How many samples ahead those are looked for that fill the rest of a row."""


def pack_lengths(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Fill rows with samples in stream order.

    Next-fit with a top-up: where the next sample does not fit, the last one is taken back, and of it and the following
    `LOOK_AHEAD` samples the two are chosen that fill the row best. Each sample is placed exactly once.

    Args:
        lengths: Tokens of each sample, in stream order.
        row_tokens: Capacity of a row.

    Returns:
        For each row the positions of its samples in `lengths`.

    Raises:
        ValueError: A sample is longer than a row.
    """
    if len(lengths) and max(lengths) > row_tokens:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit into a row of {row_tokens}")
    rows: list[list[int]] = []
    placed = bytearray(len(lengths))
    at = 0
    row: list[int] = []
    while True:
        free = row_tokens - sum(lengths[position] for position in row)
        while at < len(lengths) and (placed[at] or lengths[at] <= free):
            if not placed[at]:
                row.append(at)
                free -= lengths[at]
            at += 1
        if not row:
            return rows
        taken_back = _top_up(row, free, lengths, placed, at) if at < len(lengths) and free else []
        for position in row:
            placed[position] = 1
        rows.append(row)
        row = taken_back


def _top_up(row: list[int], free: int, lengths: Sequence[int], placed: bytearray, at: int) -> list[int]:
    """Exchange the row's last sample for the one or two of the window that leave the least space.

    Returns:
        The last sample where it was not chosen again: it begins the next row.
    """
    last = row[-1]
    free += lengths[last]
    window = [last]
    ahead = at
    while len(window) <= LOOK_AHEAD and ahead < len(lengths):
        if not placed[ahead]:
            window.append(ahead)
        ahead += 1
    window.sort(key=lengths.__getitem__)
    best = lengths[last]
    chosen: tuple[int, ...] = (last,)
    low, high = 0, len(window) - 1
    while high >= 0 and lengths[window[high]] > free:
        high -= 1
    if high >= 0 and lengths[window[high]] > best:
        best, chosen = lengths[window[high]], (window[high],)
    while low < high and best < free:
        total = lengths[window[low]] + lengths[window[high]]
        if total > free:
            high -= 1
            continue
        if total > best:
            best, chosen = total, (window[low], window[high])
        low += 1
    row[-1:] = chosen
    free -= best
    for position in reversed(window):  # where samples are small, still more may fit
        if position not in chosen and lengths[position] <= free:
            row.append(position)
            free -= lengths[position]
    return [] if last in row else [last]
