"""How full training's rows will be, from a selection's lengths."""

from collections.abc import Sequence

import numpy as np

from train.data.packing import pack_lengths

SAMPLED_LENGTHS = 100_000


def packing_efficiency(lengths: Sequence[tuple[int, int]], row_tokens: int) -> float:
    """Share of a row's tokens that are used, by training's own packer over lengths drawn from a histogram.

    Args:
        lengths: (tokens of a sample, number of such samples).
        row_tokens: capacity of a row; longer samples count as one that fills it.
    """
    if not lengths:
        return 0.0
    tokens_B, count_B = np.asarray(lengths, np.int64).T
    num = int(min(SAMPLED_LENGTHS, count_B.sum()))
    # Evenly spaced quantiles rather than random draws: the same each time, and no length by luck too often.
    at_N = (np.arange(num) + 0.5) / num * count_B.sum()
    drawn_N = np.minimum(tokens_B[np.searchsorted(np.cumsum(count_B), at_N, side="right")], row_tokens)
    np.random.default_rng(0).shuffle(drawn_N)
    rows = pack_lengths(drawn_N.tolist(), row_tokens)
    return float(drawn_N.sum() / (len(rows) * row_tokens))
