"""Which rows belong together: a group number per row, equal for the rows of one registered domain."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from publicsuffixlist import PublicSuffixList

Numbers = npt.NDArray[np.uint64]

_AUTHORITY = r"^[^/?#]*//(?P<authority>[^/?#]*)"
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: multiples of it, modulo 2^64, lie evenly spread however many there are."""
_SLOT_BITS = 24
_MAX_CACHED = 1 << 18


def authorities(urls: pa.Array) -> pa.DictionaryArray:
    """The part of each URL that names user, host and port; empty where there is none."""
    matched = pc.struct_field(pc.extract_regex(urls, _AUTHORITY), 0)
    return pc.fill_null(matched, b"").dictionary_encode()


def host_of(authority: bytes) -> str:
    """The host's name or address, in small letters."""
    host = authority.decode("utf-8", "replace").rpartition("@")[2].lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


class Grouper:
    """Numbers the groups of rows: a domain is one group up to `chunk_rows` rows, and then another one.

    The first group's number is a hash of the domain; the following lie evenly spread from there, so that in the order
    of the numbers a large domain is mixed among all others. Domains are counted in slots chosen by their hash. Two
    that share a slot may start a new group early, and that is all that happens.
    """

    def __init__(self, chunk_rows: int) -> None:
        self._chunk_rows = np.uint64(chunk_rows)
        self._counts = np.zeros(1 << _SLOT_BITS, np.uint32)
        self._domains: dict[bytes, int] = {}
        self._suffixes = PublicSuffixList(only_icann=True)

    def number(self, urls: pa.Array) -> Numbers:
        """A group number for each of the next rows [n]."""
        encoded = authorities(urls)
        domains = np.array([self._hash(authority) for authority in encoded.dictionary.to_pylist()], np.uint64)
        codes = encoded.indices.to_numpy()
        chunks = self._count(domains, codes) // self._chunk_rows
        groups: Numbers = domains[codes] + chunks * _GOLDEN
        return groups

    def _hash(self, authority: bytes) -> int:
        known = self._domains.get(authority)
        if known is None:
            if len(self._domains) == _MAX_CACHED:
                self._domains.clear()
            host = host_of(authority)
            is_address = host.startswith("[") or host.replace(".", "").isdigit()
            domain = host if is_address else self._suffixes.privatesuffix(host) or host
            known = int.from_bytes(hashlib.blake2b(domain.encode(), digest_size=8).digest())
            self._domains[authority] = known
        return known

    def _count(self, domains: Numbers, codes: npt.NDArray[np.int32]) -> Numbers:
        """How many rows of each row's domain came before it [n]."""
        slots, slot_of_code = np.unique(domains % np.uint64(1 << _SLOT_BITS), return_inverse=True)
        # Numbers of 16 bits are sorted several times as fast.
        ids = slot_of_code.astype(np.uint16 if len(slots) <= 1 << 16 else np.uint32)[codes]
        order = np.argsort(ids, kind="stable")
        counts = np.bincount(ids, minlength=len(slots))
        rank = np.empty(len(ids), np.int64)
        rank[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
        before: Numbers = (self._counts[slots][ids] + rank).astype(np.uint64)
        self._counts[slots] += counts.astype(np.uint32)
        return before
