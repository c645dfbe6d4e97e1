"""Which units are committed, at a bit each: 100 kB for 800,000."""

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.inputs.rows import number_of
from pipeline.store import Store

_CHUNK_BYTES = 4096


class NumberSet:
    """A set of numbers of units or shards."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._bits = bytearray()
        self._len = 0
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        """Put a number in; once is as good as twice."""
        place, bit = number >> 3, 1 << (number & 7)
        if place >= len(self._bits):
            self._bits.extend(bytes(place + 1 - len(self._bits)))
        if not self._bits[place] & bit:
            self._bits[place] |= bit
            self._len += 1

    def __len__(self) -> int:
        return self._len

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return 0 <= place < len(self._bits) and bool(self._bits[place] >> (number & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        """The numbers, the smallest first."""
        for first in range(0, len(self._bits), _CHUNK_BYTES):
            chunk = np.frombuffer(self._bits[first : first + _CHUNK_BYTES], np.uint8)
            yield from (np.flatnonzero(np.unpackbits(chunk, bitorder="little")) + 8 * first).tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberSet) and self._bits.rstrip(b"\0") == other._bits.rstrip(b"\0")

    __hash__ = None  # type: ignore[assignment]


def committed(store: Store, folder: str = "ledger") -> NumberSet:
    """The units whose commit record is in a folder of the store: the ledgers, or the columns of an annotator."""
    names = store.iter_files(folder, ".parquet")
    return NumberSet(number_of(name.removesuffix(".parquet")) for name in names)
